"""The model families a pruner can be attached to, as tiny models with random weights, behind one small interface.

A sample is a prompt: a list of token ids with `IMAGE` (or `VIDEO`) where an image stands. Images are drawn from the
seeds listed beside it; where a family takes images of several sizes, the seed decides about the size too. Encoders
alone know no text, so there every image is a sample.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMVisionConfig,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)
from transformers import LlavaConfig as HFLlavaConfig

from llava import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.language_model.llava_mistral import LlavaMistralConfig, LlavaMistralForCausalLM

IMAGE, VIDEO = -200, -201
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
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
IMAGE_TOKEN, VIDEO_TOKEN = 99, 98
# A placeholder as an answer would be taken for another image when the answer is read again.
GREEDY = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [IMAGE_TOKEN, VIDEO_TOKEN]}
GRIDS = [[24, 48], [48, 24], [48, 48]]


@dataclass
class Sample:
    prompt: list[int]
    images: list[int]
    videos: list[int] = field(default_factory=list)


SAMPLES = [
    Sample([1, 5, IMAGE, 7, 8, 9], [0]),
    Sample([1, IMAGE, 20, IMAGE, 21, 22, 23, 24, 25], [1, 2]),
    Sample([1, 30, 31, 32], []),
    Sample([IMAGE, 40], [3]),
]
VIDEO_SAMPLES = [
    Sample([1, 5, VIDEO, 7, 8, 9], [], [0]),
    Sample([1, IMAGE, 20, VIDEO, 21, 22, 23], [1], [2]),
    Sample([1, 30, 31, 32], []),
    Sample([IMAGE, 40], [3]),
]


def noise(seed: int, *shape: int) -> torch.Tensor:
    """Contrast grows with the seed, so that attention differs in sharpness."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * (1 + seed)


def pixels(images: list[int]) -> torch.Tensor:
    """[B, 3, 24, 24]; image `i` is always the same."""
    return torch.stack([noise(image, 3, 24, 24) for image in images])


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


class Clip:
    """A bare CLIPVisionModel; a sample is one image."""

    name = "clip"
    speaks = False
    prefix = 1
    merges = True  # whether methods that merge patches can be attached
    tiled = False  # whether an image is spread over tiles, of which padding is taken off
    most = 1000  # a budget that is never too small

    def config(self) -> Any:
        return CLIPVisionConfig(**VISION)

    def new(self, config: Any) -> Any:
        return CLIPVisionModel(config)

    def build(self, config: Any = None, implementation: str = "sdpa") -> Any:
        torch.manual_seed(0)
        model = self.new(config or self.config()).eval()
        model.set_attn_implementation(implementation)
        sharpen(model)
        return model

    def samples(self) -> list[Sample]:
        return [Sample([IMAGE], [image]) for image in range(4)]

    def outputs(self, model: Any, samples: list[Sample], handle: Any = None, side: str = "right") -> list[torch.Tensor]:
        images = pixels([image for sample in samples for image in sample.images]).to(model.dtype)
        states = model(images, output_hidden_states=True).hidden_states[-2][:, self.prefix :]
        return list(states)

    def tower(self, model: Any) -> Any:
        return model

    def layers(self, model: Any) -> Any:
        return self.tower(model).encoder.layers

    def decoder(self, model: Any) -> Any:
        return None


class Siglip(Clip):
    name = "siglip"
    prefix = 0

    def config(self) -> Any:
        return SiglipVisionConfig(**VISION)

    def new(self, config: Any) -> Any:
        return SiglipVisionModel(config)


class Dinov2(Clip):
    name = "dinov2"

    def config(self) -> Any:
        return Dinov2Config(**{k: v for k, v in VISION.items() if k != "intermediate_size"}, mlp_ratio=2)

    def new(self, config: Any) -> Any:
        return Dinov2Model(config)

    def layers(self, model: Any) -> Any:
        return model.encoder.layer


