"""The language model that a run starts from: loaded in the right type, quantised if requested, ready to be saved."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import BitsAndBytesConfig
from transformers.utils import logging

from llava.model.builder import NOT_QUANTISED
from llava.model.checkpoint import local_folder, read_config, weight_names
from llava.model.fields import check_fields
from llava.model.loading import check_finite, check_names, family_of, load_llava_model
from llava.model.partitioned import is_partitioned
from llava.model.transformers_layout import is_transformers_layout
from llava.train.arguments import ModelArguments, TrainingArguments, zero_stage

logger = logging.get_logger(__name__)


def compute_type(training_args: TrainingArguments) -> torch.dtype:
    """The compute type according to the flags."""
    return torch.bfloat16 if training_args.bf16 else torch.float16 if training_args.fp16 else torch.float32


def load_model(model_args: ModelArguments, training_args: TrainingArguments) -> Any:
    """The language model (from a Llama or a LLaVA checkpoint) as a LLaVA model.

    Trained weights are in float32; `--bf16` and `--fp16` are then autocast. Weights that are frozen under LoRA are in
    the compute type, and so are all under DeepSpeed, which keeps its own float32 copies. With `--bits 4` or `8`
    quantised.

    Raises ValueError, one line, where loading would; see `load_llava_model`.
    """
    if zero_stage(training_args.deepspeed) == 3:
        import deepspeed

        # Weights are partitioned while loading. On a CPU transformers would initialise DeepSpeed's processes later.
        deepspeed.init_distributed(auto_mpi_discovery=False)
    half = bool(training_args.deepspeed) or training_args.lora_enable
    folder = local_folder(model_args.model_name_or_path, training_args.cache_dir)
    fields = read_fields(folder)
    model = load_llava_model(
        folder,
        fields | {"use_cache": training_args.use_cache},
        folder,
        compute_type(training_args) if half else torch.float32,
        attn_implementation=model_args.attn_implementation,
        ignore_mismatched_sizes=zero_stage(training_args.deepspeed) != 3,  # which then reports sizes itself
        **quantization(training_args),
    )
    check_finite(model, folder)
    drop_unusable_sampling(model.generation_config)
    return model


def read_fields(folder: Path) -> dict[str, Any]:
    """The fields of a checkpoint that training can start from, checked with the names of its weights.

    Raises ValueError, one line, for one that it cannot start from.
    """
    fields = read_config(folder)
    if is_transformers_layout(fields):
        raise ValueError(
            f"{folder} has transformers' layout; training takes LLaVA's: python -m llava.convert --to llava"
        )
    check_fields(fields, folder)
    if fields.get("quantization_config"):
        raise ValueError(f"the weights of {folder} are quantised; give the unquantised ones, and --bits 4 if need be")
    family_of(fields, folder)
    check_names(weight_names(folder), fields, folder)
    return fields


def quantization(training_args: TrainingArguments) -> dict[str, Any]:
    """Arguments of from_pretrained for `--bits`; none for 16."""
    if training_args.bits == 16:
        return {}
    config = BitsAndBytesConfig(
        load_in_4bit=training_args.bits == 4,
        load_in_8bit=training_args.bits == 8,
        llm_int8_threshold=6.0,
        llm_int8_has_fp16_weight=False,
        llm_int8_skip_modules=NOT_QUANTISED,
        bnb_4bit_compute_dtype=compute_type(training_args),
        bnb_4bit_use_double_quant=training_args.double_quant,
        bnb_4bit_quant_type=training_args.quant_type,
    )
    return {"quantization_config": config, "device_map": {"": training_args.device}}


def drop_unusable_sampling(config: transformers.GenerationConfig) -> None:
    """Remove sampling values without `do_sample`, as in Vicuna's file: transformers refuses to save some of them.

    Generation does not change, since greedy search ignores them.
    """
    if not config.do_sample:
        for name in ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"):
            setattr(config, name, None)


def settle_types(model: torch.nn.Module, training_args: TrainingArguments) -> None:
    """float32 for trained weights; under DeepSpeed, which copies them, the compute type for everything.

    In quantised training, as in LLaVA: LoRA in bfloat16 with `--bf16`, norms in float32, other frozen weights of
    the language model in the compute type.
    """
    compute, quantised = compute_type(training_args), training_args.bits != 16
    for name, parameter in model.named_parameters():
        if is_partitioned(parameter) or not parameter.is_floating_point() or "vision_tower" in name:
            continue
        if training_args.deepspeed and not quantised:
            wanted = compute
        elif parameter.requires_grad:
            wanted = torch.bfloat16 if quantised and training_args.bf16 and "lora_" in name else torch.float32
        elif quantised:
            wanted = torch.float32 if "norm" in name else compute
        else:
            continue
        parameter.data = parameter.data.to(wanted)
