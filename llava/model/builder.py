"""Load a LLaVA checkpoint of any kind: tokenizer, model, image processor, context length."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import is_accelerate_available, is_bitsandbytes_available

from flowcut import Pruner, attach
from flowcut.registry import parse_pruner, pruner_to_text
from llava.model.checkpoint import (
    DAMAGE,
    PROJECTOR,
    local_folder,
    one_line,
    read_bin,
    refuse_pointer,
    save_llava_checkpoint,
    weight_names,
)
from llava.model.delta import FIELD as DELTA_FIELD
from llava.model.delta import shift
from llava.model.loading import FAMILIES, check_finite, check_names, check_tower, load_llava_model
from llava.model.lora import adapts_tower, bare_names, is_lora_folder, merge_adapter, read_other_weights
from llava.model.remembered_pruner import pruner_to_use
from llava.model.source import Kind, Source, find_source, promised_weights
from llava.model.tokenizer import has_tokenizer, load_llama_tokenizer
from llava.model.transformers_layout import IMAGE_TOKEN
from llava.model.vision_tokens import add_vision_tokens

__all__ = ["load_pretrained_model", "load_tokenizer", "save_llava_checkpoint"]

logger = logging.getLogger(__name__)

# Parts that stay in the compute type when the language model is quantised.
NOT_QUANTISED = ["model.mm_projector", "model.vision_tower", "lm_head"]


def load_tokenizer(model_path: str, cache_dir: str | None = None, **kwargs: Any) -> Any:
    """The LLaMA tokenizer of a model's folder or Hub name; see `load_llama_tokenizer`."""
    folder = local_folder(model_path, cache_dir, patterns=["*token*", "config.json"])
    return _checked_tokenizer(folder, **kwargs)


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
    """Load a checkpoint from a folder or the Hub, into LLaVA's classes whatever its layout.

    model_path: a whole checkpoint in LLaVA's or in transformers' layout; or, with `model_base`, a LoRA adapter, a
        projector (config.json and mm_projector.bin), or a difference (delta). See `llava.model.source`.
    model_base: its base, a language model or a LLaVA; None uses the one that an adapter's config names.
    model_name: a hint from LLaVA's callers; the files decide.
    load_8bit, load_4bit: quantise the language model with bitsandbytes; an adapter is then kept separate.
    device, device_map: without CUDA, "cuda" falls back to another device. `device_map` needs accelerate.
    dtype: default float16, on a CPU float32.
    pruner: None attaches the pruner that the checkpoint was trained with, if its config.json has one (field
        `flowcut`), with a warning. "none" attaches nothing. Text such as "flowcut:budget=64" attaches this pruner,
        with a warning if the checkpoint was trained differently. A model can have only one pruner:
        before `attach(model, ...)`, call `detach(model)`, or load with pruner="none".
    kwargs are passed to transformers' `from_pretrained`; `attn_implementation` applies to the vision tower too.

    Returns (tokenizer, model in eval mode, image processor, context length); the image processor is None for a plain
    language model. Raises ValueError, one line, when something is missing (folder, weights, tokenizer, projector), when
    base and checkpoint do not match, and for a pruner that is unknown or does not fit the model.
    """
    asked = parse_pruner(pruner) if pruner is not None else None
    target = _available(device)
    dtype = dtype or kwargs.pop("torch_dtype", None) or (torch.float32 if target.type == "cpu" else torch.float16)
    kwargs |= _placement(target, device_map, load_8bit, load_4bit)
    if use_flash_attn:
        kwargs["attn_implementation"] = "flash_attention_2"

    source = find_source(model_path, model_base, model_name, kwargs.get("cache_dir"))
    if source.kind is Kind.LANGUAGE:
        if asked is not None:
            raise ValueError(f"{source.folder} has no vision tower, so {pruner} has nothing to drop; give no pruner")
        return _load_language_model(source, target, dtype, kwargs)
    chosen = None
    if pruner is None or asked is not None:
        chosen = pruner_to_use(pruner, source.fields, source.folder, switch_off='pruner="none"')

    if source.kind is Kind.DELTA and "quantization_config" in kwargs:
        raise ValueError(f"{source.folder} is a delta, which cannot be added in 4 or 8 bit; use apply_delta first")
    tokenizer = _load_tokenizer(source)
    extra = _weights_beside_the_base(source)
    model = _load_model(source, extra, dtype, kwargs)
    if "device_map" not in kwargs:
        model.to(target)
    quantised = "quantization_config" in kwargs
    native = source.kind is Kind.ADAPTER and source.key_mapping is not None
    if native:  # made on the model with the rows of transformers' layout
        model = _with_adapter(model, source, quantised)
    if source.key_mapping is not None and len(tokenizer) < model.config.vocab_size:
        # transformers' layout has rows for its own two tokens, and padding rows
        model.resize_token_embeddings(len(tokenizer))
    add_vision_tokens(model, tokenizer)
    _fill(model, extra, source)
    if source.kind is Kind.DELTA:
        with torch.no_grad():
            shift(model.state_dict(), source.weights, 1)
        if hasattr(model.config, DELTA_FIELD):
            delattr(model.config, DELTA_FIELD)
    if source.kind is Kind.ADAPTER and not native:
        model = _with_adapter(model, source, quantised)

    tower = _loaded_tower(model)
    check_tower(model, source.folder)
    check_finite(model, source.folder)
    if kwargs.get("attn_implementation"):
        tower.vision_tower.set_attn_implementation(kwargs["attn_implementation"])
    if chosen is not None:
        _attach(model, chosen, source.folder)
    context_length = getattr(model.config, "max_sequence_length", None) or 2048
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
        if not is_bitsandbytes_available():
            raise ValueError("load_4bit and load_8bit need the bitsandbytes package: pip install bitsandbytes")
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=load_8bit and not load_4bit,
            load_in_4bit=load_4bit,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32 if target.type == "cpu" else torch.float16,
            llm_int8_skip_modules=NOT_QUANTISED,
        )
        arguments["device_map"] = {"": target}
    elif is_accelerate_available() and (isinstance(device_map, dict) or target == torch.device("cuda")):
        arguments["device_map"] = device_map
    return arguments


