"""Pictures and videos prepared for transformers' own models, and prompts in which each has its placeholders.

Pictures and frames of videos are always processed by the Pillow variants of transformers' image processors. The other
variants, which need torchvision, resize slightly differently, and a result must not depend on installed packages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.video_utils import VideoMetadata

from llava.eval.media.frames import Clip, is_video, sample_frames
from llava.eval.media.images import decode_image, load_image
from llava.model.checkpoint import one_line
from llava.pictures import LARGEST_RATIO, small_enough_for_a_square

# Files of a checkpoint that, besides config and weights, determine the model's inputs.
FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer_config.json",
    "tokenizer.json",
)
SECONDS = "second_per_grid_ts"
CROPS = "num_crops"
FOR_THE_PROMPT = ("num_patches", "rows", "cols", CROPS)
"""What image processors tell of a picture's tiles, and models do not take."""


class VisualInput(NamedTuple):
    """A picture or a video, prepared.

    inputs: the model's arguments for this item, in float32 on the CPU. rows: patches of each encoder row it makes, that
    is of each tile, frame, or two frames that are encoded as one. times: of a video's frames, for families that write
    them into the prompt (Qwen3-VL, GLM-4.1V).
    """

    video: bool
    inputs: dict[str, Tensor]
    rows: tuple[int, ...]
    times: VideoMetadata | None = None

    @property
    def images(self) -> int:
        """The number of images for the language model: frames and crops (Gemma 3) count, tiles do not."""
        return len(self.rows) if self.video or CROPS in self.inputs else 1


