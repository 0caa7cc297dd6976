"""LoRA folders: an adapter for a language model, and the other trained weights.

`adapter_config.json` and `adapter_model.safetensors` (or `.bin`) are PEFT's. `non_lora_trainables.bin` has the weights
that are trained without an adapter (projector, possibly embeddings), under the names of the model inside PEFT's
wrapper.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llava.model.checkpoint import DAMAGE, listed, one_line, read_bin, read_object, refuse_pointer
from llava.model.transformers_layout import to_hub_name, to_llava_name

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
OTHER_WEIGHTS = "non_lora_trainables.bin"
PREFIX = "base_model.model."  # PEFT's, before the model's own names
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
    named = read_object(folder / ADAPTER_CONFIG, "adapter").get("base_model_name_or_path")
    return named if isinstance(named, str) else None


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


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's adapter. Raises ValueError, one line, when they are missing or damaged."""
    files = [folder / name for name in ADAPTER_FILES if (folder / name).is_file()]
    if not files:
        raise ValueError(f"{folder} has no {' or '.join(ADAPTER_FILES)}; copy the complete adapter")
    refuse_pointer(files[0])
    try:
        return load_file(files[0]) if files[0].suffix == ".safetensors" else read_bin(files[0])
    except DAMAGE as error:
        raise ValueError(f"{files[0]} is damaged ({one_line(error)}); copy the adapter again") from error


def is_untrained(folder: Path) -> bool:
    """Whether merging the folder's adapter changes no weight, because it was never trained."""
    return not any(bool(value.any()) for name, value in read_adapter(folder).items() if not _starts_random(name))


def _starts_random(name: str) -> bool:
    return ".lora_A" in name or ".lora_embedding_B" in name


def adapts_tower(folder: Path) -> bool:
    """Whether the folder's adapter has weights for the vision tower."""
    return any("vision_tower." in name for name in read_adapter(folder))


def merge_adapter(model: Any, folder: Path, keep_apart: bool = False) -> Any:
    """The model with the folder's adapter merged into its weights.

    The adapter's file decides which layers it has; their names may be those of LLaVA's classes or of transformers'.
    Every tensor of the file is used, and every layer that the adapter's config names in this model is filled.

    keep_apart: do not merge, for quantised weights, where merging would round.

    Returns a model of the same class. Raises ValueError, one line, when peft is missing, or the adapter is damaged, is
    not LoRA's, or does not fit the model.
    """
    try:
        from peft import LoraConfig, PeftModel, set_peft_model_state_dict
    except ImportError as error:
        raise ValueError(f"{folder} is a LoRA adapter, which needs the peft package: pip install peft") from error
    kind = read_object(folder / ADAPTER_CONFIG, "adapter").get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{folder} holds an adapter of peft_type {kind}; this loader reads LORA")
    tensors = _own_names(read_adapter(folder), model, folder)
    if not any(bool(value.any()) for name, (_, value) in tensors.items() if not _starts_random(name)):
        logger.warning("the adapter in %s changes no weight: it was not trained", folder)
    try:
        config: Any = LoraConfig.from_pretrained(str(folder))
        _aim(config, tensors, model)
        layers = {name: value for name, (_, value) in tensors.items() if _is_adapters(name)}
        _replace(model, {name: value for name, (_, value) in tensors.items() if name not in layers})
        wrapped = PeftModel(model, config)
        report: Any = set_peft_model_state_dict(wrapped, {f"{PREFIX}{name}": value for name, value in layers.items()})
        lost = [*report.unexpected_keys, *(name for name in report.missing_keys if ".lora_" in name)]
        if lost:
            raise ValueError(
                f"its file has no weights for these of its layers: {listed(lost)}; copy the complete adapter"
            )
        if keep_apart:
            return wrapped.base_model.model
        merged = wrapped.merge_and_unload(safe_merge=True)
    except Exception as error:  # PEFT raises many kinds for odd configs
        raise ValueError(f"the adapter in {folder} cannot be put on this model: {one_line(error)}") from error
    if hasattr(merged, "peft_config"):
        del merged.peft_config  # the adapter is merged; saving would look for it
    return merged


