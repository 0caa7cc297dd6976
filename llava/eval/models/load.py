"""Which classes answer for a model path: this project's LLaVA classes, or transformers' own."""

from __future__ import annotations

from llava.eval.models.answerer import Answerer
from llava.eval.models.hf_answerer import HFAnswerer
from llava.eval.models.hf_checkpoint import load_hf_checkpoint
from llava.eval.models.llava_answerer import LlavaAnswerer
from llava.eval.models.llava_checkpoint import load_checkpoint
from llava.eval.models.reply import BACKENDS, Generation
from llava.model.checkpoint import local_folder, read_config, refuse_unfinished
from llava.model.transformers_layout import is_transformers_layout, llava_fields


def fits_llava_classes(model_path: str) -> bool:
    """Whether this project's LLaVA classes can load the model: LLaVA's own checkpoints, and those of `llava-hf`.

    Decided by config.json; a folder without one (an adapter) is LLaVA's. Raises ValueError when there is no such model.
    """
    folder = local_folder(model_path, patterns=["*config.json"])
    refuse_unfinished(folder)
    if not (folder / "config.json").is_file():
        return True
    fields = read_config(folder)
    if not is_transformers_layout(fields):
        return True
    try:
        llava_fields(fields, folder)
    except ValueError:
        return False
    return True


def load_answerer(
    model_path: str,
    *,
    pruner: str | None = None,
    generation: Generation | None = None,
    backend: str = "auto",
    frames: int = 8,
    max_pixels: int | None = None,
    model_base: str | None = None,
    conv_mode: str | None = None,
    default_mode: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Answerer:
    """Load the model of a path, ready to answer.

    backend: one of BACKENDS, the flag --host of the programs. "auto" uses this project's LLaVA classes if they can
    load the model, else transformers'. frames, max_pixels: for transformers' classes, see `load_hf_checkpoint`.
    Other arguments: see `load_checkpoint` and `PrunedAnswerer`.

    Raises ValueError, one line, for invalid arguments and files.
    """
    if backend not in BACKENDS:
        raise ValueError(f"host={backend!r} is unknown; use {', '.join(BACKENDS)}")
    if backend == "llava" or (backend == "auto" and (model_base is not None or fits_llava_classes(model_path))):
        if max_pixels is not None:
            raise ValueError(f"max_pixels={max_pixels} is for models such as Qwen2-VL; {model_path} has fixed sizes")
        return LlavaAnswerer(
            load_checkpoint(model_path, model_base, conv_mode, device, dtype, default_mode), pruner, generation
        )
    if model_base is not None:
        raise ValueError(f"transformers' classes need complete checkpoints; merge {model_path} into {model_base} first")
    return HFAnswerer(load_hf_checkpoint(model_path, conv_mode, device, dtype, frames, max_pixels), pruner, generation)