@dataclass(frozen=True)
class VisualInputReader:
    """Reads and prepares a question's pictures and videos; the file extension decides which it is.

    pictures, frames: image processors, `frames` with the settings for videos, or None where the model takes no videos.
    count: frames of a video. patch: pixels along the side of a patch.
    """

    pictures: Any
    frames: Any
    count: int
    patch: int

    def __call__(self, source: str | bytes, folder: Path) -> VisualInput:
        if isinstance(source, bytes):
            return self.picture(decode_image(source))
        return self.video(folder / source) if is_video(source) else self.picture(load_image(folder / source))

    def picture(self, image: Image.Image) -> VisualInput:
        """A picture (RGB). Raises ValueError, one line, when it is too long and thin to be resized."""
        if max(image.size) > LARGEST_RATIO * min(image.size):
            raise ValueError(
                f"a picture of {image.width} x {image.height} is too thin; {LARGEST_RATIO} to 1 is allowed"
            )
        inputs = _process(self.pictures, [small_enough_for_a_square(image)])
        return VisualInput(False, inputs, self._rows(inputs["pixel_values"], inputs.get("image_grid_thw")))

    def video(self, path: str | Path) -> VisualInput:
        """Frames of a video file; raises ValueError, one line, for invalid files or where the model takes no videos."""
        if self.frames is None:
            raise ValueError(f"video {path} is shown to a model that takes pictures only; give a picture")
        clip = sample_frames(path, self.count)
        inputs = self._clip(clip)
        rows = self._rows(inputs["pixel_values_videos"], inputs.get("video_grid_thw"))
        return VisualInput(True, inputs, rows, VideoMetadata(clip.total, clip.rate, frames_indices=clip.indices))

    def _clip(self, clip: Clip) -> dict[str, Tensor]:
        inputs = _process(self.frames, clip.frames)
        pixels, grids = inputs["pixel_values"], inputs.get("image_grid_thw")
        if grids is None:
            # The first tile is the whole image.
            return {"pixel_values_videos": (pixels[:, 0] if pixels.ndim == 5 else pixels)[None]}
        depth = self.frames.temporal_patch_size
        joined = join_frames(pixels.view(len(clip.frames), -1, pixels.shape[-1]), depth)
        grid = torch.tensor([[len(joined), *grids[0, 1:].tolist()]])
        seconds = torch.tensor([depth / clip.sampled_rate])
        return {"pixel_values_videos": joined.flatten(0, 1), "video_grid_thw": grid, SECONDS: seconds}

    def _rows(self, pixels: Tensor, grids: Tensor | None) -> tuple[int, ...]:
        if grids is not None:
            return tuple(height * width for time, height, width in grids.tolist() for _ in range(time))
        tiles = len(pixels) if pixels.ndim == 4 else pixels.shape[1]
        return ((pixels.shape[-2] // self.patch) * (pixels.shape[-1] // self.patch),) * tiles


def join_frames(patches: Tensor, depth: int) -> Tensor:
    """Patches of single frames as patches through `depth` frames each; the last frame is repeated if necessary.

    patches: [F, P, C * depth * S], each frame repeated `depth` times, as Qwen2-VL's image processor makes
    them. -> [F / depth, P, C * depth * S].
    """
    frames, count, width = patches.shape
    patches = torch.cat([patches, patches[-1:].expand(-frames % depth, -1, -1)])
    # A patch is channel, then frame, then its pixels; three channels.
    single = patches.view(-1, depth, count, 3, depth, width // (3 * depth))
    return torch.stack([single[:, time, :, :, time] for time in range(depth)], dim=3).flatten(2)


def _process(processor: Any, images: Sequence[Image.Image]) -> dict[str, Tensor]:
    known = getattr(getattr(processor, "valid_kwargs", None), "__annotations__", {})
    settings = {"return_legacy_image_output": False} if "return_legacy_image_output" in known else {}
    return dict(processor(images=list(images), return_tensors="pt", **settings))


class Preparation(NamedTuple):
    """A checkpoint's tokenizer, image processors, and transformers' processor of the family around them.

    frames: None where the model takes no videos, or frames as pictures between text. placeholder_ids: the ids of the
    placeholders: of a picture, and of a video where the family has one.
    """

    processor: Any
    pictures: Any
    frames: Any
    placeholder_ids: list[int]

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    def expand(self, prompt: str, shown: Sequence[VisualInput]) -> str:
        """The prompt with as many placeholders for each picture and video as it has tokens.

        Raises ValueError, one line, when the numbers of placeholders and of pictures or videos differ.
        """
        for video in (False, True):
            token = getattr(self.processor, "video_token" if video else "image_token", None)
            own = [one for one in shown if one.video == video]
            parts = prompt.split(token) if token else [prompt]
            if len(parts) - 1 != len(own):
                raise ValueError(
                    f"the prompt has {token} {len(parts) - 1} times for {len(own)} "
                    f"{'videos' if video else 'pictures'}; leave {token} out of the question's text"
                )
            replace = self.processor.replace_video_token if video else self.processor.replace_image_token
            fills = [replace({**one.inputs, "video_metadata": [one.times]}, 0) for one in own]
            prompt = parts[0] + "".join(fill + part for fill, part in zip(fills, parts[1:], strict=True))
        return prompt

    def batch(self, prompts: Sequence[str], shown: Sequence[VisualInput]) -> dict[str, Tensor]:
        """The model's arguments for expanded prompts, padded on the left, with all pictures and videos in order."""
        tokenizer = self.tokenizer
        begun = tokenizer.bos_token is not None and prompts[0].startswith(tokenizer.bos_token)
        batch = dict(
            tokenizer(
                list(prompts),
                padding=True,
                padding_side="left",
                add_special_tokens=not begun,
                return_tensors="pt",
                return_token_type_ids=False,
            )
        )
        if self.processor.return_mm_token_type_ids:
            name = "mm_token_type_ids"
            name = name if name in self.processor.model_input_names else "token_type_ids"  # Gemma 3's name for them
            batch[name] = torch.tensor(self.processor.create_mm_token_type_ids(batch["input_ids"]))
        for name in dict.fromkeys(name for one in shown for name in one.inputs):
            if name == SECONDS and name not in self.processor.model_input_names:
                continue  # Qwen2-VL's frames have numbers only, those of Qwen2.5-VL times
            if name in FOR_THE_PROMPT:
                continue
            batch[name] = _join([one.inputs[name] for one in shown if name in one.inputs])
        return batch


def _join(values: Sequence[Tensor]) -> Tensor:
    """Concatenated; images with different numbers of tiles [1, T, 3, H, W], or masks of them, are padded with zeros."""
    if values[0].ndim >= 4 and len({value.shape[1] for value in values}) > 1:
        return pad_sequence([value[0] for value in values], batch_first=True)
    return torch.cat(list(values))


def load_preparation(folder: Path, config: Any, max_pixels: int | None = None) -> Preparation:
    """The preparation of pictures, videos and text for the model in a folder.

    max_pixels: for models whose pictures keep their size (Qwen2-VL), the maximum; larger pictures are resized.

    Raises ValueError, one line, when files are missing or the model has no such limit.
    """
    if type(config) not in PROCESSOR_MAPPING:
        raise ValueError(f"{folder} is a {config.model_type}, for which transformers knows no way to prepare pictures")
    family: Any = PROCESSOR_MAPPING[type(config)]
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        pictures = AutoImageProcessor.from_pretrained(folder, backend="pil")
        fields, _ = family.get_processor_dict(str(folder))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} lacks files of its tokenizer or processor: {str(error).split(chr(10))[0]}"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    for name, value in getattr(family, "images_kwargs", {}).items():
        setattr(pictures, name, value)  # what the family's processor asks of the image processor in every call
    parts = family.get_attributes()
    frames = _for_frames(folder, pictures, fields) if "video_processor" in parts else None
    if max_pixels is not None:
        for processor in filter(None, (pictures, frames)):
            _limit(processor, max_pixels, folder)
    given = {"tokenizer": tokenizer, "image_processor": pictures, "video_processor": frames}
    # transformers checks for its own video processor, which needs torchvision; only its settings are used.
    relaxed: Any = type(
        family.__name__, (family,), {"check_argument_for_proper_class": lambda self, name, argument: None}
    )
    try:
        processor = relaxed.from_args_and_dict([given[part] for part in parts], fields)
    except ImportError as error:
        raise ValueError(f"the processor of {folder} lacks a package: {one_line(error)}") from error
    ids = [getattr(config, name, None) for name in ("image_token_id", "video_token_id")]
    numbers = [number for number in ids if number is not None]
    return Preparation(processor, pictures, frames if len(numbers) > 1 else None, numbers)


def _for_frames(folder: Path, pictures: Any, fields: dict[str, Any]) -> Any:
    """The image processor with a checkpoint's settings for videos; those for pictures where it has none."""
    file = folder / "video_preprocessor_config.json"
    settings = json.loads(file.read_text("utf-8")) if file.is_file() else fields.get("video_processor")
    return type(pictures).from_dict(settings) if settings else type(pictures).from_dict(pictures.to_dict())


def _limit(processor: Any, max_pixels: int, folder: Path) -> None:
    size = dict(processor.size)
    smallest, largest = size.get("shortest_edge"), size.get("longest_edge")
    if not hasattr(processor, "merge_size") or smallest is None or largest is None:
        raise ValueError(f"max_pixels={max_pixels} is for models such as Qwen2-VL; {folder} has pictures of one size")
    if max_pixels < (processor.patch_size * processor.merge_size) ** 2:
        raise ValueError(
            f"max_pixels={max_pixels} is less than one token; the authors of FlowCut use {1280 * 28 * 28} (1280 tokens)"
        )
    # GLM-4.1V's counts the pixels of as many frames as a patch has, of a single picture too.
    frames = processor.temporal_patch_size if "temporal_factor" in signature(processor.resize).parameters else 1
    processor.size = {"shortest_edge": min(smallest, frames * max_pixels), "longest_edge": frames * max_pixels}
