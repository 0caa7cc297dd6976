"""Load a LLaVA checkpoint: tokenizer, model, image processor, context length."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import is_accelerate_available

from flowcut import Pruner, attach
from flowcut.registry import parse_pruner, pruner_to_text
from llava.model.checkpoint import (
    DAMAGE,
    local_folder,
    one_line,
    read_config,
    read_projector,
    save_llava_checkpoint,
    weight_names,
)
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.language_model.llava_mistral import LlavaMistralConfig, LlavaMistralForCausalLM
from llava.model.remembered_pruner import pruner_to_use
from llava.model.tokenizer import load_llama_tokenizer
from llava.model.vision_tokens import add_vision_tokens

__all__ = ["load_pretrained_model", "load_tokenizer", "save_llava_checkpoint"]

logger = logging.getLogger(__name__)

_CLASSES: dict[str, tuple[Any, Any]] = {
    "LlavaLlamaForCausalLM": (LlavaConfig, LlavaLlamaForCausalLM),
    "LlavaMistralForCausalLM": (LlavaMistralConfig, LlavaMistralForCausalLM),
}
_TOWER_WEIGHTS = "model.vision_tower."
# Parts that stay in the compute type when the language model is quantised.
_NOT_QUANTISED = ["mm_projector", "vision_tower", "lm_head"]


def load_tokenizer(model_path: str, cache_dir: str | None = None, **kwargs: Any) -> Any:
    """The LLaMA tokenizer of a model's folder or Hub name; see `load_llama_tokenizer`."""
    folder = local_folder(model_path, cache_dir, patterns=["*token*", "config.json"])
    return load_llama_tokenizer(folder, **kwargs)


def load_pretrained_model(
    model_path: str,
    model_base: str | None,
    model_name: str,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = "auto",
    device: str = "cuda",
    use_flash_attn: bool = False,
    dtype: torch.dtype | str | None = None,
    pruner: str | None = None,
    **kwargs: Any,
) -> tuple[Any, Any, Any, int]:
    """Load a checkpoint in LLaVA's layout, from a folder or the Hub.

    model_path: the checkpoint; or, with `model_base`, a folder with config.json and mm_projector.bin.
    model_base: the language model under a projector-only `model_path`.
    model_name: LLaVA's callers pass it; what to load is decided by config.json alone.
    load_8bit, load_4bit: quantise the language model with bitsandbytes.
    device, device_map: where to; without CUDA, "cuda" means the next best device. `device_map` needs accelerate.
    dtype: default float16, on a CPU float32.
    pruner: None attaches the pruner that the checkpoint was trained with, if its config.json remembers one (field
        `flowcut`), and says so in a warning. "none" attaches nothing. Text such as "flowcut:budget=64" attaches that,
        with a warning if the checkpoint was trained with something else. A model that came with a pruner takes no
        second one: before `attach(model, ...)`, call `detach(model)`, or load with pruner="none".
    kwargs go to transformers' `from_pretrained`.

    Returns (tokenizer, model in eval mode, image processor, context length); the image processor is None for a plain
    language model. Raises ValueError, one line, when something is missing (folder, weights, tokenizer, projector), and
    for a pruner that is unknown or does not fit the model.
    """
    asked = parse_pruner(pruner) if pruner is not None else None
    target = _available(device)
    dtype = dtype or kwargs.pop("torch_dtype", None) or (torch.float32 if target.type == "cpu" else torch.float16)
    kwargs |= _placement(target, device_map, load_8bit, load_4bit)
    if use_flash_attn:
        kwargs["attn_implementation"] = "flash_attention_2"

    cache_dir = kwargs.get("cache_dir")
    folder = local_folder(model_path, cache_dir)
    weights_folder = local_folder(model_base, cache_dir) if model_base else folder
    fields = read_config(folder)
    names = weight_names(weights_folder)
    if not fields.get("mm_vision_tower"):
        if asked is not None:
            raise ValueError(f"{folder} has no vision tower, hence nothing for {pruner} to drop; give no pruner")
        return _load_language_model(folder, target, dtype, kwargs)
    _refuse_other_kinds(folder, fields, model_base)
    chosen = None
    if pruner is None or asked is not None:
        chosen = pruner_to_use(pruner, fields, folder, switch_off='pruner="none"')

    tokenizer = load_llama_tokenizer(weights_folder)
    config_class, model_class = _CLASSES[fields["architectures"][0]]
    config = config_class.from_dict({name: value for name, value in fields.items() if name != "model_type"})
    config._name_or_path = str(folder)  # the tower's folder may lie in the checkpoint
    _decide_tower(config, names)
    model = _load_weights(model_class, weights_folder, config, dtype, kwargs, projector_follows=bool(model_base))
    if model_base:
        model.get_model().mm_projector.load_state_dict(read_projector(str(folder / "mm_projector.bin")))
    if "device_map" not in kwargs:
        model.to(target)
    add_vision_tokens(model, tokenizer)

    tower = model.get_vision_tower()
    if not tower.is_loaded:
        tower.load_model()
        tower.to(model.get_input_embeddings().weight)  # its device and dtype
    if chosen is not None:
        _attach(model, chosen, folder)
    context_length = getattr(config, "max_sequence_length", None) or 2048
    return tokenizer, model.eval(), tower.image_processor, context_length


