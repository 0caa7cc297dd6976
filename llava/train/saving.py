"""Saving of a run: a projector, a LoRA adapter with the other trained weights, or a whole checkpoint.

Under ZeRO-3 each process has a part of every weight. The functions whose names end in `maybe_zero_3` gather them;
all processes have to call them, also those that do not write.
"""

import copy
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from flowcut.hooks.learned import LEARNED
from llava.model import checkpoint
from llava.model.checkpoint import PROJECTOR as PROJECTOR_FILE
from llava.model.checkpoint import finish_save, read_bin, written_aside
from llava.model.lora import ADAPTER_CONFIG, OTHER_WEIGHTS
from llava.model.partitioned import whole

ADAPTER = "default"
# The fields that peft 0.10 knows, which LLaVA requires; it refuses a config with any other.
_OLD_FIELDS = {
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode"),
    *("init_lora_weights", "layer_replication", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha"),
    *("lora_dropout", "megatron_config", "megatron_core", "modules_to_save", "peft_type", "r", "rank_pattern"),
    *("revision", "target_modules", "task_type", "use_dora", "use_rslora"),
}
NamedParameters = Iterable[tuple[str, nn.Parameter]]


class BadCheckpoint(ValueError):
    """A checkpoint from which a run cannot continue; the message has the reason."""


def maybe_zero_3(param: nn.Parameter, ignore_status: bool = False, name: str | None = None) -> Tensor:
    """A copy of the whole parameter on the CPU. `ignore_status` and `name` are accepted for LLaVA's callers."""
    with whole([param]):
        return param.detach().cpu().clone()


def get_peft_state_maybe_zero_3(named_params: NamedParameters, bias: str) -> dict[str, Tensor]:
    """LoRA's own weights; with `bias` "all" every bias too, with "lora_only" those of the layers that have LoRA.

    Raises ValueError for another `bias`.
    """
    parameters = dict(named_params)
    if bias not in ("none", "all", "lora_only"):
        raise ValueError(f"bias {bias!r} is unknown; use none, all or lora_only")
    layers = {name.split("lora_")[0] for name in parameters if "lora_" in name}

    def belongs(name: str) -> bool:
        if "lora_" in name:
            return True
        if not name.endswith("bias"):
            return False
        owner = name.removesuffix("bias").removesuffix("base_layer.")
        return bias == "all" or (bias == "lora_only" and owner in layers)

    return {name: maybe_zero_3(parameter) for name, parameter in parameters.items() if belongs(name)}


def get_peft_state_non_lora_maybe_zero_3(
    named_params: NamedParameters, require_grad_only: bool = True
) -> dict[str, Tensor]:
    """Weights that are not LoRA's; by default only those that are trained."""
    return {
        name: maybe_zero_3(parameter)
        for name, parameter in named_params
        if "lora_" not in name and (parameter.requires_grad or not require_grad_only)
    }


def get_mm_adapter_state_maybe_zero_3(named_params: NamedParameters, keys_to_match: list[str]) -> dict[str, Tensor]:
    """Weights whose name contains one of `keys_to_match`."""
    return {
        name: maybe_zero_3(parameter) for name, parameter in named_params if any(key in name for key in keys_to_match)
    }


def has_lora(model: nn.Module) -> bool:
    """Whether PEFT has wrapped the model."""
    return hasattr(model, "peft_config")


def trained_weights(model: Any) -> dict[str, Tensor]:
    """All trained weights, whole and on the CPU; with LoRA also changed weights that the base does not have.

    These are the biases of `--lora_bias`, and the output layer when new tokens have added rows.
    """
    named = [(name, value) for name, value in model.named_parameters() if LEARNED not in name]
    if has_lora(model):
        trained = [(name, value) for name, value in named if value.requires_grad]
        weights = get_peft_state_maybe_zero_3(trained, model.peft_config[ADAPTER].bias)
        weights |= get_peft_state_non_lora_maybe_zero_3(trained)
        if model.get_input_embeddings().weight.requires_grad:
            weights |= get_mm_adapter_state_maybe_zero_3(named, ["lm_head."])
        return weights
    return {name: maybe_zero_3(parameter) for name, parameter in named if parameter.requires_grad}


def save_projector(model: Any, weights: dict[str, Tensor], folder: Path) -> None:
    """Write `config.json` and `mm_projector.bin`: the weights trained in stage 1, by the names of the model."""
    with written_aside(folder) as partial:
        model.config.save_pretrained(partial)
        torch.save(weights, partial / PROJECTOR_FILE)


def save_lora(model: Any, weights: dict[str, Tensor], folder: Path) -> None:
    """Write everything needed besides the base model.

    This is the adapter in PEFT's format, `non_lora_trainables.bin` (projector, possibly embeddings and image_newline;
    names begin with `base_model.model.`), and LLaVA's config.json.
    """
    from peft import get_peft_model_state_dict

    adapter = get_peft_model_state_dict(model, weights, adapter_name=ADAPTER, save_embedding_layers=False)
    inside = ("lora_", ".base_layer.")  # the biases of layers with LoRA are saved with the adapter
    others = {name: value for name, value in weights.items() if not any(part in name for part in inside)}
    config = copy.deepcopy(model.peft_config[ADAPTER])
    config.target_modules = adapted_layer_names(model)  # a list of names, as LLaVA's readers expect
    config.inference_mode = True
    with written_aside(folder) as partial:
        save_file({name: value.contiguous() for name, value in adapter.items()}, partial / "adapter_model.safetensors")
        config.save_pretrained(str(partial))
        _drop_new_fields(partial / ADAPTER_CONFIG, vars(type(config)()))
        torch.save(others, partial / OTHER_WEIGHTS)
        fields = _portable_config(model)
        (partial / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", "utf-8")


def _drop_new_fields(file: Path, defaults: dict[str, Any]) -> None:
    """Leave those fields out of an adapter's config that older versions of peft refuse and that have no effect."""
    fields = json.loads(file.read_text("utf-8"))
    fields.pop("peft_version", None)
    kept = {name: value for name, value in fields.items() if name in _OLD_FIELDS or value != defaults.get(name)}
    file.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", "utf-8")


def adapted_layer_names(model: nn.Module) -> list[str]:
    """The last parts of the names of the layers that have LoRA, such as `q_proj`."""
    paths = [name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name]
    return sorted({path.rpartition(".")[2] for path in paths})


def _portable_config(model: Any) -> dict[str, Any]:
    """The fields of config.json, with a vision tower that can be found from any folder."""
    fields = json.loads(model.config.to_json_string(use_diff=False))
    fields.pop("quantization_config", None)  # the quantisation of the base in training, not part of the result
    tower = model.get_vision_tower()
    if tower is not None and Path(tower.source).is_dir():
        fields["mm_vision_tower"] = str(Path(tower.source).resolve())
    return fields


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint by the names of the modules in memory (`vision_tower.vision_tower.encoder...`).

    LLaVA's files have one level more in the tower's names, `vision_model.`, than transformers 5 has modules.
    """
    finish_save(folder)
    if (folder / PROJECTOR_FILE).is_file():
        return read_bin(folder / PROJECTOR_FILE)
    weights = checkpoint.read_weights(folder)
    return {name.replace("vision_tower.vision_model.", "vision_tower."): value for name, value in weights}


def try_saving(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the small files of a checkpoint once and remove them, to find errors in saving before step 1.

    Raises ValueError, one line, when the folder cannot be written or a config cannot be saved.
    """
    trial = folder / ".trial"
    try:
        trial.mkdir(parents=True, exist_ok=True)
        model.config.save_pretrained(trial)
        model.generation_config.save_pretrained(trial)
        tokenizer.save_pretrained(trial)
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--output_dir {folder}: a checkpoint could not be saved there: {reason}") from error
    finally:
        shutil.rmtree(trial, ignore_errors=True)
