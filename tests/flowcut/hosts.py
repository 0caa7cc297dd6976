"""The three places a pruner can be attached to, as tiny models with random weights, behind one small interface.

A sample is a prompt: a list of token ids with `IMAGE` where an image stands. Images are drawn from the seeds listed
beside it. CLIP alone knows no text, so there every image is a sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlavaForConditionalGeneration
from transformers import LlavaConfig as HFLlavaConfig

from llava import LlavaConfig, LlavaLlamaForCausalLM

IMAGE = -200
PATCHES = 36
DEPTH = 8
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 4,
}
TEXT = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
IMAGE_TOKEN = 99


@dataclass
class Sample:
    prompt: list[int]
    images: list[int]


SAMPLES = [
    Sample([1, 5, IMAGE, 7, 8, 9], [0]),
    Sample([1, IMAGE, 20, IMAGE, 21, 22, 23, 24, 25], [1, 2]),
    Sample([1, 30, 31, 32], []),
    Sample([IMAGE, 40], [3]),
]


def pixels(images: list[int]) -> torch.Tensor:
    """[B, 3, 24, 24]; image `i` is always the same. Contrast grows with i, so that attention differs in sharpness."""
    drawn = [torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(i)) * (1 + i) for i in images]
    return torch.stack(drawn)


def sharpen(model: torch.nn.Module) -> None:
    """Fresh weights are so small that attention is flat; widen them until tokens differ."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            std = 0.4 if "q_proj" in name or "k_proj" in name else 0.2
            parameter.data = torch.randn(parameter.shape, generator=generator) * std


def padded(rows: list[list[int]], side: str, pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    fill = [[pad] * (width - len(row)) for row in rows]
    both = list(zip(rows, fill, strict=True))
    ids = [empty + row if side == "left" else row + empty for row, empty in both]
    blank, ones = [[0] * len(empty) for empty in fill], [[1] * len(row) for row in rows]
    mask = [b + o if side == "left" else o + b for b, o in zip(blank, ones, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


def unpadded(logits: torch.Tensor, lengths: list[int], side: str) -> list[torch.Tensor]:
    return [row[-n:] if side == "left" else row[:n] for row, n in zip(logits, lengths, strict=True)]


class Clip:
    """A bare CLIPVisionModel; a sample is one image."""

    name = "clip"
    speaks = False

    def config(self) -> Any:
        return CLIPVisionConfig(**VISION)

    def build(self, config: Any = None, implementation: str = "sdpa") -> Any:
        torch.manual_seed(0)
        model = CLIPVisionModel(config or self.config()).eval()
        model.set_attn_implementation(implementation)
        sharpen(model)
        return model

    def samples(self) -> list[Sample]:
        return [Sample([IMAGE], [image]) for image in range(4)]

    def outputs(self, model: Any, samples: list[Sample], budget: int, side: str = "right") -> list[torch.Tensor]:
        images = pixels([image for sample in samples for image in sample.images])
        return list(model(images, output_hidden_states=True).hidden_states[-2][:, 1:])

    def tower(self, model: Any) -> Any:
        return model


class HFLlava(Clip):
    """transformers' LlavaForConditionalGeneration."""

    name = "llava_hf"
    speaks = True

    def config(self) -> Any:
        return HFLlavaConfig(
            vision_config=CLIPVisionConfig(**VISION),
            text_config=LlamaConfig(**TEXT),
            image_token_id=IMAGE_TOKEN,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
        )

    def build(self, config: Any = None, implementation: str = "sdpa") -> Any:
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config or self.config()).eval()
        model.set_attn_implementation(implementation)
        sharpen(model)
        return model

    def samples(self) -> list[Sample]:
        return SAMPLES

    def inputs(self, samples: list[Sample], side: str) -> dict[str, torch.Tensor]:
        rows = [[t for x in s.prompt for t in ([IMAGE_TOKEN] * PATCHES if x == IMAGE else [x])] for s in samples]
        ids, mask = padded(rows, side)
        images = [image for sample in samples for image in sample.images]
        return {"input_ids": ids, "attention_mask": mask, **({"pixel_values": pixels(images)} if images else {})}

    def lengths(self, samples: list[Sample], budget: int) -> list[int]:
        kept = min(budget, PATCHES)
        return [len(sample.prompt) + len(sample.images) * (kept - 1) for sample in samples]

    def outputs(self, model: Any, samples: list[Sample], budget: int, side: str = "right") -> list[torch.Tensor]:
        logits = model(**self.inputs(samples, side)).logits
        return unpadded(logits, self.lengths(samples, budget), side)

    def generate(self, model: Any, samples: list[Sample], **settings: Any) -> torch.Tensor:
        """[B, new tokens]."""
        inputs = self.inputs(samples, "left")
        ids = model.generate(**inputs, max_new_tokens=5, do_sample=False, **settings)
        prompt = inputs["input_ids"].repeat_interleave(settings.get("num_return_sequences", 1), dim=0)
        assert torch.equal(ids[:, : prompt.shape[1]], prompt)
        return ids[:, prompt.shape[1] :]

    def loss(self, model: Any, samples: list[Sample]) -> torch.Tensor:
        inputs = self.inputs(samples, "right")
        ids = inputs["input_ids"]
        labels = ids.masked_fill((ids == IMAGE_TOKEN) | (inputs["attention_mask"] == 0), -100)
        return model(**inputs, labels=labels).loss

    def tower(self, model: Any) -> Any:
        return model.model.vision_tower


class OurLlava(HFLlava):
    """This project's LlavaLlamaForCausalLM."""

    name = "llava"

    def __init__(self, folder: Path):
        self.folder = folder

    def config(self) -> Any:
        return LlavaConfig(
            **TEXT,
            mm_vision_tower=str(self.folder),
            mm_vision_select_layer=-2,
            mm_vision_select_feature="patch",
            mm_patch_merge_type="flat",
            mm_projector_type="mlp2x_gelu",
            mm_hidden_size=VISION["hidden_size"],
        )

    def build(self, config: Any = None, implementation: str = "sdpa") -> Any:
        torch.manual_seed(0)
        model = LlavaLlamaForCausalLM(config or self.config())
        model.get_vision_tower().load_model()
        model.set_attn_implementation(implementation)
        self.tower(model).set_attn_implementation(implementation)
        sharpen(model)
        return model.eval()

    def inputs(self, samples: list[Sample], side: str) -> dict[str, torch.Tensor]:
        ids, mask = padded([sample.prompt for sample in samples], side)
        images = [image for sample in samples for image in sample.images]
        return {"input_ids": ids, "attention_mask": mask, **({"images": pixels(images)} if images else {})}

    def outputs(self, model: Any, samples: list[Sample], budget: int, side: str = "right") -> list[torch.Tensor]:
        model.config.tokenizer_padding_side = side
        return super().outputs(model, samples, budget, side)

    def generate(self, model: Any, samples: list[Sample], **settings: Any) -> torch.Tensor:
        return model.generate(**self.inputs(samples, "left"), max_new_tokens=5, do_sample=False, **settings)

    def loss(self, model: Any, samples: list[Sample]) -> torch.Tensor:
        model.config.tokenizer_padding_side = "right"
        inputs = self.inputs(samples, "right")
        ids = inputs["input_ids"]
        labels = ids.masked_fill((ids == IMAGE) | (inputs["attention_mask"] == 0), -100)
        return model(**inputs, labels=labels).loss

    def tower(self, model: Any) -> Any:
        return model.get_vision_tower().vision_tower
