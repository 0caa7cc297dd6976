"""transformers' families whose encoder sees each image, tile or frame as a row: the LLaVAs."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)
from transformers import LlavaConfig as HFLlavaConfig

from .base import (
    GREEDY,
    GRIDS,
    IMAGE,
    IMAGE_TOKEN,
    PATCHES,
    SAMPLES,
    TEXT,
    VIDEO,
    VIDEO_SAMPLES,
    VIDEO_TOKEN,
    VISION,
    Clip,
    Sample,
    noise,
    padded,
    pixels,
)


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

    def stamps(self, video: int) -> list[list[int]]:
        """Text ahead of each of its frames."""
        return [[] for _ in self.frames(video)]

    def media(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        images = [image for sample in samples for image in sample.images]
        return {"pixel_values": pixels(images)} if images else {}

    def row(self, sample: Sample) -> list[int]:
        images, videos, row = iter(sample.images), iter(sample.videos), []
        for token in sample.prompt:
            if token == IMAGE:
                row += [IMAGE_TOKEN] * self.placeholders(next(images))
            elif token == VIDEO:
                video = next(videos)
                for stamp, count in zip(self.stamps(video), self.frames(video), strict=True):
                    row += stamp + [VIDEO_TOKEN] * count
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
