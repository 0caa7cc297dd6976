"""LoRA on the language model's linear layers; projector and, if requested, new tokens are trained too."""

from pathlib import Path
from typing import Any

from torch import nn

from llava.model.checkpoint import finish_save, listed, read_object
from llava.model.lora import (
    ADAPTER_CONFIG,
    PREFIX,
    base_of,
    is_lora_folder,
    language_targets,
    read_adapter,
    read_other_weights,
)
from llava.model.partitioned import whole
from llava.train.arguments import ModelArguments, TrainingArguments
from llava.train.saving import ADAPTER

VISUAL_PARTS = ("mm_projector", "vision_tower", "vision_resampler")


def find_all_linear_names(model: nn.Module) -> list[str]:
    """Names of the language model's linear layers, such as `q_proj`, without the output layer; sorted."""
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(part in name for part in VISUAL_PARTS)
    }
    return sorted(names - {"lm_head"})


def prepare_quantised(model: Any, training_args: TrainingArguments) -> Any:
    """PEFT's preparation of quantised models: frozen, other weights in float32, gradients at the input."""
    from peft import prepare_model_for_kbit_training

    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=training_args.gradient_checkpointing)


def add_lora(model: Any, model_args: ModelArguments, training_args: TrainingArguments) -> Any:
    """The model in PEFT's wrapper, with everything but LoRA frozen."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=training_args.lora_r,
        lora_alpha=training_args.lora_alpha,
        lora_dropout=training_args.lora_dropout,
        bias=training_args.lora_bias,
        target_modules=language_targets(find_all_linear_names(model)),
        task_type="CAUSAL_LM",
    )
    # `settle_types` sets the weights' type: under DeepSpeed PEFT's own choice, float32, would be wrong.
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)
    wrapped.peft_config[ADAPTER].base_model_name_or_path = model_args.model_name_or_path
    return wrapped


def check_lora_folder(folder: Path, model_args: ModelArguments, training_args: TrainingArguments) -> None:
    """Raise ValueError, one line, unless the folder has a LoRA adapter of the base and shape that the flags request."""
    finish_save(folder)
    if not is_lora_folder(folder):
        raise ValueError(f"{folder} has no LoRA adapter ({ADAPTER_CONFIG}); drop --lora_enable, or give another folder")
    fields = read_object(folder / ADAPTER_CONFIG, "adapter")
    for name, flag in (("r", "lora_r"), ("lora_alpha", "lora_alpha"), ("bias", "lora_bias")):
        wanted = getattr(training_args, flag)
        if fields.get(name) != wanted:
            raise ValueError(
                f"the adapter in {folder} has {name} {fields.get(name)}, but --{flag} is {wanted}; give the adapter's, "
                f"or start again in another --output_dir"
            )
    base, given = base_of(folder), model_args.model_name_or_path
    if base is not None and Path(base).name != Path(given).name:  # the base may have been moved since
        raise ValueError(
            f"the adapter in {folder} was trained on {base}, not on --model_name_or_path {given}; give that base, or "
            f"start again in another --output_dir"
        )


def load_lora(model: Any, folder: Path) -> None:
    """Load a folder's adapter, and the other trained weights, into the model.

    Raises ValueError, one line, when weights have other sizes, or trained weights are missing in the folder.
    """
    from peft import set_peft_model_state_dict

    adapter, others = read_adapter(folder), read_other_weights(folder)
    found = set(adapter) | {f"{PREFIX}{name}" for name in others}
    known = {name.replace(f".{ADAPTER}.", ".") for name, _ in model.named_parameters()}
    known |= {name.replace(".base_layer.", ".") for name in known}
    unknown = found - known
    if unknown:
        raise ValueError(
            f"{folder} has {len(unknown)} weights that this run does not have: {listed(unknown)}; merge the adapter "
            f"into its base first, and start from the merged model"
        )
    trained = {name.replace(f".{ADAPTER}.", ".") for name, value in model.named_parameters() if value.requires_grad}
    missing = sorted(trained - found)
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} weights that are being trained, such as {missing[0]}; give the flags that "
            f"it was trained with, or start again in another --output_dir"
        )
    inner = model.get_base_model()
    try:
        set_peft_model_state_dict(model, adapter, adapter_name=ADAPTER)
        with whole([value for name, value in inner.named_parameters() if name in others], write=True):
            inner.load_state_dict(others, strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder} was trained on a base of other sizes: {reason}") from error
