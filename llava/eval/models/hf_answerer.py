"""Answering with transformers' own models, with the same interface as LLaVA's classes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from llava.constants import IMAGE_PLACEHOLDER
from llava.conversation import conv_templates
from llava.eval.models.answerer import PrunedAnswerer
from llava.eval.models.context import Room, context_of, refuse_long_text, refuse_tokens
from llava.eval.models.hf_checkpoint import HFCheckpoint
from llava.eval.models.hf_inputs import VisualInput
from llava.eval.models.reply import Generation, Reply
from llava.eval.models.stopwatch import AnatomyStopwatch
from llava.eval.models.token_counts import TokenCounts


class HFAnswerer(PrunedAnswerer):
    """A checkpoint of transformers' own classes that answers questions, with a pruner attached while it does.

    Pictures and videos precede the question, or replace `<image-placeholder>` in its text. At temperature 0, answers
    are greedy without the checkpoint's `repetition_penalty`.
    """

    def __init__(
        self, checkpoint: HFCheckpoint, pruner: str | None = None, generation: Generation | None = None
    ) -> None:
        super().__init__(checkpoint, pruner, generation)
        self.checkpoint = checkpoint

    @property
    def takes_video(self) -> bool:
        """Whether the checkpoint has an image processor for the frames of videos."""
        return self.checkpoint.preparation.frames is not None

    def settings(self) -> dict[str, Any]:
        """Everything that determines the answers, except the questions."""
        return {
            "model": self.checkpoint.name,
            "model_hash": self.checkpoint.fingerprint,
            "host": f"transformers {type(self.checkpoint.model).__name__}",
            "prepared_by": self.checkpoint.prepared_by,
            "pruner": repr(self.pruner) if self.pruner else "none",
            "conv_mode": self.checkpoint.mode or "chat template",
            "frames": self.checkpoint.frames,
            "max_pixels": self.checkpoint.max_pixels,
            "dtype": str(self.checkpoint.model.dtype).removeprefix("torch."),
            **asdict(self.generation),
        }

    def prompt(self, text: str, images: int = 1, videos: Sequence[bool] | None = None) -> str:
        """The whole prompt of a question, with one placeholder for each picture or video.

        videos: for each of them, whether it is a video; default: `images` pictures.
        """
        shown = [False] * images if videos is None else list(videos)
        parts = text.split(IMAGE_PLACEHOLDER) if IMAGE_PLACEHOLDER in text else [""] * len(shown) + [text]
        if len(parts) - 1 != len(shown):
            raise ValueError(f"the text has {IMAGE_PLACEHOLDER} {len(parts) - 1} times for {len(shown)} pictures")
        processor = self.checkpoint.preparation.processor
        if self.checkpoint.mode is None:
            content: list[dict[str, str]] = []
            for number, part in enumerate(parts):
                content += [{"type": "text", "text": part}] if part else []
                content += [{"type": "video" if shown[number] else "image"}] if number < len(shown) else []
            turns = [{"role": "user", "content": content}]
            return processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        between = "" if IMAGE_PLACEHOLDER in text else "\n"
        names = [processor.video_token if video else processor.image_token for video in shown]
        written = parts[0] + "".join(name + between + part for name, part in zip(names, parts[1:], strict=True))
        conversation = conv_templates[self.checkpoint.mode].copy()
        conversation.append_message(conversation.roles[0], written)
        conversation.append_message(conversation.roles[1], None)
        return conversation.get_prompt()

    def __call__(self, texts: Sequence[str], images: Sequence[Sequence[Image.Image | str | Path]]) -> list[Reply]:
        """Answer a batch: one text each, with its pictures (RGB) and files of videos."""
        return self.answer(texts, [[self.checkpoint.show(one) for one in own] for own in images])

    def answer(self, texts: Sequence[str], pictures: Sequence[Sequence[VisualInput]]) -> list[Reply]:
        """Like a call, with prepared pictures and videos; a question may have none, one or several."""
        model, preparation = self.checkpoint.model, self.checkpoint.preparation
        context = context_of(model.config)
        for text in texts:
            refuse_long_text(text, preparation.tokenizer, context)
        prompts = [
            preparation.expand(self.prompt(text, videos=[one.video for one in own]), own)
            for text, own in zip(texts, pictures, strict=True)
        ]
        batch = self.checkpoint.batch(prompts, [one for own in pictures for one in own])
        placeholder_ids = preparation.placeholder_ids
        real, visual = self._parts(batch)
        # A pruner removes visual tokens, but never text.
        refuse_tokens(int((real if self.pruner is None else real & ~visual).sum(dim=1).max()), context)
        anatomy = self.checkpoint.anatomy
        room = Room(context, prompt=batch["input_ids"].shape[1])
        with torch.inference_mode(), ExitStack() as stack:
            watch = stack.enter_context(AnatomyStopwatch(model, anatomy))
            handle = stack.enter_context(self.pruning(texts, pictures))
            stack.callback(anatomy.decoder_model.register_forward_pre_hook(room.measure, with_kwargs=True).remove)
            watch.start()
            output = model.generate(
                **batch,
                pad_token_id=preparation.tokenizer.pad_token_id,
                repetition_penalty=1.0,
                stopping_criteria=[room],
                suppress_tokens=placeholder_ids,  # a generated placeholder would be taken for a picture
                **self.generation.arguments(),
            )
            total = watch.stop()
        said = preparation.tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        ids = batch["input_ids"]
        named = [(ids == placeholder).sum(dim=1).tolist() for placeholder in placeholder_ids]
        words = (real.sum(dim=1) - visual.sum(dim=1)).tolist()
        trace = handle.trace if handle else None
        counts = TokenCounts(pictures, len(anatomy.encoders[0].layers), trace, self.generation.num_beams)
        return [
            Reply(
                text=text.strip(),
                tokens=counts.encoder_tokens(index),
                visual_tokens=counts.visual_tokens(index, *(numbers[index] for numbers in named)),
                text_tokens=words[index],
                ms=total / len(texts),
                encode_ms=watch.encode_ms / len(texts),
                prefill_ms=watch.prefill_ms / len(texts),
                language_tokens=counts.language_tokens(index),
                decode_ms=watch.decode_ms / len(texts),
            )
            for index, text in enumerate(said)
        ]

    def _parts(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Which positions are no padding, and which are placeholders of visual tokens, [rows, length] each."""
        ids = batch["input_ids"]
        placeholders = torch.tensor(self.checkpoint.preparation.placeholder_ids, device=ids.device)
        return batch["attention_mask"].bool(), torch.isin(ids, placeholders)
