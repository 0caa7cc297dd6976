"""The kind of checkpoint at a model path, and where its weights come from.

Files and config.json decide. A folder's name, which LLaVA uses, is only a hint: a warning reports a contradiction to
the files. Only a delta without the field `delta_of` is recognised by its name.
"""

from __future__ import annotations

import logging
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llava.model.checkpoint import PROJECTOR, local_folder, read_config
from llava.model.delta import FIELD, is_delta
from llava.model.fields import check_fields
from llava.model.lora import OTHER_WEIGHTS, base_of, is_lora_folder
from llava.model.transformers_layout import TO_LLAVA, is_transformers_layout, llava_fields

logger = logging.getLogger(__name__)

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin*")
# The fields in which a base must equal the checkpoint that was trained on it.
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


class Kind(Enum):
    """How the weights of a model are given."""

    WHOLE = "a whole checkpoint"
    ADAPTER = "a LoRA adapter on a base"
    PROJECTOR = "a projector on a base"
    DELTA = "a difference from a base"
    LANGUAGE = "a language model without vision tower"


class Source(NamedTuple):
    """folder: of the checkpoint. weights: folder of the language model's weights, the base if there is one.

    fields: the config in LLaVA's layout. base_fields: that of the base, {} without one. key_mapping: from the names in
    the files to LLaVA's, for transformers' `from_pretrained`; None if they are LLaVA's.
    """

    kind: Kind
    folder: Path
    weights: Path
    fields: dict[str, Any]
    base_fields: dict[str, Any]
    key_mapping: dict[str, str] | None


def find_source(model_path: str, model_base: str | None, model_name: str, cache_dir: str | None = None) -> Source:
    """Inspect a model path and its base without loading weights.

    model_base: folder or Hub name; None uses the base that an adapter's config names.

    Raises ValueError, one line, when something is missing or path and base do not match.
    """
    folder = local_folder(model_path, cache_dir)
    kind = _kind(folder, model_base, model_name)
    if kind is Kind.ADAPTER and model_base is None:
        model_base = base_of(folder)
        if not model_base:
            raise ValueError(f"{folder} is a LoRA adapter and does not name its base; give model_base (--model-base)")
        logger.warning("%s is a LoRA adapter; loading it on %s, which its config names", folder, model_base)
    if kind in (Kind.WHOLE, Kind.LANGUAGE):
        fields, mapping = _config(folder)
        return Source(kind, folder, folder, fields, {}, mapping)
    if model_base is None:
        raise ValueError(f"{folder} holds {kind.value}; give model_base (--model-base), the model it was trained on")
    base = local_folder(model_base, cache_dir)
    base_fields, mapping = _config(base)
    # Intermediate adapters of LLaVA have no config; if the base is a LLaVA, its config is used.
    fields = _config(folder)[0] if (folder / "config.json").is_file() else base_fields
    _check_base(folder, fields, base, base_fields)
    if kind is Kind.ADAPTER:
        _compare_names(folder, model_base)
        if not fields.get("mm_vision_tower"):
            kind = Kind.ADAPTER if base_fields.get("mm_vision_tower") else Kind.LANGUAGE
    return Source(kind, folder, base, fields, base_fields, mapping)


def _config(folder: Path) -> tuple[dict[str, Any], dict[str, str] | None]:
    fields, mapping = read_config(folder), None
    if is_transformers_layout(fields):
        fields, mapping = llava_fields(fields, folder), TO_LLAVA
    check_fields(fields, folder)
    return fields, mapping


def _kind(folder: Path, model_base: str | None, name: str) -> Kind:
    names = f"{name} {folder.name}".lower()
    if is_lora_folder(folder):
        return Kind.ADAPTER
    if "lora" in names:
        logger.warning("the name of %s contains lora, but there is no adapter_config.json; loading it as it is", folder)
    whole = any(any(folder.glob(pattern)) for pattern in _WEIGHTS)
    if (folder / PROJECTOR).is_file() and not whole:
        return Kind.PROJECTOR
    fields, _ = _config(folder)
    if whole and (FIELD in fields or (model_base is not None and is_delta(fields, names))):
        return Kind.DELTA
    if model_base is not None:
        raise ValueError(
            f"{folder} holds no {PROJECTOR} and no adapter_config.json to put on {model_base}; give a projector's or a "
            f"LoRA's folder, or no base"
        )
    if is_delta(fields, names):
        logger.warning(
            "the name of %s contains delta; a delta needs model_base, and without it answers are meaningless", folder
        )
    return Kind.WHOLE if fields.get("mm_vision_tower") else Kind.LANGUAGE


def _check_base(folder: Path, fields: dict[str, Any], base: Path, base_fields: dict[str, Any]) -> None:
    for size in _SIZES:
        wanted, given = fields.get(size), base_fields.get(size)
        if wanted is not None and given is not None and wanted != given:
            raise ValueError(
                f"{folder} was trained on a model with {size} {wanted}, but the base {base} has {given}; give the base "
                f"that it was trained on"
            )


def _compare_names(folder: Path, model_base: str) -> None:
    named = base_of(folder)
    if named and Path(named).name != Path(model_base).name:
        logger.warning("%s was trained on %s, not on %s; make sure that they are the same", folder, named, model_base)


def promised_weights(source: Source) -> str:
    """The file from which the weights besides the base's are read, for messages."""
    return {Kind.ADAPTER: OTHER_WEIGHTS, Kind.PROJECTOR: PROJECTOR}.get(source.kind, "config.json")


def stored_dtype(model_path: str, model_base: str | None = None) -> str:
    """The floating-point type in a checkpoint's config, or its base's if it has no config; else float16."""
    folder = local_folder(model_path)
    if is_lora_folder(folder) and not (folder / "config.json").is_file():
        folder = local_folder(model_base or base_of(folder) or model_path)
    fields = read_config(folder)
    found = fields.get("dtype") or fields.get("torch_dtype") or "float16"
    return found if isinstance(getattr(torch, str(found), None), torch.dtype) else "float16"
