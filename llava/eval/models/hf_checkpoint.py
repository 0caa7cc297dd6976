"""transformers' own models as checkpoints that answer: loading, and reading their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils import is_accelerate_available

from flowcut.anatomy.find import anatomy_of
from flowcut.hooks.parts import Anatomy
from llava.conversation import conversation_mode
from llava.eval.media.frames import spread
from llava.eval.models.hf_inputs import FILES, Preparation, VisualInput, VisualInputReader, load_preparation
from llava.eval.models.reply import check_device
from llava.eval.provenance import fingerprint, model_fingerprint
from llava.mm_utils import get_model_name_from_path
from llava.model.checkpoint import DAMAGE, local_folder, one_line, quiet, read_config, weight_names

_DOWNLOADS = ["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors", "*.bin"]


class HFCheckpoint(NamedTuple):
    """A loaded model with its tokenizer and preprocessing.

    mode: the name of one of LLaVA's conversation templates; None uses the checkpoint's own chat template.
    frames: of each video. max_pixels: see `load_preparation`. prepared_by: fingerprint of the files that define the
    preparation of pictures and prompts.
    """

    model: Any
    preparation: Preparation
    name: str
    fingerprint: str
    mode: str | None = None
    frames: int = 8
    max_pixels: int | None = None
    prepared_by: str = ""

    @property
    def tokenizer(self) -> Any:
        return self.preparation.tokenizer

    @property
    def image_processor(self) -> Any:
        return self.preparation.pictures

    @property
    def anatomy(self) -> Anatomy:
        return anatomy_of(self.model)

    @property
    def reader(self) -> VisualInputReader:
        """Reads pictures and videos for this model; works in worker processes too."""
        patch = self.model.config.vision_config.patch_size
        patch = patch if isinstance(patch, int) else patch[0]  # InternVL's has two equal sides
        return VisualInputReader(self.preparation.pictures, self.preparation.frames, self.frames, patch)

    def show(self, source: Image.Image | str | Path) -> VisualInput:
        """A picture (RGB), or the file of a video, prepared for the model."""
        return self.reader.picture(source) if isinstance(source, Image.Image) else self.reader.video(source)

    def batch(self, prompts: Sequence[str], shown: Sequence[VisualInput]) -> dict[str, torch.Tensor]:
        """The model's inputs, on its device and in its type; see `Preparation.batch`."""
        device, dtype = self.model.device, self.model.dtype
        inputs = self.preparation.batch(prompts, shown)
        return {
            name: value.to(device, dtype if name.startswith("pixel_values") else None) for name, value in inputs.items()
        }


def load_hf_checkpoint(
    model_path: str,
    conv_mode: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    frames: int = 8,
    max_pixels: int | None = None,
    cache_dir: str | None = None,
) -> HFCheckpoint:
    """Load a checkpoint of transformers' own classes for answering. No pruner is attached, not even one stored in it.

    conv_mode: a template of LLaVA's, as Video-LLaVA uses them; default: the checkpoint's own chat template.
    device: default: CUDA where there is one. dtype: default: the checkpoint's own, on a CPU float32.
    frames: of each video, spread evenly. max_pixels: of each picture, for Qwen2-VL and Qwen2.5-VL.
    cache_dir: where downloads from the Hub go.

    Raises ValueError, one line, when files or weights are missing, or the family is not known to `flowcut.anatomy`.
    """
    spread(1, frames)  # rejects numbers below 1
    mode = conversation_mode(explicit=conv_mode) if conv_mode else None
    folder = local_folder(model_path, cache_dir, _DOWNLOADS)
    read_config(folder)  # the readable message when it is missing or broken
    config = AutoConfig.from_pretrained(folder)
    preparation = load_preparation(folder, config, max_pixels)
    if mode is None and preparation.processor.chat_template is None:
        if preparation.tokenizer.chat_template is None:
            raise ValueError(f"{folder} has no chat template; say how to prompt it, such as --conv-mode llava_v1")
        preparation.processor.chat_template = preparation.tokenizer.chat_template
    check_device(device)
    model = _load_model(folder, config, device or ("cuda" if torch.cuda.is_available() else "cpu"), dtype)
    anatomy_of(model)
    files = [folder / name for name in FILES if (folder / name).is_file()]
    name, marks = get_model_name_from_path(model_path), model_fingerprint(folder)
    return HFCheckpoint(model, preparation, name, marks, mode, frames, max_pixels, fingerprint(files))


def _load_model(folder: Path, config: Any, device: str, dtype: str | None) -> Any:
    weight_names(folder)  # the readable message when there are none
    settings: dict[str, Any] = {"dtype": dtype or ("float32" if torch.device(device).type == "cpu" else "auto")}
    if device == "cuda" and is_accelerate_available():
        settings["device_map"] = "auto"
    loader: Any = AutoModelForImageTextToText
    try:
        with quiet("transformers.modeling_utils"):
            model, report = loader.from_pretrained(folder, config=config, output_loading_info=True, **settings)
    except DAMAGE as error:
        raise ValueError(f"the weights in {folder} cannot be loaded: {one_line(error)}") from error
    except ValueError as error:  # transformers lists all the classes it knows
        raise ValueError(f"{folder} is a {config.model_type}, which answers no questions about pictures") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(
            f"{folder} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}; without them the "
            f"answers would be noise. Give a complete checkpoint"
        )
    if "device_map" not in settings:
        model.to(device)
    return model.eval()
