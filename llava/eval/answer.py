"""The one place that prompts, generates and decodes: every evaluation program and the demo stand on it.

`Answerer` answers a batch of (text, images) and tells what each answer cost; `llava.eval.run` takes question files
through it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flowcut import Handle, TextTower, Trace, asked, attach
from flowcut.registry import pruner_to_text
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IMAGE_PLACEHOLDER,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import conv_templates, conversation_mode
from llava.eval.media.reading import Picture, PictureReader
from llava.eval.provenance import model_fingerprint
from llava.eval.stopwatch import Stopwatch
from llava.mm_utils import get_model_name_from_path, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import local_folder
from llava.model.remembered_pruner import pruner_to_use

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Generation:
    """How answers are generated. Temperature 0 is greedy; `seed` matters above that only."""

    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1
    max_new_tokens: int = 128
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of transformers' generate."""
        sampling = self.temperature > 0
        return {
            "do_sample": sampling,
            "temperature": self.temperature if sampling else None,
            "top_p": self.top_p if sampling else None,
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_new_tokens,
            "use_cache": True,
        }


class Checkpoint(NamedTuple):
    """A loaded model with what belongs to it. `mode` names the conversation template."""

    model: Any
    tokenizer: Any
    image_processor: Any
    name: str
    mode: str
    fingerprint: str

    @property
    def reader(self) -> PictureReader:
        """Reads pictures for this model, in a worker process if need be."""
        return PictureReader(self.image_processor, self.model.config)

    def picture(self, image: Image.Image) -> Picture:
        """A picture (RGB) prepared for the model; see `process_images`."""
        [pixels] = process_images([image], self.image_processor, self.model.config)
        return Picture(pixels, image.size)

    def batch(self, pictures: Sequence[Picture]) -> Tensor | list[Tensor]:
        """What the model takes as `images`, on its device and in its type."""
        tiles = [picture.pixels.to(device=self.model.device, dtype=self.model.dtype) for picture in pictures]
        return torch.stack(tiles) if len({one.shape for one in tiles}) == 1 else tiles

    def pixels(self, images: Sequence[Image.Image]) -> Tensor | list[Tensor]:
        """What the model takes as `images`, of pictures as they come."""
        return self.batch([self.picture(image) for image in images])


def load_checkpoint(
    model_path: str,
    model_base: str | None = None,
    conv_mode: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    default_mode: str | None = None,
    **loading: Any,
) -> Checkpoint:
    """Load a LLaVA checkpoint for answering. No pruner is attached, remembered or not; `Answerer` sees to that.

    conv_mode: conversation template; else the checkpoint's own `conv_version`, else `default_mode`, else by its name.
    device: default: CUDA where there is one. dtype: one of DTYPES; default: float16, on a CPU float32.
    loading: further arguments of `load_pretrained_model`, such as `load_4bit`.

    Raises ValueError, one line, when path, weights or template are not there, or the model takes no images.
    """
    name = get_model_name_from_path(model_path)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = getattr(torch, dtype) if dtype else None
    tokenizer, model, image_processor, _ = load_pretrained_model(
        model_path, model_base, name, device=device, dtype=chosen, pruner="none", **loading
    )
    if image_processor is None:
        raise ValueError(f"{model_path} is a language model without vision tower; give a LLaVA checkpoint")
    own_mode = getattr(model.config, "conv_version", None) or default_mode
    mode = conversation_mode(name, own_mode, conv_mode)
    marks = [model_fingerprint(local_folder(path)) for path in (model_path, model_base) if path]
    return Checkpoint(model, tokenizer, image_processor, name, mode, "+".join(marks))


class Reply(NamedTuple):
    """An answer and what it cost.

    tokens: visual tokens before the encoder's first layer and after each of its layers, CLS left out.
    visual_tokens, text_tokens: what the language model read. language_tokens: visual tokens that went into each of its
    layers, for pruners that cut there; else None. ms: from pixels to the decoded end; encode_ms, projector_ms,
    prefill_ms, decode_ms: of it, see `Stopwatch`. The time of a batch is shared out evenly among its questions.
    """

    text: str
    tokens: list[int]
    visual_tokens: int
    text_tokens: int
    ms: float
    encode_ms: float
    prefill_ms: float
    language_tokens: list[int] | None = None
    projector_ms: float | None = None
    decode_ms: float = 0.0

    def metadata(self) -> dict[str, Any]:
        """Everything but the text, for the answer line."""
        values = {name: value for name, value in self._asdict().items() if name != "text" and value is not None}
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}


def encoder_tokens(tower: Any, trace: Trace | None, pixels: Tensor | list[Tensor]) -> list[list[int]]:
    """Per image, tokens before the first layer and after each, summed over its tiles.

    Without a pruner every layer sees all patches.
    """
    tiles = [1 if image.ndim == 3 else len(image) for image in pixels]
    if trace is None:
        return [[count * tower.num_patches] * (tower.layers_run + 1) for count in tiles]
    rows = iter(zip(trace.entering[0], *trace.leaving, strict=True))
    return [[sum(column) for column in zip(*(next(rows) for _ in range(count)), strict=True)] for count in tiles]


def language_tokens(trace: Trace | None) -> dict[int, tuple[int, ...]]:
    """Image number -> its tokens entering each decoder layer; empty if nothing watched the language model."""
    if trace is None or trace.language is None:
        return {}
    return dict(zip(trace.shown, zip(*trace.language.entering, strict=True), strict=True))


