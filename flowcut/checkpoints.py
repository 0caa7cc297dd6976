"""The one door from this package to `llava`: checkpoints, pictures and answers, for the programs of this package."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from flowcut.attach import attach
from flowcut.pruner import Pruner
from flowcut.trace import Trace
from llava.eval.media.images import load_image as load_image
from llava.eval.models.llava_answerer import LlavaAnswerer
from llava.eval.models.llava_checkpoint import load_checkpoint
from llava.eval.models.load import load_answerer
from llava.eval.models.reply import Generation
from llava.eval.questions import read_questions
from llava.mm_utils import (
    get_model_name_from_path,
    picture_of,
    process_images,
    tokenizer_image_token,
)
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import DAMAGE, local_folder, one_line, quiet, read_config, weight_names


def original_picture(pixels: Tensor, processor: Any) -> np.ndarray:
    """Pixels [3, H, W] back as a picture [H, W, 3], uint8."""
    return picture_of(pixels, processor)


def pruned_picture(image_file: str, model_path: str, pruner: Pruner) -> tuple[np.ndarray, Trace, int]:
    """Run a LLaVA's vision tower over one image with a pruner attached.

    Returns:
        the picture [H, W, 3], uint8, as the tower saw it; what the pruner did; patches along a side.

    Raises:
        ValueError: a pruner, model or image that cannot be used.
        OSError: a file that cannot be read.
    """
    image = load_image(image_file)
    name = get_model_name_from_path(model_path)
    _, model, processor, _ = load_pretrained_model(model_path, None, name, device_map=None, device="cpu", pruner="none")
    if processor is None:
        raise ValueError(f"{model_path} is a language model without a vision tower")
    pixels = process_images([image], processor, model.config)
    with torch.no_grad(), attach(model, pruner) as handle:
        model.get_vision_tower()(pixels)
    assert handle.trace is not None
    return picture_of(pixels[0], processor), handle.trace, model.get_vision_tower().num_patches_per_side


def picture_calls(model_path: str, image_files: Sequence[str]) -> tuple[nn.Module, Iterator[Callable[[], Any]]]:
    """A LLaVA checkpoint's model, and calls of its vision tower, one picture each.

    Raises:
        ValueError: the model cannot be used, or splits pictures into tiles; later, a picture cannot.
        OSError: a file that cannot be read.
    """
    name = get_model_name_from_path(model_path)
    _, model, processor, _ = load_pretrained_model(model_path, None, name, device_map=None, device="cpu", pruner="none")
    if processor is None:
        raise ValueError(f"{model_path} is a language model without a vision tower")
    if getattr(model.config, "image_aspect_ratio", None) == "anyres":
        raise ValueError(
            f"{model_path} splits pictures into tiles (anyres), and the schedule depends on their number; call "
            "flowcut.calibrate.calibrate with your own pictures"
        )
    tower = model.get_vision_tower()
    return model, (partial(tower, process_images([load_image(file)], processor, model.config)) for file in image_files)


def questions_as_calls(
    model_path: str, question_file: str, image_folder: str, samples: int, conv_mode: str | None
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """A LLaVA checkpoint's model, and its calls for the first questions with a picture of a question file.

    Raises:
        ValueError: the checkpoint or a question cannot be read.
        OSError: a file is missing.
    """
    questions, problems = read_questions(question_file)
    if problems:
        raise ValueError(f"{problems[0].where}: {problems[0].what}")
    checkpoint = load_checkpoint(model_path, conv_mode=conv_mode)
    answerer = LlavaAnswerer(checkpoint, "none")
    calls = []
    for question in [question for question in questions if question.images][:samples]:
        pictures = [checkpoint.reader(image, Path(image_folder)) for image in question.images]
        ids = tokenizer_image_token(answerer.prompt(question.text, len(pictures)), checkpoint.tokenizer)
        calls.append(
            {
                "input_ids": torch.tensor([ids], device=checkpoint.model.device),
                "images": checkpoint.batch(pictures),
                "image_sizes": [picture.size for picture in pictures],
            }
        )
    return checkpoint.model, calls


def model_type(path: str) -> tuple[Path, str | None]:
    """The local folder of a path or Hub name, and the `model_type` its config names, if it has one."""
    folder = local_folder(path, patterns=["*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "*.jinja"])
    return folder, read_config(folder).get("model_type") if (folder / "config.json").is_file() else None


def load_reader(path: str) -> tuple[Any, Any]:
    """A multimodal checkpoint of either layout, as its answerer without a pruner, and its image processor.

    Raises:
        ValueError: one line about what cannot be loaded.
    """
    reader = load_answerer(path, pruner="none")
    preparation = getattr(reader.checkpoint, "preparation", None)
    return reader, reader.checkpoint.image_processor if preparation is None else preparation.pictures


def shown_pixels(reader: Any, image: Image.Image) -> Tensor:
    """The pixels that a reader's model gets for an image, [.., 3, H, W]."""
    shown = getattr(reader.checkpoint, "show", None) or reader.checkpoint.picture
    prepared = shown(image)
    return prepared.inputs["pixel_values"] if hasattr(prepared, "inputs") else prepared.pixels


def answerers_of(reader: Any, pruners: Sequence[str]) -> list[Any]:
    """A reader's model with each of these pruners (as text), as called with questions and their images."""
    return [type(reader)(reader.checkpoint, pruner, Generation(max_new_tokens=64)) for pruner in pruners]


def answers_of(reader: Any, question: str, images: Sequence[Image.Image], pruner: str) -> list[str]:
    """A reader's answer to the question about each image, with a pruner (as text) attached."""
    [answerer] = answerers_of(reader, [pruner])
    return [answerer([question], [[image]])[0].text for image in images]


def load_encoder(folder: Path, name: str) -> tuple[nn.Module, Any]:
    """An encoder alone, of transformers' class `name`, and its image processor.

    Raises:
        ValueError: weights or the image processor's file are missing or broken.
    """
    weight_names(folder)
    try:
        with quiet("transformers.modeling_utils"):
            model, report = getattr(transformers, name).from_pretrained(
                folder, output_loading_info=True, dtype=torch.float32
            )
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    except (OSError, *DAMAGE) as error:
        raise ValueError(f"the encoder in {folder} cannot be loaded: {one_line(error)}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(f"{folder} lacks {len(missing)} weights of {name}, such as {missing[0]}; give a complete one")
    return model.eval(), processor