def _load_tokenizer(source: Source) -> Any:
    """The checkpoint's own tokenizer, else its base's, without the tokens that transformers' layout adds."""
    own = source.folder if has_tokenizer(source.folder) else source.weights
    below = None
    if source.key_mapping is not None:
        below = source.fields[IMAGE_TOKEN]
    return _checked_tokenizer(own, below=below)


def _checked_tokenizer(folder: Path, **kwargs: Any) -> Any:
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        refuse_pointer(folder / name)
    try:
        return load_llama_tokenizer(folder, **kwargs)
    except Exception as error:  # the readers of other tokenizers' and damaged files raise many kinds
        if isinstance(error, ValueError) and "\n" not in str(error) and "tokenizer" in str(error):
            raise
        raise ValueError(
            f"the tokenizer in {folder} is damaged, or not LLaMA's ({type(error).__name__}: {one_line(error)}); copy "
            f"the tokenizer of the checkpoint's base model there"
        ) from error


def _weights_beside_the_base(source: Source) -> dict[str, Tensor]:
    """The checkpoint's weights by full name, without the base's weights and an adapter."""
    if source.kind is Kind.ADAPTER:
        return read_other_weights(source.folder)
    if source.kind is Kind.PROJECTOR:
        return bare_names(read_bin(source.folder / PROJECTOR))
    return {}


def _load_model(source: Source, extra: dict[str, Tensor], dtype: Any, kwargs: dict[str, Any]) -> Any:
    """The model with the weights of the checkpoint, or of its base."""
    fields = dict(source.fields)
    folder = source.folder if source.kind is Kind.DELTA else source.weights
    if source.kind is not Kind.DELTA and "vocab_size" in source.base_fields:
        fields["vocab_size"] = source.base_fields["vocab_size"]  # rows that training added are in `extra`
    promised = None if folder == source.folder else source.folder / promised_weights(source)
    arguments = kwargs | {"key_mapping": source.key_mapping, "ignore_mismatched_sizes": True}
    return load_llava_model(folder, fields, source.folder, dtype, set(extra), promised, **arguments)


def _fill(model: Any, extra: dict[str, Tensor], source: Source) -> None:
    """Copy weights into the model by name; a tensor may have the rows of new tokens only."""
    own = dict(model.named_parameters())
    for name, value in extra.items():
        target = own.get(name)
        if target is None:
            raise ValueError(f"{source.folder} has a weight {name} that {type(model).__name__} does not know")
        embedding = name.endswith(("embed_tokens.weight", "lm_head.weight"))
        if embedding and value.shape[1:] == target.shape[1:] and len(value) < len(target):
            target = target[-len(value) :]
        if value.shape != target.shape:
            raise ValueError(
                f"{name} in {source.folder} has shape {tuple(value.shape)}, the model {tuple(target.shape)}; give the "
                f"base that it was trained on"
            )
        target.data.copy_(value)


def _loaded_tower(model: Any) -> Any:
    tower = model.get_vision_tower()
    if not tower.is_loaded:
        tower.load_model()
        tower.to(model.get_input_embeddings().weight)  # its device and dtype
    return tower


def _with_adapter(model: Any, source: Source, keep_apart: bool) -> Any:
    if adapts_tower(source.folder):
        _loaded_tower(model)
        model.config.unfreeze_mm_vision_tower = True  # from now on every checkpoint has to include the tower
    return merge_adapter(model, source.folder, keep_apart)


def _attach(model: Any, pruner: Pruner, folder: Path) -> None:
    try:
        attach(model, pruner)
    except ValueError as error:
        raise ValueError(f"{pruner_to_text(pruner)} does not fit {folder}: {error}") from error


def _load_language_model(source: Source, target: torch.device, dtype: Any, kwargs: dict[str, Any]) -> Any:
    """A plain language model, possibly with an adapter: no vision tower, hence no image processor."""
    check_names(weight_names(source.weights), source.fields, source.weights)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(source.weights, dtype=dtype, **kwargs)
    except (*DAMAGE, OSError, TypeError, ValueError) as error:
        raise ValueError(f"the weights in {source.weights} cannot be loaded: {one_line(error)}") from error
    if is_lora_folder(source.folder):
        model = merge_adapter(model, source.folder, keep_apart="quantization_config" in kwargs)
    check_finite(model, source.weights)
    if "device_map" not in kwargs:
        model.to(target)
    llama = source.fields.get("model_type") in FAMILIES
    tokenizer = (_checked_tokenizer if llama else AutoTokenizer.from_pretrained)(source.weights)
    return tokenizer, model.eval(), None, getattr(model.config, "max_sequence_length", None) or 2048
