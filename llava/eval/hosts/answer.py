"""Answering with transformers' own models, behind the same face as `llava.eval.answer.Answerer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from llava.constants import IMAGE_PLACEHOLDER
from llava.conversation import conv_templates
from llava.eval.answer import Answerer, Generation, Reply
from llava.eval.hosts.checkpoint import HostCheckpoint
from llava.eval.hosts.costs import Costs
from llava.eval.hosts.prepare import Shown
from llava.eval.hosts.stopwatch import HostStopwatch


class HostAnswerer(Answerer):
    """A checkpoint of transformers' own classes that answers questions, with a pruner attached while it does.

    Pictures and videos stand in front of the question, or where its text says `<image-placeholder>`. Answers are
    greedy in the plain sense at temperature 0: a checkpoint's own `repetition_penalty` is not applied.
    """

    checkpoint: HostCheckpoint  # type: ignore[assignment]

    def __init__(
        self, checkpoint: HostCheckpoint, pruner: str | None = None, generation: Generation | None = None
    ) -> None:
        super().__init__(checkpoint, pruner, generation)  # type: ignore[arg-type]

    def settings(self) -> dict[str, Any]:
        """What decides about the answers, beside the questions."""
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
        """The whole prompt of a question, with one placeholder for each picture or video it shows.

        videos: for each of them, whether it is a video; default: `images` pictures.
        """
        shown = [False] * images if videos is None else list(videos)
        parts = text.split(IMAGE_PLACEHOLDER) if IMAGE_PLACEHOLDER in text else [""] * len(shown) + [text]
        if len(parts) - 1 != len(shown):
            raise ValueError(f"the text has {len(parts) - 1} times {IMAGE_PLACEHOLDER}, and {len(shown)} are shown")
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

    def answer(self, texts: Sequence[str], pictures: Sequence[Sequence[Shown]]) -> list[Reply]:  # type: ignore[override]
        """As a call, with pictures and videos that were prepared before; a question may have none, one or several."""
        model, preparation = self.checkpoint.model, self.checkpoint.preparation
        prompts = [
            preparation.expand(self.prompt(text, videos=[one.video for one in own]), own)
            for text, own in zip(texts, pictures, strict=True)
        ]
        batch = self.checkpoint.batch(prompts, [one for own in pictures for one in own])
        marks = preparation.marks
        anatomy = self.checkpoint.anatomy
        timed = HostStopwatch(model, anatomy)
        with torch.inference_mode(), timed as watch, self.pruning(texts, pictures) as handle:
            watch.start()
            output = model.generate(
                **batch,
                pad_token_id=preparation.tokenizer.pad_token_id,
                repetition_penalty=1.0,
                suppress_tokens=marks,  # a placeholder is no text, and would be taken for a picture
                **self.generation.arguments(),
            )
            total = watch.stop()
        said = preparation.tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        ids, real = batch["input_ids"], batch["attention_mask"].bool()
        named = [(ids == mark).sum(dim=1).tolist() for mark in marks]
        words = (real.sum(dim=1) - torch.isin(ids, torch.tensor(marks, device=ids.device)).sum(dim=1)).tolist()
        trace = handle.trace if handle else None
        costs = Costs(pictures, len(anatomy.encoders[0].layers), trace, self.generation.num_beams)
        return [
            Reply(
                text=text.strip(),
                tokens=costs.tokens(index),
                visual_tokens=costs.visual_tokens(index, *(counts[index] for counts in named)),
                text_tokens=words[index],
                ms=total / len(texts),
                encode_ms=watch.encode_ms / len(texts),
                prefill_ms=watch.prefill_ms / len(texts),
                language_tokens=costs.language_tokens(index),
                decode_ms=watch.decode_ms / len(texts),
            )
            for index, text in enumerate(said)
        ]
