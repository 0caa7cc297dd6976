"""A predictor for Cog (replicate.com): in cog.yaml, `predict: "llava/serve/predict.py:Predictor"`.

The checkpoint is the folder `model` next to cog.yaml. Needs the package `cog`, which Cog's containers provide.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from cog import BasePredictor, ConcatenateIterator, Input, Path

from llava.conversation import conv_templates
from llava.eval.media.images import load_image
from llava.eval.models.llava_checkpoint import load_checkpoint
from llava.serve.engine import ChatPrompt, Engine
from llava.serve.turns import prompt_of, stop_of

CHECKPOINT = "model"


class Predictor(BasePredictor):
    """LLaVA's inputs, and `pruner`. Pictures are prepared as the checkpoint's config says."""

    engine: Engine

    def setup(self) -> None:
        """Load the model once."""
        self.engine = Engine(load_checkpoint(CHECKPOINT, default_mode="llava_v1"))

    def predict(
        self,
        image: Path = Input(description="Input image"),  # noqa: B008 - Cog's way to describe an input
        prompt: str = Input(description="Prompt to use for text generation"),
        top_p: float = Input(description="Sample from the most likely p of tokens", ge=0.0, le=1.0, default=1.0),
        temperature: float = Input(description="0 is greedy, higher is more random", default=0.2, ge=0.0),
        max_tokens: int = Input(description="Most tokens to generate", default=1024, ge=1),
        pruner: str = Input(description="Such as flowcut:budget=64, or none", default="none"),
    ) -> ConcatenateIterator[str]:
        """The answer, piece by piece."""
        template = conv_templates[self.engine.checkpoint.mode]
        question = ChatPrompt(
            prompt_of(template, [(prompt, None)], images=1),
            [load_image(str(image))],
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_tokens,
            stop=(stop_of(template),),
            pruner=pruner,
        )
        yield from _pieces(self.engine, question)


def _pieces(engine: Engine, question: ChatPrompt) -> Iterator[str]:
    shown = 0
    with closing(engine.ask(question)) as news:  # type: ignore[type-var]
        for progress in news:
            if len(progress.text) > shown:
                yield progress.text[shown:]
                shown = len(progress.text)