def _available(device: str) -> torch.device:
    wanted = torch.device(device)
    if wanted.type != "cuda" or torch.cuda.is_available():
        return wanted
    found = torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    logger.warning("no CUDA device here; using %s", found)
    return found


def _placement(target: torch.device, device_map: Any, load_8bit: bool, load_4bit: bool) -> dict[str, Any]:
    """from_pretrained's arguments for device and quantisation; empty means: load, then move."""
    arguments: dict[str, Any] = {}
    if load_4bit or load_8bit:
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=load_8bit and not load_4bit,
            load_in_4bit=load_4bit,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32 if target.type == "cpu" else torch.float16,
            llm_int8_skip_modules=_NOT_QUANTISED,
        )
        arguments["device_map"] = {"": target}
    elif is_accelerate_available() and (isinstance(device_map, dict) or target == torch.device("cuda")):
        arguments["device_map"] = device_map
    return arguments


def _refuse_other_kinds(folder: Path, fields: dict[str, Any], model_base: str | None) -> None:
    kinds = fields.get("architectures") or ["none"]
    if kinds[0] not in _CLASSES or "text_config" in fields:
        raise ValueError(f"{folder} is a {kinds[0]}; this loader reads {' and '.join(_CLASSES)} in LLaVA's layout")
    if model_base and not (folder / "mm_projector.bin").is_file():
        raise ValueError(
            f"{folder} holds no mm_projector.bin to put on {model_base}; give a projector's folder, or no base"
        )


def _decide_tower(config: Any, names: set[str]) -> None:
    """Settle whether the tower comes with the checkpoint; the model's constructor goes by the config."""
    inside = any(name.startswith(_TOWER_WEIGHTS) for name in names)
    wanted = bool(getattr(config, "unfreeze_mm_vision_tower", False))
    config.unfreeze_mm_vision_tower = wanted and inside
    if wanted and not inside:
        logger.warning("the checkpoint has no vision tower of its own; loading %s", config.mm_vision_tower)
    elif inside and not wanted:
        logger.warning("the tower in the checkpoint was frozen in training; loading %s instead", config.mm_vision_tower)


def _load_weights(
    model_class: Any, folder: Path, config: Any, dtype: Any, kwargs: dict[str, Any], projector_follows: bool
) -> Any:
    try:
        model, report = model_class.from_pretrained(
            folder, config=config, dtype=dtype, output_loading_info=True, **kwargs
        )
    except DAMAGE as error:
        raise ValueError(f"the weights in {folder} cannot be loaded: {one_line(error)}") from error
    missing = sorted(name for name in report["missing_keys"] if not (projector_follows and "mm_projector." in name))
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} weights of {model_class.__name__}, such as {missing[0]}; without them the "
            f"answers would be noise. Give a whole checkpoint (a projector alone goes with its model_base)"
        )
    return model


def _attach(model: Any, pruner: Pruner, folder: Path) -> None:
    try:
        attach(model, pruner)
    except ValueError as error:
        raise ValueError(f"{pruner_to_text(pruner)} does not fit {folder}: {error}") from error


def _load_language_model(folder: Path, target: torch.device, dtype: Any, kwargs: dict[str, Any]) -> Any:
    """A plain language model: no vision tower in its config, hence no image processor."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **kwargs)
    if "device_map" not in kwargs:
        model.to(target)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer, model.eval(), None, getattr(model.config, "max_sequence_length", None) or 2048