def _own_names(tensors: dict[str, Tensor], model: Any, folder: Path) -> dict[str, tuple[str, Tensor]]:
    """The tensors by their names in this model, each with its layer's name in the file.

    Raises ValueError, one line, for tensors that belong to no part of the model.
    """
    modules = {name for name, _ in model.named_modules()}
    found, lost = {}, []
    for name, value in tensors.items():
        bare = name.removeprefix(PREFIX)
        flat = bare.replace("vision_tower.vision_tower.vision_model.", "vision_tower.vision_tower.")
        names = (bare, flat, to_llava_name(bare), f"model.{bare}")  # the last: an adapter of the body alone
        own = next((one for one in names if _layer(one) in modules), None)
        if own is None or bare == name:
            lost.append(name)
        else:
            found[own] = (_layer(bare), value)
    if lost or not found:
        raise ValueError(
            f"{len(lost)} of {len(tensors)} tensors of the adapter in {folder} do not belong to this "
            f"{type(model).__name__}: {listed(lost)}; give the model that the adapter was trained on"
        )
    return found


def _is_adapters(name: str) -> bool:
    """Whether a tensor is LoRA's own; the others, such as biases, take the place of the model's weights."""
    return ".lora_" in name or "trainable_tokens" in name


def _layer(name: str) -> str:
    """The module that a tensor of an adapter belongs to."""
    if ".lora_" in name:
        return name.partition(".lora_")[0]
    return name.rpartition(".")[0].removesuffix(".base_layer").removesuffix(".token_adapter")


def _aim(config: Any, tensors: dict[str, tuple[str, Tensor]], model: Any) -> None:
    """Point an adapter's config at exactly the layers that its file has, with their ranks and scales.

    Raises ValueError, one line, when the config names layers of this model that the file lacks.
    """
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    in_file = {_layer(name): theirs for name, (theirs, _) in tensors.items() if ".lora_" in name}
    with_tower = any("vision_tower." in name for name in in_file)
    absent = [
        name
        for name, module in model.named_modules()
        if name not in in_file
        and isinstance(module, nn.Linear | nn.Embedding)
        and (with_tower or "vision_tower." not in name)  # LLaVA loads the tower after the adapter
        and any(check_target_module_exists(config, one) is True for one in _spellings(name))
    ]
    if absent:
        raise ValueError(
            f"its file lacks {len(absent)} layers that its config names: {listed(absent)}; copy the complete adapter"
        )
    for field, default in (("rank_pattern", config.r), ("alpha_pattern", config.lora_alpha)):
        given = getattr(config, field, None) or {}
        chosen = {own: given.get(get_pattern_key(list(given), theirs), default) for own, theirs in in_file.items()}
        changed = {f"^{re.escape(own)}": value for own, value in chosen.items() if value != default}
        setattr(config, field, changed)
    config.target_modules = "|".join(re.escape(name) for name in sorted(in_file))
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = config.modules_to_save = None
    config.bias = "none"  # those of the file are the model's own by now
    config.inference_mode = True


def _spellings(name: str) -> tuple[str, ...]:
    """A module's name here, in the files of `llava-hf/*`, and in the modules of transformers 5."""
    hub = to_hub_name(f"{name}.").removesuffix(".")
    return name, hub, f"model.{hub.replace('language_model.model.', 'language_model.', 1)}"


def _replace(model: Any, weights: dict[str, Tensor]) -> None:
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            target = own.get(name.replace(".base_layer.", "."))
            if target is None or target.shape != value.shape:
                there = "nothing of that name" if target is None else f"shape {tuple(target.shape)}"
                raise ValueError(
                    f"its {name} has shape {tuple(value.shape)}, the model {there}; give the "
                    f"model that the adapter was trained on"
                )
            target.copy_(value)
