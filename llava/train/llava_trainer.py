"""transformers' Trainer with LLaVA's sampling order, learning-rate groups, loss average and checkpoint layout."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Sampler
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.utils import logging

from llava.model.builder import save_llava_checkpoint
from llava.train.arguments import TrainingArguments
from llava.train.sampler import (
    LengthGroupedSampler,
    get_length_grouped_indices,
    get_modality_length_grouped_indices,
    split_to_even_chunks,
)

__all__ = [
    "LLaVATrainer",
    "LengthGroupedSampler",
    "get_length_grouped_indices",
    "get_modality_length_grouped_indices",
    "split_to_even_chunks",
]

logger = logging.get_logger(__name__)

PROJECTOR_FILE = "mm_projector.bin"
TOWER, PROJECTOR = "vision_tower", "mm_projector"


class LLaVATrainer(transformers.Trainer):
    """Trains a LLaVA model with `llava.train.arguments.TrainingArguments`.

    `tokenizer=` is accepted for `processing_class=`. With `tune_mm_mlp_adapter` a checkpoint holds only what was
    trained (`config.json` and `mm_projector.bin`: the projector, and the embeddings if image marks are learned), else
    the whole model in LLaVA's layout; in both cases with everything that the Trainer needs to resume.
    """

    args: TrainingArguments
    model: Any
    train_dataset: Any

    def __init__(self, *args: Any, tokenizer: Any = None, tune_mm_mlp_adapter: bool = False, **kwargs: Any) -> None:
        if tokenizer is not None:
            kwargs.setdefault("processing_class", tokenizer)
        super().__init__(*args, **kwargs)
        self.tune_mm_mlp_adapter = tune_mm_mlp_adapter
        self.model_accepts_loss_kwargs = self.args.loss_average == "token"

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        by_modality = self.args.group_by_modality_length
        if not by_modality and self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(dataset)
        return LengthGroupedSampler(
            self.args.train_batch_size,
            world_size=self.args.world_size * self.args.gradient_accumulation_steps,
            lengths=dataset.modality_lengths if by_modality else dataset.lengths,
            group_by_modality=by_modality,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer over groups by learning rate (tower, projector, rest) and weight decay (weights, the rest)."""
        model = self.model if model is None else model
        if self.optimizer is None:
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
            settings.setdefault("params", self.parameter_groups(model))
            self.optimizer_cls_and_kwargs = (optimizer_class, settings)
        return super().create_optimizer(model)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Trainable parameters by learning rate and decay; biases and norms do not decay. No group is empty."""
        decaying = set(self.get_decay_parameter_names(model))
        special = {TOWER: self.args.mm_vision_tower_lr, PROJECTOR: self.args.mm_projector_lr}
        groups: dict[tuple[str, bool], dict[str, Any]] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            part = next((part for part, rate in special.items() if part in name and rate is not None), "")
            decay = name in decaying
            rate = special.get(part, self.args.learning_rate)
            settings = {"lr": rate, "weight_decay": self.args.weight_decay if decay else 0.0}
            groups.setdefault((part, decay), {"params": [], **settings})["params"].append(parameter)
        return list(groups.values())

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir or ".")
        if not self.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)
        model.config.use_cache = True  # whoever loads the checkpoint wants to generate
        if self.tune_mm_mlp_adapter:
            model.config.save_pretrained(folder)
            weights = model.state_dict() if state_dict is None else state_dict
            trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
            save_aside({name: weights[name].cpu() for name in trained}, folder)
        else:
            save_llava_checkpoint(model, self.processing_class, folder, state_dict=state_dict)
        model.config.use_cache = self.args.use_cache
        torch.save(self.args, folder / TRAINING_ARGS_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model = self.model if model is None else model
        weights = read_weights(Path(resume_from_checkpoint))
        missing = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        missing = [name for name in missing if name not in weights]
        if missing:
            raise ValueError(
                f"{resume_from_checkpoint} lacks {len(missing)} weights that are being trained, such as {missing[0]}; "
                "resume with the flags of the interrupted run, or give another --output_dir"
            )
        model.load_state_dict(weights, strict=False)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint by the names of the modules in memory (`vision_tower.vision_tower.encoder...`).

    LLaVA's files have one level more in the tower's names, `vision_model.`, than transformers 5 has modules.
    """
    if (folder / PROJECTOR_FILE).is_file():
        return torch.load(folder / PROJECTOR_FILE, map_location="cpu", weights_only=True)
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights.update(load_file(file))
    return {name.replace("vision_tower.vision_model.", "vision_tower."): value for name, value in weights.items()}


def save_aside(weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Write `mm_projector.bin`, whole or not at all."""
    partial = folder / f"{PROJECTOR_FILE}.partial"
    torch.save(weights, partial)
    partial.replace(folder / PROJECTOR_FILE)


def last_complete_checkpoint(output_dir: str | None) -> str | None:
    """The newest `checkpoint-N` in `output_dir` that was saved to its end, or None.

    The Trainer writes the state file last; a folder without a readable one was interrupted and is passed over.
    """
    numbered = [
        (int(folder.name.rpartition("-")[2]), folder)
        for folder in Path(output_dir or ".").glob("checkpoint-*")
        if folder.name.rpartition("-")[2].isdigit()
    ]
    for _, folder in sorted(numbered, reverse=True):
        try:
            json.loads((folder / TRAINER_STATE_NAME).read_text())
        except (OSError, json.JSONDecodeError):
            logger.warning(f"{folder} is not a complete checkpoint (the save was interrupted); it is passed over")
            continue
        return str(folder)
    return None