class HFLlava(Clip):
    """transformers' LlavaForConditionalGeneration."""

    name = "llava_hf"
    speaks = True
    mrope = False

    def config(self) -> Any:
        return HFLlavaConfig(
            vision_config=CLIPVisionConfig(**VISION),
            text_config=LlamaConfig(**TEXT),
            image_token_id=IMAGE_TOKEN,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
        )

    def new(self, config: Any) -> Any:
        return LlavaForConditionalGeneration(config)

    def samples(self) -> list[Sample]:
        return SAMPLES

    def placeholders(self, image: int) -> int:
        """How many the caller writes for an image."""
        return PATCHES

    def frames(self, video: int) -> list[int]:
        return []

    def media(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        images = [image for sample in samples for image in sample.images]
        return {"pixel_values": pixels(images)} if images else {}

    def row(self, sample: Sample) -> list[int]:
        images, videos, row = iter(sample.images), iter(sample.videos), []
        for token in sample.prompt:
            if token == IMAGE:
                row += [IMAGE_TOKEN] * self.placeholders(next(images))
            elif token == VIDEO:
                row += [VIDEO_TOKEN] * sum(self.frames(next(videos)))
            else:
                row.append(token)
        return row

    def inputs(self, samples: list[Sample], side: str) -> dict[str, torch.Tensor]:
        ids, mask = padded([self.row(sample) for sample in samples], side)
        return {"input_ids": ids, "attention_mask": mask, **self.types(ids), **self.media(samples)}

    def types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What tells images from text in a whole conversation's ids, if the model wants to be told."""
        return {}

    def text(self, sample: Sample) -> int:
        return sum(token >= 0 for token in sample.prompt)

    def lengths(self, samples: list[Sample], handle: Any) -> list[int]:
        """Positions of each sample behind the last layer, padding left out."""
        if handle is None:
            return [len(self.row(sample)) for sample in samples]
        seen = any(sample.images or sample.videos for sample in samples)
        counts = iter([len(tokens) for tokens in handle.trace.remaining] if seen else [])
        # The trace speaks of images first, then of videos.
        images = [sum(next(counts) for _ in sample.images) for sample in samples]
        videos = [sum(next(counts) for video in sample.videos for _ in self.frames(video)) for sample in samples]
        return [self.text(s) + i + v for s, i, v in zip(samples, images, videos, strict=True)]

    def outputs(self, model: Any, samples: list[Sample], handle: Any = None, side: str = "right") -> list[torch.Tensor]:
        inputs = self.cast(model, self.inputs(samples, side))
        logits = model(**inputs).logits
        lengths = self.lengths(samples, handle)
        # Padding after a row's last token stays there, whatever the row loses.
        ends = [logits.shape[1] - padding for padding in self.trailing(samples, handle, side)]
        return [row[end - n : end] for row, end, n in zip(logits, ends, lengths, strict=True)]

    def trailing(self, samples: list[Sample], handle: Any, side: str) -> list[int]:
        """How many columns of padding come after each row's last token."""
        lengths = [len(self.row(sample)) for sample in samples]
        return [max(lengths) - length if side == "right" else 0 for length in lengths]

    def cast(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        def one(value: Any) -> Any:
            if isinstance(value, list):
                return [one(v) for v in value]
            return value.to(model.dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

        return {name: one(value) for name, value in inputs.items()}

    def generate(self, model: Any, samples: list[Sample], **settings: Any) -> torch.Tensor:
        """[B, new tokens]."""
        inputs = self.inputs(samples, "left")
        ids = model.generate(**inputs, **GREEDY, **settings)
        prompt = inputs["input_ids"].repeat_interleave(settings.get("num_return_sequences", 1), dim=0)
        assert torch.equal(ids[:, : prompt.shape[1]], prompt)
        return ids[:, prompt.shape[1] :]

    def labelled(self, samples: list[Sample]) -> dict[str, Any]:
        inputs = self.inputs(samples, "right")
        ids = inputs["input_ids"]
        hidden = (ids == IMAGE_TOKEN) | (ids == VIDEO_TOKEN) | (inputs["attention_mask"] == 0)
        return {**inputs, "labels": ids.masked_fill(hidden, -100)}

    def loss(self, model: Any, samples: list[Sample]) -> torch.Tensor:
        return model(**self.labelled(samples)).loss

    def tower(self, model: Any) -> Any:
        return model.model.vision_tower

    def decoder(self, model: Any) -> Any:
        return model.model.language_model


class HFLlavaSiglip(HFLlava):
    """The same with a tower that has no CLS token, read after its last layer, and a Qwen2 decoder."""

    name = "llava_siglip"
    prefix = 0

    def config(self) -> Any:
        return HFLlavaConfig(
            vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
            text_config=Qwen2Config(**TEXT),
            image_token_id=IMAGE_TOKEN,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )


def size_of(image: int) -> tuple[int, int]:
    """(width, height) of an image of a tiled family: two that fill their grid, two that are padded."""
    return [(48, 48), (60, 20), (24, 48), (40, 33)][image % 4]


def tiles_of(image: int) -> int:
    return [5, 3, 3, 5][image % 4]


class HFLlavaNext(HFLlava):
    """transformers' LlavaNextForConditionalGeneration."""

    name = "llava_next_hf"
    tiled = True
    newlines = True

    def config(self) -> Any:
        return LlavaNextConfig(
            vision_config=CLIPVisionConfig(**VISION),
            text_config=LlamaConfig(**TEXT),
            image_token_id=IMAGE_TOKEN,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            image_grid_pinpoints=GRIDS,
        )

    def new(self, config: Any) -> Any:
        return LlavaNextForConditionalGeneration(config)

    def placeholders(self, image: int) -> int:
        rows, columns = [(12, 12), (4, 12), (12, 6), (10, 12)][image % 4]
        return PATCHES + rows * (columns + 1)

    def tiles(self, images: list[int]) -> list[torch.Tensor]:
        return [noise(image, tiles_of(image), 3, 24, 24) for image in images]

    def media(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        images = [image for sample in samples for image in sample.images]
        if not images:
            return {}
        sizes = torch.tensor([size_of(image)[::-1] for image in images])
        return {"pixel_values": pad_sequence(self.tiles(images), batch_first=True), "image_sizes": sizes}


class HFOnevision(HFLlavaNext):
    """transformers' LlavaOnevisionForConditionalGeneration: SigLIP without CLS, tiles, and videos."""

    name = "llava_onevision"
    prefix = 0

    def config(self) -> Any:
        return LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
            text_config=Qwen2Config(**TEXT),
            image_token_index=IMAGE_TOKEN,
            video_token_index=VIDEO_TOKEN,
            image_grid_pinpoints=GRIDS,
        )

    def new(self, config: Any) -> Any:
        return LlavaOnevisionForConditionalGeneration(config)


class HFVideoLlava(HFLlava):
    """transformers' VideoLlavaForConditionalGeneration: an image tower and a video tower, three frames a video."""

    name = "video_llava"

    def config(self) -> Any:
        return VideoLlavaConfig(
            vision_config=CLIPVisionConfig(**VISION),
            text_config=LlamaConfig(**TEXT),
            image_token_index=IMAGE_TOKEN,
            video_token_index=VIDEO_TOKEN,
        )

    def new(self, config: Any) -> Any:
        return VideoLlavaForConditionalGeneration(config)

    def samples(self) -> list[Sample]:
        return VIDEO_SAMPLES

    def frames(self, video: int) -> list[int]:
        return [PATCHES + 1] * 3

    def media(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        images = [image for sample in samples for image in sample.images]
        videos = [video for sample in samples for video in sample.videos]
        media = {"pixel_values": pixels(images)} if images else {}
        if videos:
            media["pixel_values_videos"] = torch.stack([noise(10 + video, 3, 3, 24, 24) for video in videos])
        return media

    def tower(self, model: Any) -> Any:
        return model.model.video_tower


class HFQwen2VL(HFLlava):
    """transformers' Qwen2VLForConditionalGeneration: images and videos of several sizes."""

    name = "qwen2_vl"
    prefix = 0
    merges = False
    mrope = True

    def vision(self) -> dict[str, Any]:
        return {
            "depth": DEPTH,
            "embed_dim": 32,
            "hidden_size": 32,
            "mlp_ratio": 2,
            "num_heads": 4,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        }

    def config(self) -> Any:
        return self.config_class()(
            vision_config=self.vision(),
            text_config={
                **TEXT,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
            },
            image_token_id=IMAGE_TOKEN,
            video_token_id=VIDEO_TOKEN,
            vision_start_token_id=97,
            vision_end_token_id=96,
        )

    def config_class(self) -> Any:
        return Qwen2VLConfig

    def new(self, config: Any) -> Any:
        return Qwen2VLForConditionalGeneration(config)

    def samples(self) -> list[Sample]:
        return VIDEO_SAMPLES

    def grid(self, image: int) -> tuple[int, int]:
        return [(12, 12), (8, 20), (16, 12), (12, 18)][image % 4]

    def placeholders(self, image: int) -> int:
        height, width = self.grid(image)
        return height * width // 4

    def frames(self, video: int) -> list[int]:
        return [self.placeholders(video)] * 2

    def inputs(self, samples: list[Sample], side: str) -> dict[str, torch.Tensor]:
        inputs = super().inputs(samples, side)
        ids = inputs["input_ids"]
        return {**inputs, "mm_token_type_ids": (ids == IMAGE_TOKEN).int() + 2 * (ids == VIDEO_TOKEN).int()}

    def media(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        media: dict[str, torch.Tensor] = {}
        for which, times, pixel, grid in (
            ("images", 1, "pixel_values", "image_grid_thw"),
            ("videos", 2, "pixel_values_videos", "video_grid_thw"),
        ):
            seeds = [seed for sample in samples for seed in getattr(sample, which)]
            if seeds:
                sizes = [(times, *self.grid(seed)) for seed in seeds]
                media[grid] = torch.tensor(sizes)
                drawn = [noise(seed, t * h * w, 3 * 2 * 16) for seed, (t, h, w) in zip(seeds, sizes, strict=True)]
                media[pixel] = torch.cat(drawn)
        return media

    def tower(self, model: Any) -> Any:
        return model.model.visual

    def layers(self, model: Any) -> Any:
        return model.model.visual.blocks


class HFQwen25VL(HFQwen2VL):
    """transformers' Qwen2_5_VLForConditionalGeneration: windowed attention in most blocks."""

    name = "qwen2_5_vl"

    def vision(self) -> dict[str, Any]:
        return {
            "depth": DEPTH,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 24,
            "fullatt_block_indexes": [3, 7],
            "out_hidden_size": 32,
        }

    def config_class(self) -> Any:
        return Qwen2_5_VLConfig

    def new(self, config: Any) -> Any:
        return Qwen2_5_VLForConditionalGeneration(config)


class HFInternVL(HFLlava):
    """transformers' InternVLForConditionalGeneration: tiles of 12 x 12 patches, of which 2 x 2 make a token."""

    name = "internvl"
    merges = False
    tiled = True

    def config(self) -> Any:
        return InternVLConfig(
            vision_config=InternVLVisionConfig(**{**VISION, "patch_size": 2}),
            text_config=Qwen2Config(**TEXT),
            image_token_id=IMAGE_TOKEN,
        )

    def new(self, config: Any) -> Any:
        return InternVLForConditionalGeneration(config)

    def tiles(self, image: int) -> int:
        return [1, 3, 1, 2][image % 4]

    def placeholders(self, image: int) -> int:
        return PATCHES * self.tiles(image)

    def media(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        images = [image for sample in samples for image in sample.images]
        if not images:
            return {}
        return {"pixel_values": torch.cat([noise(image, self.tiles(image), 3, 24, 24) for image in images])}

    def layers(self, model: Any) -> Any:
        return model.model.vision_tower.encoder.layer


class HFSmolVLM(HFInternVL):
    """transformers' SmolVLMForConditionalGeneration: tiles with text between them, and no CLS token."""

    name = "smolvlm"
    prefix = 0

    def config(self) -> Any:
        return SmolVLMConfig(
            vision_config=SmolVLMVisionConfig(**{**VISION, "patch_size": 2}),
            text_config=LlamaConfig(**TEXT),
            image_token_id=IMAGE_TOKEN,
            scale_factor=2,
        )

    def new(self, config: Any) -> Any:
        return SmolVLMForConditionalGeneration(config)

    def row(self, sample: Sample) -> list[int]:
        """As the processor writes it: every tile opened and named, the last one by a name that all pictures end on."""
        images, row = iter(sample.images), []
        for token in sample.prompt:
            if token != IMAGE:
                row.append(token)
                continue
            for tile in reversed(range(self.tiles(next(images)))):
                row += [97, 80 + tile, *[IMAGE_TOKEN] * PATCHES]
            row.append(97)
        return row

    def text(self, sample: Sample) -> int:
        return super().text(sample) + sum(2 * self.tiles(image) + 1 for image in sample.images)

    def media(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        """Rows without as many tiles as the longest are filled with tiles of zeros."""
        rows = [
            torch.cat([noise(image, self.tiles(image), 3, 24, 24) for image in sample.images])
            if sample.images
            else torch.zeros(0, 3, 24, 24)
            for sample in samples
        ]
        return {"pixel_values": pad_sequence(rows, batch_first=True)} if any(map(len, rows)) else {}

    def tower(self, model: Any) -> Any:
        return model.model.vision_model

    def layers(self, model: Any) -> Any:
        return model.model.vision_model.encoder.layers

    def decoder(self, model: Any) -> Any:
        return model.model.text_model


class HFGemma3(HFLlava):
    """transformers' Gemma3ForConditionalGeneration: 2 x 2 patches averaged, images that attend in both directions."""

    name = "gemma3"
    prefix = 0
    merges = False
    window = 16

    def config(self) -> Any:
        text = {**TEXT, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": self.window}
        return Gemma3Config(
            vision_config=SiglipVisionConfig(**{**VISION, "patch_size": 2}, vision_use_head=False),
            text_config=Gemma3TextConfig(**text, layer_types=["sliding_attention", "full_attention"] * 2),
            image_token_index=IMAGE_TOKEN,
            mm_tokens_per_image=PATCHES,
        )

    def new(self, config: Any) -> Any:
        return Gemma3ForConditionalGeneration(config)

    def types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"token_type_ids": (ids == IMAGE_TOKEN).int()}


class OurLlava(HFLlava):
    """This project's LlavaLlamaForCausalLM."""

    name = "llava"
    fields: ClassVar[dict[str, Any]] = {"mm_patch_merge_type": "flat"}

    def __init__(self, folder: Path):
        self.folder = folder

    def config(self) -> Any:
        return self.config_class()(
            **TEXT,
            mm_vision_tower=str(self.folder),
            mm_vision_select_layer=-2,
            mm_vision_select_feature="patch",
            mm_projector_type="mlp2x_gelu",
            mm_hidden_size=VISION["hidden_size"],
            **self.fields,
        )

    def config_class(self) -> Any:
        return LlavaConfig

    def new(self, config: Any) -> Any:
        return LlavaLlamaForCausalLM(config)

    def build(self, config: Any = None, implementation: str = "sdpa") -> Any:
        torch.manual_seed(0)
        model = self.new(config or self.config())
        model.get_vision_tower().load_model()
        model.set_attn_implementation(implementation)
        self.tower(model).set_attn_implementation(implementation)
        sharpen(model)
        return model.eval()

    def row(self, sample: Sample) -> list[int]:
        return sample.prompt

    def media(self, samples: list[Sample]) -> dict[str, Any]:
        images = [image for sample in samples for image in sample.images]
        return {"images": pixels(images)} if images else {}

    def lengths(self, samples: list[Sample], handle: Any) -> list[int]:
        if handle is None:
            return [self.text(sample) + sum(map(self.placeholders, sample.images)) for sample in samples]
        return super().lengths(samples, handle)

    def outputs(self, model: Any, samples: list[Sample], handle: Any = None, side: str = "right") -> list[torch.Tensor]:
        model.config.tokenizer_padding_side = side
        logits = model(**self.cast(model, self.inputs(samples, side))).logits
        lengths = self.lengths(samples, handle)
        return [row[-n:] if side == "left" else row[:n] for row, n in zip(logits, lengths, strict=True)]

    def generate(self, model: Any, samples: list[Sample], **settings: Any) -> torch.Tensor:
        return model.generate(**self.inputs(samples, "left"), **GREEDY, **settings)

    def labelled(self, samples: list[Sample]) -> dict[str, Any]:
        inputs = self.inputs(samples, "right")
        ids = inputs["input_ids"]
        return {**inputs, "labels": ids.masked_fill((ids < 0) | (inputs["attention_mask"] == 0), -100)}

    def loss(self, model: Any, samples: list[Sample]) -> torch.Tensor:
        model.config.tokenizer_padding_side = "right"
        return super().loss(model, samples)

    def tower(self, model: Any) -> Any:
        return model.get_vision_tower().vision_tower

    def decoder(self, model: Any) -> Any:
        return model.model


class OurMistral(OurLlava):
    """This project's LlavaMistralForCausalLM, with an attention window shorter than the sequences."""

    name = "llava_mistral"
    fields: ClassVar[dict[str, Any]] = {**OurLlava.fields, "sliding_window": 16}

    def config_class(self) -> Any:
        return LlavaMistralConfig

    def new(self, config: Any) -> Any:
        return LlavaMistralForCausalLM(config)


class OurNext(OurLlava, HFLlavaNext):
    """This project's LlavaLlamaForCausalLM with anyres tiles."""

    name = "llava_next"
    fields: ClassVar[dict[str, Any]] = {
        "mm_patch_merge_type": "spatial_unpad",
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": [[width, height] for height, width in GRIDS],
    }

    def media(self, samples: list[Sample]) -> dict[str, Any]:
        images = [image for sample in samples for image in sample.images]
        return {"images": self.tiles(images), "image_sizes": [size_of(image) for image in images]} if images else {}


def all_hosts(folder: Path) -> dict[str, Any]:
    """Every host by name; `folder` gets the tower that this project's classes load."""
    clip = Clip()
    clip.build().save_pretrained(folder)
    theirs = (HFLlava(), HFLlavaSiglip(), HFLlavaNext(), HFOnevision(), HFVideoLlava(), HFQwen2VL(), HFQwen25VL())
    shuffled = (HFInternVL(), HFSmolVLM(), HFGemma3())
    ours = (OurLlava(folder), OurMistral(folder), OurNext(folder))
    return {host.name: host for host in (clip, Siglip(), Dinov2(), *theirs, *shuffled, *ours)}
