"""LoRA folders: an adapter for a language model, and the other trained weights.

`adapter_config.json` and `adapter_model.safetensors` (or `.bin`) are PEFT's. `non_lora_trainables.bin` has the weights
that are trained without an adapter (projector, possibly embeddings), under the names of the model inside PEFT's
wrapper.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from llava.model.checkpoint import DAMAGE, one_line, read_bin

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
OTHER_WEIGHTS = "non_lora_trainables.bin"
# Only inside the language model's layers: the tower's projections have the same names.
LANGUAGE_LAYERS = r"(?:model\.)?layers\.\d+\..*\.(?:{names})"

logger = logging.getLogger(__name__)


def is_lora_folder(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def language_targets(names: list[str]) -> str:
    """PEFT's `target_modules` as a regular expression: layers of these names, in the language model only."""
    return LANGUAGE_LAYERS.format(names="|".join(sorted(names)))


def base_of(folder: Path) -> str | None:
    """The base model's folder or name that the adapter was trained on, from its config."""
    file = folder / ADAPTER_CONFIG
    try:
        return json.loads(file.read_text("utf-8")).get("base_model_name_or_path")
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not readable JSON ({error}); copy the adapter again") from error


def read_other_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of `non_lora_trainables.bin` by their names in the bare model; none if there is no such file.

    Raises ValueError when the file is damaged.
    """
    file = folder / OTHER_WEIGHTS
    return bare_names(read_bin(file)) if file.is_file() else {}


def bare_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by their names in the bare model, `model.mm_projector...`, without PEFT's prefixes.

    LLaVA's files have them under `base_model.model.`, older ones without the second level; and the tower's with a level
    that transformers 5 does not have.
    """
    stripped = {name.removeprefix("base_model."): value for name, value in weights.items()}
    doubled = any(name.startswith("model.model.") for name in stripped)
    # `model.mm_projector` means the body's projector, unless some other name shows that one level is PEFT's.
    doubled = doubled or any(name.startswith("model.lm_head") for name in stripped)
    short = {name.removeprefix("model.") if doubled else name: value for name, value in stripped.items()}
    return {name.replace("vision_tower.vision_model.", "vision_tower."): value for name, value in short.items()}


def merge_adapter(model: Any, folder: Path, keep_apart: bool = False) -> Any:
    """The model with the folder's adapter merged into its weights.

    keep_apart: do not merge, for quantised weights, where merging would round.

    Returns a model of the same class. Raises ValueError, one line, when peft is missing, or the adapter is damaged or
    does not fit the model.
    """
    try:
        from peft import LoraConfig, PeftModel
    except ImportError as error:
        raise ValueError(f"{folder} is a LoRA adapter, which needs the peft package: pip install peft") from error
    if not any((folder / name).is_file() for name in ADAPTER_FILES):
        raise ValueError(f"{folder} has no {' or '.join(ADAPTER_FILES)}; copy the whole adapter")
    config: Any = LoraConfig.from_pretrained(str(folder))
    if not isinstance(config.target_modules, str):
        config.target_modules = language_targets(list(config.target_modules))
    try:
        wrapped = PeftModel.from_pretrained(model, str(folder), config=config)
    except (*DAMAGE, OSError, ValueError) as error:
        raise ValueError(f"the adapter in {folder} cannot be put on this model: {one_line(error)}") from error
    if keep_apart:
        return wrapped.base_model.model
    merged = wrapped.merge_and_unload(safe_merge=True)
    if hasattr(merged, "peft_config"):
        del merged.peft_config  # the adapter is merged; saving would look for it
    return merged