class Answerer:
    """A checkpoint that answers questions, with a pruner attached while it does.

    pruner: "none", or text such as "flowcut:budget=64"; None takes the one that the checkpoint was trained with, if it
        remembers any. A warning tells when a checkpoint's own is taken, and when the text asks for something else.

    `pruner` and `pruner_text` are what is really used. A pruner that chooses by the question is told each picture's,
    and needs CLIP's text encoder: the one it names, or one beside the vision tower. Raises ValueError for a pruner that
    is unknown or does not fit the model, and where that text encoder is missing.
    """

    def __init__(self, checkpoint: Checkpoint, pruner: str | None = None, generation: Generation | None = None) -> None:
        self.checkpoint = checkpoint
        self.pruner = pruner_to_use(pruner, checkpoint.model.config, checkpoint.name, switch_off="--pruner none")
        self.pruner_text = pruner_to_text(self.pruner) if pruner is None else pruner
        self.generation = generation or Generation()
        self.text_tower: TextTower | None = None
        if self.pruner is not None:
            attach(checkpoint.model, self.pruner).remove()  # a misfit shows now, not after the first picture
            if self.pruner.reads_question:
                self.text_tower = TextTower.find(checkpoint.model, getattr(self.pruner, "text_tower", None))

    def settings(self) -> dict[str, Any]:
        """What decides about the answers, beside the questions."""
        return {
            "model": self.checkpoint.name,
            "model_hash": self.checkpoint.fingerprint,
            "pruner": repr(self.pruner) if self.pruner else "none",
            "conv_mode": self.checkpoint.mode,
            "dtype": str(self.checkpoint.model.dtype).removeprefix("torch."),
            **asdict(self.generation),
        }

    def prompt(self, text: str, images: int = 1) -> str:
        """The whole prompt of a question. `<image-placeholder>` says where the pictures stand; else they come first."""
        token = DEFAULT_IMAGE_TOKEN
        if getattr(self.checkpoint.model.config, "mm_use_im_start_end", False):
            token = DEFAULT_IM_START_TOKEN + token + DEFAULT_IM_END_TOKEN
        if IMAGE_PLACEHOLDER in text:
            text = text.replace(IMAGE_PLACEHOLDER, token)
        else:
            text = (token + "\n") * images + text
        conversation = conv_templates[self.checkpoint.mode].copy()
        conversation.append_message(conversation.roles[0], text)
        conversation.append_message(conversation.roles[1], None)
        return conversation.get_prompt()

    def __call__(self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> list[Reply]:
        """Answer a batch: one text and its pictures (RGB) each. A question's answer does not depend on its batch."""
        return self.answer(texts, [[self.checkpoint.picture(image) for image in own] for own in images])

    def answer(self, texts: Sequence[str], pictures: Sequence[Sequence[Picture]]) -> list[Reply]:
        """As a call, with pictures that were prepared before; a question may have none, one or several."""
        model, tokenizer = self.checkpoint.model, self.checkpoint.tokenizer
        ids, mask = self._ids([self.prompt(text, len(own)) for text, own in zip(texts, pictures, strict=True)])
        shown = [picture for own in pictures for picture in own]
        pixels = self.checkpoint.batch(shown)
        with torch.inference_mode(), Stopwatch(model) as watch, self.pruning(texts, pictures) as handle:
            watch.start()
            output = model.generate(
                ids,
                images=pixels if shown else None,
                image_sizes=[picture.size for picture in shown],
                attention_mask=mask,
                pad_token_id=tokenizer.pad_token_id,
                **self.generation.arguments(),
            )
            total = watch.stop()
        decoded = tokenizer.batch_decode(output, skip_special_tokens=True)
        visual = watch.visual_tokens[:: self.generation.num_beams]
        words = (mask.bool() & (ids != IMAGE_TOKEN_INDEX)).sum(dim=1).tolist()
        per_image = encoder_tokens(model.get_vision_tower(), handle.trace if handle else None, pixels)
        inside = language_tokens(handle.trace if handle else None)
        replies = []
        for index, answer in enumerate(decoded):
            first = sum(len(own) for own in pictures[:index])
            mine = per_image[first : first + len(pictures[index])]
            columns = [inside[image] for image in range(first, first + len(pictures[index])) if image in inside]
            replies.append(
                Reply(
                    text=answer.strip(),
                    tokens=[sum(column) for column in zip(*mine, strict=True)],
                    visual_tokens=visual[index],
                    language_tokens=[sum(column) for column in zip(*columns, strict=True)] or None,
                    text_tokens=words[index],
                    ms=total / len(texts),
                    encode_ms=watch.encode_ms / len(texts),
                    prefill_ms=watch.prefill_ms / len(texts),
                    projector_ms=watch.projector_ms / len(texts) if watch.projector_ms is not None else None,
                    decode_ms=watch.decode_ms / len(texts),
                )
            )
        return replies

    @contextmanager
    def pruning(self, texts: Sequence[str], pictures: Sequence[Sequence[Any]]) -> Iterator[Handle | None]:
        """The pruner attached, and told what is asked about each of the pictures; None where there is no pruner."""
        if self.pruner is None:
            yield None
            return
        about = [text.replace(IMAGE_PLACEHOLDER, " ") for text, own in zip(texts, pictures, strict=True) for _ in own]
        with attach(self.checkpoint.model, self.pruner) as handle, ExitStack() as stack:
            if self.text_tower is not None and about:
                stack.enter_context(asked(handle, about, self.text_tower))
            yield handle

    def _ids(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokenizer, device = self.checkpoint.tokenizer, self.checkpoint.model.device
        rows = [torch.tensor(tokenizer_image_token(prompt, tokenizer)) for prompt in prompts]
        ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id, padding_side="left")
        ones = [torch.ones_like(row) for row in rows]
        return ids.to(device), pad_sequence(ones, batch_first=True, padding_side="left").to(device)
