"""lmms-eval's model `llava_flowcut`: all that `llava.eval.models.load` can load, with a pruner attached.

python -m lmms_eval --model llava_flowcut --tasks pope \\
    --model_args pretrained=liuhaotian/llava-v1.5-7b,pruner=flowcut:budget=64
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.model import lmms
from PIL import Image

from flowcut.cli.progress import progress_bar
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_PLACEHOLDER
from llava.eval.models.load import load_answerer
from llava.eval.models.reply import Generation


class LlavaFlowcut(lmms):
    """A model with lmms-eval's "simple" interface: a context and pictures or videos in, text out.

    pretrained: checkpoint folder or Hub name; the classes are chosen as in `load_answerer`.
    pruner: such as flowcut:budget=64; with several settings in quotes: pruner="flowcut:budget=64,last_layer=-2".
        Default: the one stored in the checkpoint, if any. "none" uses all tokens.
    conv_mode, model_base, dtype, host, frames, max_pixels: as the flags of `llava.eval.model_vqa_loader`.
    max_new_tokens: for tasks that do not set it.

    With several processes (accelerate launch) each takes its own device.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        pruner: str | None = None,
        conv_mode: str | None = None,
        model_base: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        host: str = "auto",
        frames: int = 8,
        max_pixels: int | None = None,
        max_new_tokens: int = 1024,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        try:
            self.batch_size = int(batch_size)
        except ValueError:
            raise ValueError(
                f"batch_size={batch_size!r} is not a number; give 1 or more, answers do not depend on it"
            ) from None
        self.max_new_tokens = max_new_tokens
        accelerator = Accelerator()
        if accelerator.num_processes > 1:
            self.accelerator = accelerator
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
            device = str(accelerator.device)
        self.answerer = load_answerer(
            pretrained,
            pruner=pruner.strip("\"'") if pruner else None,
            backend=host,
            frames=frames,
            max_pixels=max_pixels,
            model_base=model_base,
            conv_mode=conv_mode,
            default_mode="vicuna_v1",
            device=device,
            dtype=dtype,
        )

    @property
    def model(self) -> Any:
        return self.answerer.checkpoint.model

    @property
    def device(self) -> Any:
        return self.model.device

    @property
    def tokenizer(self) -> Any:
        return self.answerer.checkpoint.tokenizer

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers in the requests' order. Requests with the same settings are answered `batch_size` at a time."""
        answers: dict[int, str] = {}
        groups = defaultdict(list)
        for number, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True, default=str)].append(number)
        with progress_bar(total=len(requests), disable=self.rank != 0, desc="llava_flowcut", unit="question") as bar:
            for numbers in groups.values():
                settings = requests[numbers[0]].args[1]
                self.answerer.generation = generation_of(settings, self.max_new_tokens)
                for start in range(0, len(numbers), self.batch_size):
                    batch = numbers[start : start + self.batch_size]
                    replies = self._answer([requests[number].args for number in batch])
                    for number, text in zip(batch, replies, strict=True):
                        answers[number] = cut_at(text, settings.get("until"))
                        self.cache_hook.add_partial(
                            "generate_until", (requests[number].args[0], settings), answers[number]
                        )
                    bar.update(len(batch))
        return [answers[number] for number in range(len(requests))]

    def _answer(self, batch: Sequence[tuple[Any, ...]]) -> list[str]:
        texts, shown = [], []
        for context, _, doc_to_visual, document, task, split in batch:
            own = list(flat(doc_to_visual(self.task_dict[task][split][document])))
            texts.append(placed(context, len(own)))
            shown.append([one.convert("RGB") if isinstance(one, Image.Image) else one for one in own])
        videos = [one for own in shown for one in own if not isinstance(one, Image.Image)]
        if videos and not self.answerer.takes_video:
            name = self.answerer.checkpoint.name
            raise ValueError(f"{videos[0]} is not a picture, and {name} takes pictures only; choose another task")
        return [reply.text for reply in self.answerer(texts, shown)]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("llava_flowcut generates answers; choose a task whose output_type is generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("llava_flowcut answers one round; choose a task whose output_type is generate_until")


def generation_of(settings: Mapping[str, Any], max_new_tokens: int) -> Generation:
    """A task's generation settings, greedy unless it samples at a temperature above 0."""
    temperature = float(settings.get("temperature") or 0.0)
    return Generation(
        temperature=0.0 if settings.get("do_sample") is False else temperature,
        top_p=settings.get("top_p"),
        num_beams=settings.get("num_beams") or 1,
        max_new_tokens=settings.get("max_new_tokens") or max_new_tokens,
    )


def flat(visuals: Any) -> Iterator[Any]:
    """The pictures and video files of a task, flattened; none for None."""
    if isinstance(visuals, (list, tuple)):
        for one in visuals:
            yield from flat(one)
    elif visuals is not None:
        yield visuals


def placed(context: str, shown: int) -> str:
    """The question with its pictures at `<image>`, if it occurs once for each picture; else they come first."""
    if context.count(DEFAULT_IMAGE_TOKEN) == shown:
        return context.replace(DEFAULT_IMAGE_TOKEN, IMAGE_PLACEHOLDER)
    return context.replace(DEFAULT_IMAGE_TOKEN, "").strip()


def cut_at(text: str, until: str | Sequence[str] | None) -> str:
    """The text up to the first stopping sequence."""
    for stop in [until] if isinstance(until, str) else until or []:
        if stop:
            text = text.split(stop)[0]
    return text
