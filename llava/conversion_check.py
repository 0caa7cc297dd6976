"""Whether a converted checkpoint does what the original does: its logits, and its tokens and answers to text prompts.

A conversion in transformers' layout is read by transformers' own class and processor, as its users read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates, conversation_mode
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import read_config
from llava.model.transformers_layout import is_transformers_layout

DIALOGUES = (
    ("What is this?",),
    ("What colour is the largest thing?\nAnswer the question using a single word or phrase.",),
    (" How many are there?", "Three.", "Are you sure?"),
)
"""What is asked about the picture: a question, or questions and answers in turn."""
NEW_TOKENS = 8


@dataclass
class Comparison:
    """What a checkpoint and its conversion make of a picture of noise.

    Attributes:
        logits: the largest difference of logits in float32, from the same tokens.
        tokens: for each dialogue, whether both give its text the same tokens.
        answers: for each dialogue, the answers of the original and of the conversion.
    """

    logits: float
    tokens: list[bool]
    answers: list[tuple[str, str]]

    def lines(self) -> Iterator[str]:
        """What to tell a person."""
        equal = sum(before == after for before, after in self.answers)
        yield f"text prompts with equal tokens: {sum(self.tokens)} of {len(self.tokens)}"
        yield f"text prompts with equal answers: {equal} of {len(self.answers)}"
        for turns, (before, after) in zip(DIALOGUES, self.answers, strict=True):
            if before != after:
                yield f"  {turns[-1]!r}: {before!r} before, {after!r} after"


def compare(model_path: str, model_base: str | None, output: str) -> Comparison:
    """Run a checkpoint and its conversion, one after the other, in float32 on the CPU."""
    before = LlavaReader(model_path, model_base)
    side = before.image_processor.crop_size["height"]
    noise = np.random.default_rng(0).integers(0, 256, (side, 2 * side, 3), dtype=np.uint8)  # fits one canvas best
    picture = Image.fromarray(noise)
    ids = [*before.tokenizer("Hello").input_ids, IMAGE_TOKEN_INDEX, *before.tokenizer("What is this?").input_ids[1:]]
    seen = before.seen(picture)
    count = before.image_tokens(picture)
    expected, (texts, answers) = before.logits(ids, seen), before.dialogues(picture)
    mode = before.mode
    del before
    after: Any
    if is_transformers_layout(read_config(Path(output))):
        after = TransformersReader(output, count)
    else:
        after = LlavaReader(output, None, mode)
    actual, (same_texts, same_answers) = after.logits(ids, seen), after.dialogues(picture)
    difference = (actual[..., : expected.shape[-1]] - expected).abs().max().item()
    tokens = [one == two for one, two in zip(texts, same_texts, strict=True)]
    return Comparison(difference, tokens, list(zip(answers, same_answers, strict=True)))


def _expanded(ids: list[int], count: int) -> list[int]:
    """Tokens with a picture's in the place of LLaVA's one placeholder."""
    return [number for one in ids for number in ([IMAGE_TOKEN_INDEX] * count if one == IMAGE_TOKEN_INDEX else [one])]


class LlavaReader:
    """A checkpoint read by LLaVA's class, with LLaVA's way of tokenising a prompt."""

    def __init__(self, model_path: str, model_base: str | None, mode: str | None = None):
        self.tokenizer, self.model, self.image_processor, _ = load_pretrained_model(
            model_path, model_base, "", device="cpu", dtype=torch.float32, pruner="none"
        )
        self.mode = mode or conversation_mode(model_path, getattr(self.model.config, "conv_version", None))

    def seen(self, picture: Image.Image) -> dict[str, Any]:
        pixels = process_images([picture], self.image_processor, self.model.config)
        return {"images": pixels, "image_sizes": [picture.size]}

    @torch.inference_mode()
    def image_tokens(self, picture: Image.Image) -> int:
        """How many tokens a picture becomes."""
        return len(self.model.image_features(**self.seen(picture))[0])

    @torch.inference_mode()
    def logits(self, ids: list[int], seen: dict[str, Any]) -> Tensor:
        return self.model(torch.tensor([ids]), **seen).logits

    @torch.inference_mode()
    def dialogues(self, picture: Image.Image) -> tuple[list[list[int]], list[str]]:
        """The tokens of each dialogue, and the greedy answer to it."""
        tokens, answers, count = [], [], self.image_tokens(picture)
        for turns in DIALOGUES:
            conversation = conv_templates[self.mode].copy()
            for number, text in enumerate(turns):
                shown = "" if number else f"{DEFAULT_IMAGE_TOKEN}\n"
                conversation.append_message(conversation.roles[number % 2], shown + text)
            conversation.append_message(conversation.roles[1], None)
            ids: Any = tokenizer_image_token(conversation.get_prompt(), self.tokenizer)
            given: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "do_sample": False, **self.seen(picture)}
            said = self.model.generate(torch.tensor([ids]), **given)
            tokens.append(_expanded(ids, count))
            answers.append(self.tokenizer.decode(said[0], skip_special_tokens=True).strip())
        return tokens, answers


class TransformersReader:
    """A checkpoint read by transformers' own class and processor.

    image_tokens: how many tokens the picture becomes in LLaVA.
    """

    def __init__(self, folder: str, image_tokens: int):
        self.fields = read_config(Path(folder))
        self.is_next = self.fields["model_type"] == "llava_next"
        model_class: Any = LlavaNextForConditionalGeneration if self.is_next else LlavaForConditionalGeneration
        self.model = model_class.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder, backend="pil")
        self.image_tokens = image_tokens
        self.placeholder = self.fields["image_token_index"]

    @torch.inference_mode()
    def logits(self, ids: list[int], seen: dict[str, Any]) -> Tensor:
        """For the pixels that LLaVA's programs make, so that only the weights are compared."""
        sizes = {"image_sizes": torch.tensor([size[::-1] for size in seen["image_sizes"]])} if self.is_next else {}
        expanded = [self.placeholder if one == IMAGE_TOKEN_INDEX else one for one in _expanded(ids, self.image_tokens)]
        tokens = torch.tensor([expanded])
        return self.model(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), pixel_values=seen["images"], **sizes
        ).logits

    @torch.inference_mode()
    def dialogues(self, picture: Image.Image) -> tuple[list[list[int]], list[str]]:
        """The tokens of each dialogue, and the greedy answer to it."""
        tokens, answers = [], []
        for turns in DIALOGUES:
            messages: list[dict[str, Any]] = []
            for number, text in enumerate(turns):
                pictures = [] if number else [{"type": "image"}]
                content = [*pictures, {"type": "text", "text": text}]
                messages.append({"role": "assistant" if number % 2 else "user", "content": content})
            prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True)
            inputs = self.processor(text=prompt, images=picture, return_tensors="pt")
            said = self.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
            ids = inputs["input_ids"][0].tolist()
            tokens.append([IMAGE_TOKEN_INDEX if one == self.placeholder else one for one in ids])
            answer = said[0, len(ids) :]
            answers.append(self.processor.tokenizer.decode(answer, skip_special_tokens=True).strip())
        return tokens, answers
