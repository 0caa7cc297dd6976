"""LLaVA's model from the files of a checkpoint, with one set of checks for loading and for training."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from llava.model.checkpoint import one_line, quiet, weight_names
from llava.model.fields import check_fields
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.language_model.llava_mistral import LlavaMistralConfig, LlavaMistralForCausalLM
from llava.model.transformers_layout import IMAGE_TOKEN, to_llava_name

logger = logging.getLogger(__name__)

FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (LlavaConfig, LlavaLlamaForCausalLM),
    "mistral": (LlavaMistralConfig, LlavaMistralForCausalLM),
}
_TOWER_WEIGHTS = "model.vision_tower."
_LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.")
# Their warnings while loading are replaced by one line here. The last one logs only where the first has a level.
_LOGGERS = tuple(
    f"transformers.{name}" for name in ("modeling_utils", "configuration_utils", "distributed.tensor_parallel")
)


def family_of(fields: Mapping[str, Any], where: object) -> tuple[Any, Any]:
    """Config and model class. Raises ValueError, one line, when it is not a language model of LLaVA."""
    said = [*(fields.get("architectures") or []), fields.get("model_type") or "model of no named kind"][0]
    for family, classes in FAMILIES.items():
        if family in said.lower() or said in ("llava", f"llava_{family}"):
            return classes
    raise ValueError(
        f"{where} is a {said}; LLaVA's classes are "
        f"{' and '.join(model_class.__name__ for _, model_class in FAMILIES.values())}"
    )


def load_llava_model(
    weights: Path,
    fields: Mapping[str, Any],
    folder: Path,
    dtype: Any,
    beside: Iterable[str] = (),
    beside_file: Path | None = None,
    key_mapping: dict[str, str] | None = None,
    **arguments: Any,
) -> Any:
    """The model of a checkpoint's fields with the weights in the folder `weights`, without its external vision tower.

    folder: of the checkpoint, where its own tower's config is searched; `weights`, unless it stands on a base.
    beside: names of weights that the caller fills in, from `beside_file`.
    key_mapping: from the names in the files to LLaVA's; None if they are LLaVA's.
    arguments: for transformers' `from_pretrained`.

    Raises ValueError, one line, for files that are incomplete, damaged, or do not fit the config.
    """
    check_fields(fields, folder)
    config_class, model_class = family_of(fields, folder)
    names = weight_names(weights)
    names = {to_llava_name(name) for name in names} if key_mapping else names
    check_names(names, fields, weights)
    try:
        own = {name: value for name, value in fields.items() if name not in ("model_type", IMAGE_TOKEN)}
        config = config_class.from_dict(own)
    except Exception as error:  # transformers validates some fields itself, in many ways
        raise ValueError(f"the config.json of {folder} is not a model's: {_flat(error)}; copy it again") from error
    config._name_or_path = str(folder)
    _decide_tower(config, names | set(beside))
    arguments |= {"key_mapping": key_mapping, "output_loading_info": True}
    try:
        with quiet(*_LOGGERS):
            model, report = model_class.from_pretrained(weights, config=config, dtype=dtype, **arguments)
    except ValueError as error:
        raise ValueError(_flat(error)) from error
    except Exception as error:  # whatever damaged files and odd configs lead to
        raise ValueError(f"the weights in {weights} cannot be loaded: {one_line(error)}") from error
    _check_report(report, model_class.__name__, weights, set(beside), beside_file)
    model.config.architectures = [model_class.__name__]
    return model


def _flat(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def check_names(names: set[str], fields: Mapping[str, Any], where: object) -> None:
    """Raise ValueError, one line, when the weights' names (LLaVA's) contradict the config."""
    if any(name.endswith((".qweight", ".qzeros")) for name in names):
        raise ValueError(f"the weights of {where} are quantised (AWQ or GPTQ); give the unquantised checkpoint")
    if not fields.get("mm_vision_tower") and any("mm_projector." in name for name in names):
        raise ValueError(
            f"{where} has a projector's weights, but its config.json has no mm_vision_tower; add it, for LLaVA-1.5 "
            f"openai/clip-vit-large-patch14-336"
        )
    layers = {int(found[1]) for name in names if (found := _LAYER.match(name))}
    said = fields.get("num_hidden_layers")
    if said is not None and layers and said != max(layers) + 1:
        raise ValueError(
            f"{where} has the weights of {max(layers) + 1} layers, but num_hidden_layers is {said}; copy the "
            f"checkpoint's config.json and weights again"
        )


def _decide_tower(config: Any, names: set[str]) -> None:
    """Decide whether the tower is in the checkpoint, and set the config, which the model's constructor reads."""
    if not getattr(config, "mm_vision_tower", None):
        return
    inside = any(name.startswith(_TOWER_WEIGHTS) for name in names)
    wanted = bool(getattr(config, "unfreeze_mm_vision_tower", False))
    config.unfreeze_mm_vision_tower = wanted and inside
    if wanted and not inside:
        logger.warning("the checkpoint has no vision tower of its own; loading %s", config.mm_vision_tower)
    elif inside and not wanted:
        logger.warning("the tower in the checkpoint was frozen in training; loading %s instead", config.mm_vision_tower)


def _check_report(report: dict[str, Any], name: str, weights: Path, beside: set[str], beside_file: Path | None) -> None:
    missing = sorted(set(report["missing_keys"]) - beside)
    if missing:
        also = "" if beside_file is None else f", and {beside_file} has them neither"
        raise ValueError(
            f"{weights} lacks {len(missing)} weights of {name}, such as {missing[0]}{also}; without them the answers "
            f"would be noise. Give a complete checkpoint, or an adapter or projector with its model_base"
        )
    for key, found, wanted in sorted(report["mismatched_keys"]):
        why = "vocab_size" if key.endswith(("embed_tokens.weight", "lm_head.weight")) else "sizes"
        raise ValueError(
            f"{key} in {weights} has shape {tuple(found)}, its config.json says {tuple(wanted)}; correct the config's "
            f"{why}, or copy config and weights of the same checkpoint"
        )
    unused = sorted(report["unexpected_keys"])
    if unused:
        logger.warning("%s: %d weights are not used, such as %s", weights, len(unused), unused[0])


def check_tower(model: Any, where: object) -> None:
    """Raise ValueError, one line, unless the tower has the feature layer, and the width that the projector takes."""
    tower, config = model.get_vision_tower(), model.config
    layers = tower.config.num_hidden_layers
    if not 0 <= tower.layers_run <= layers:
        raise ValueError(
            f"mm_vision_select_layer {tower.select_layer} is not in the vision tower of {where}, which has {layers} "
            f"layers; give one from {-layers - 1} to {layers}"
        )
    first = next((part for part in model.get_model().mm_projector.modules() if hasattr(part, "in_features")), None)
    takes = config.hidden_size if first is None else first.in_features
    if takes != tower.hidden_size:
        raise ValueError(
            f"the projector of {where} takes features of width {takes}, but {tower.vision_tower_name} gives "
            f"{tower.hidden_size}; give the vision tower that it was trained with"
        )


def check_finite(model: Any, where: object) -> None:
    """Raise ValueError, one line, when a weight is infinite or not a number: every answer would be empty or noise."""
    for name, value in model.named_parameters():
        if (
            value.is_floating_point()
            and not value.is_meta
            and not bool(value.detach().sum(dtype=_wide(value)).isfinite())
        ):
            raise ValueError(f"{name} of {where} has values that are infinite or no numbers; copy the checkpoint again")


def _wide(value: torch.Tensor) -> torch.dtype:
    return torch.float64 if value.device.type == "cpu" else torch.float32  # mps has no float64
