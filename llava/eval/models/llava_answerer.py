"""Answering with this project's LLaVA classes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flowcut.pruner import Pruner
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IMAGE_PLACEHOLDER,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import conv_templates
from llava.eval.media.reading import Picture
from llava.eval.models.answerer import PrunedAnswerer
from llava.eval.models.context import Room, context_of, refuse_long_text, refuse_tokens
from llava.eval.models.llava_checkpoint import Checkpoint
from llava.eval.models.reply import Generation, Reply
from llava.eval.models.stopwatch import Stopwatch
from llava.eval.models.token_counts import TokenCounts, picture_sizes
from llava.mm_utils import tokenizer_image_token


class LlavaAnswerer(PrunedAnswerer):
    """A LLaVA checkpoint that answers questions about pictures, with a pruner attached while it does.

    pruner, and its errors: see `PrunedAnswerer`.
    """

    takes_video = False

    def __init__(self, checkpoint: Checkpoint, pruner: str | None = None, generation: Generation | None = None) -> None:
        super().__init__(checkpoint, pruner, generation)
        self.checkpoint = checkpoint

    def settings(self) -> dict[str, Any]:
        """Everything that determines the answers, except the questions."""
        return {
            "model": self.checkpoint.name,
            "model_hash": self.checkpoint.fingerprint,
            "pruner": repr(self.pruner) if self.pruner else "none",
            "conv_mode": self.checkpoint.mode,
            "dtype": str(self.checkpoint.model.dtype).removeprefix("torch."),
            **asdict(self.generation),
        }

    def prompt(self, text: str, images: int = 1) -> str:
        """The whole prompt of a question. `<image-placeholder>` marks the positions of the pictures; else they come
        first.
        """
        token = DEFAULT_IMAGE_TOKEN
        if getattr(self.checkpoint.model.config, "mm_use_im_start_end", False):
            token = DEFAULT_IM_START_TOKEN + token + DEFAULT_IM_END_TOKEN
        return llava_prompt(self.checkpoint.mode, text, images, token)

    def __call__(self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> list[Reply]:
        """Answer a batch: one text and its pictures (RGB) each. A question's answer does not depend on its batch."""
        return self.answer(texts, [[self.checkpoint.picture(image) for image in own] for own in images])

    def answer(self, texts: Sequence[str], pictures: Sequence[Sequence[Picture]]) -> list[Reply]:
        """Like a call, with prepared pictures; a question may have none, one or several."""
        model, tokenizer = self.checkpoint.model, self.checkpoint.tokenizer
        context = context_of(model.config)
        prompts = [self.prompt(text, len(own)) for text, own in zip(texts, pictures, strict=True)]
        for prompt in prompts:
            refuse_long_text(prompt, tokenizer, context)
        ids, mask = self._ids(prompts)
        for words, own in zip(mask.sum(dim=1).tolist(), pictures, strict=True):
            refuse_tokens(words + len(own) * self._least_per_picture, context)
        room = Room(context)
        shown = [picture for own in pictures for picture in own]
        pixels = self.checkpoint.batch(shown)
        with torch.inference_mode(), ExitStack() as stack:
            watch = stack.enter_context(Stopwatch(model))
            handle = stack.enter_context(self.pruning(texts, pictures))
            stack.callback(model.register_forward_pre_hook(room.measure, with_kwargs=True).remove)
            watch.start()
            output = model.generate(
                ids,
                images=pixels if shown else None,
                image_sizes=[picture.size for picture in shown],
                attention_mask=mask,
                pad_token_id=tokenizer.pad_token_id,
                stopping_criteria=[room],
                **self.generation.arguments(),
            )
            total = watch.stop()
        visual = watch.visual_tokens[:: self.generation.num_beams]
        words = (mask.bool() & (ids != IMAGE_TOKEN_INDEX)).sum(dim=1).tolist()
        tower = model.get_vision_tower()
        sizes = [picture_sizes(tower, [picture.pixels for picture in own]) for own in pictures]
        counts = TokenCounts(sizes, tower.layers_run, handle.trace if handle else None)
        return [
            Reply(
                text=answer.strip(),
                tokens=counts.encoder_tokens(index),
                visual_tokens=visual[index],
                language_tokens=counts.language_tokens(index),
                text_tokens=words[index],
                ms=total / len(texts),
                encode_ms=watch.encode_ms / len(texts),
                prefill_ms=watch.prefill_ms / len(texts),
                projector_ms=watch.projector_ms / len(texts) if watch.projector_ms is not None else None,
                decode_ms=watch.decode_ms / len(texts),
            )
            for index, answer in enumerate(tokenizer.batch_decode(output, skip_special_tokens=True))
        ]

    @property
    def _least_per_picture(self) -> int:
        """Positions that each picture surely adds, beyond its placeholder's one."""
        whole = self.pruner is None or type(self.pruner).vision is Pruner.vision
        return self.checkpoint.model.get_vision_tower().num_patches - 1 if whole else 0

    def _ids(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokenizer, device = self.checkpoint.tokenizer, self.checkpoint.model.device
        rows = [torch.tensor(tokenizer_image_token(prompt, tokenizer)) for prompt in prompts]
        ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id, padding_side="left")
        ones = [torch.ones_like(row) for row in rows]
        return ids.to(device), pad_sequence(ones, batch_first=True, padding_side="left").to(device)


def llava_prompt(mode: str, text: str, images: int, token: str = DEFAULT_IMAGE_TOKEN) -> str:
    """The whole prompt of a question in one of LLaVA's templates. `<image-placeholder>` marks the positions of the
    pictures; else they come first.
    """
    if IMAGE_PLACEHOLDER in text:
        text = text.replace(IMAGE_PLACEHOLDER, token)
    else:
        text = (token + "\n") * images + text
    conversation = conv_templates[mode].copy()
    conversation.append_message(conversation.roles[0], text)
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt()
