"""transformers' Trainer with LLaVA's sampling order, learning-rate groups, loss average and checkpoint layout."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils.data import Sampler
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from flowcut.hooks.learned import LEARNED
from llava.model.builder import save_llava_checkpoint
from llava.model.checkpoint import listed
from llava.train.arguments import TrainingArguments
from llava.train.learned import load_learned, save_learned
from llava.train.lora import load_lora
from llava.train.sampler import (
    LengthGroupedSampler,
    get_length_grouped_indices,
    get_modality_length_grouped_indices,
    split_to_even_chunks,
)
from llava.train.saving import (
    BadCheckpoint,
    has_lora,
    read_weights,
    save_lora,
    save_projector,
    trained_weights,
)

__all__ = [
    "LLaVATrainer",
    "LengthGroupedSampler",
    "get_length_grouped_indices",
    "get_modality_length_grouped_indices",
    "split_to_even_chunks",
]

UNFINISHED = ".unfinished"
TOWER, PROJECTOR = "vision_tower", "mm_projector"


class LLaVATrainer(transformers.Trainer):
    """Trains a LLaVA model with `llava.train.arguments.TrainingArguments`, or LLaVA's own class of arguments.

    `tokenizer=` is accepted for `processing_class=`. With `tune_mm_mlp_adapter` a checkpoint has only the trained
    weights (`config.json` and `mm_projector.bin`: the projector, and the embeddings if image tokens are learned); with
    LoRA the adapter and the other trained weights; else the whole model in LLaVA's layout. In every case it has
    everything that the Trainer needs to resume.
    """

    args: TrainingArguments
    model: Any
    train_dataset: Any

    def __init__(self, *args: Any, tokenizer: Any = None, tune_mm_mlp_adapter: bool = False, **kwargs: Any) -> None:
        if tokenizer is not None:
            kwargs.setdefault("processing_class", tokenizer)
        super().__init__(*args, **kwargs)
        self.tune_mm_mlp_adapter = tune_mm_mlp_adapter or self._option("tune_mm_mlp_adapter", False)
        self._unfinished = False  # whether a checkpoint is being written to a temporary folder
        self.model_accepts_loss_kwargs = self._option("loss_average", "micro_batch") == "token"

    def _option(self, name: str, default: Any) -> Any:
        """A field of the arguments; LLaVA's default where they are of another program's class, such as LLaVA's own."""
        return getattr(self.args, name, default)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        by_modality = self._option("group_by_modality_length", False)
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
        """The optimizer over groups by learning rate (tower, projector, others) and weight decay (weights, others)."""
        model = self.model if model is None else model
        if self.optimizer is None:
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
            settings.setdefault("params", self.parameter_groups(model))
            self.optimizer_cls_and_kwargs = (optimizer_class, settings)
        return super().create_optimizer(model)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Trainable parameters by learning rate and decay; biases and norms do not decay. No group is empty."""
        decaying = set(self.get_decay_parameter_names(model))
        special = {
            TOWER: self._option("mm_vision_tower_lr", None),
            PROJECTOR: self._option("mm_projector_lr", None),
        }
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

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the trained weights to `output_dir`; every process takes part, the first one writes."""
        if not self.saves_a_part:
            super().save_model(output_dir, _internal_call)
            return
        weights = trained_weights(self.accelerator.unwrap_model(self.model))
        self._save(output_dir, weights)

    @property
    def saves_a_part(self) -> bool:
        """Whether a checkpoint has only the trained weights (projector or LoRA), and not the base."""
        return self.tune_mm_mlp_adapter or has_lora(self.accelerator.unwrap_model(self.model))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir or ".")
        if not self.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)
        model.config.use_cache = True  # the loaded checkpoint is used for generation
        if not self.saves_a_part:
            save_llava_checkpoint(model, self.processing_class, folder, state_dict=state_dict)
        else:
            weights = trained_weights(model) if state_dict is None else state_dict
            (save_lora if has_lora(model) else save_projector)(model, weights, folder)
        save_learned(model, folder)
        model.config.use_cache = self._option("use_cache", False)
        torch.save(self.args, folder / TRAINING_ARGS_NAME)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As transformers', but in another folder until every process has written its part, then renamed."""
        final = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        aside = final.parent / UNFINISHED
        if self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._unfinished = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._unfinished = False
        best = self._best_checkpoint(final)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if best != self.state.best_model_checkpoint:
                self.state.best_model_checkpoint = best
                self.state.save_to_json(str(aside / final.name / TRAINER_STATE_NAME))
            shutil.rmtree(final, ignore_errors=True)  # an incomplete one, or one of the run that is being overwritten
            (aside / final.name).replace(final)
            aside.rmdir()
            limit = self.args.save_total_limit
            rotate_checkpoints(str(final.parent), limit, self.state.best_model_checkpoint, use_mtime=True)
        self.state.best_model_checkpoint = best
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / UNFINISHED) if self._unfinished else folder

    def _best_checkpoint(self, final: Path) -> str | None:
        """The final folder of the best checkpoint, which may be the one that is being written."""
        step = self.state.best_global_step
        if not step:
            return self.state.best_model_checkpoint
        best = final.parent / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        return str(best) if best == final or best.is_dir() else None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model = self.model if model is None else model
        try:
            load_learned(model, Path(resume_from_checkpoint))
        except (OSError, ValueError) as error:
            raise BadCheckpoint(" ".join(str(error).split())) from error
        if has_lora(model):
            try:
                load_lora(model, Path(resume_from_checkpoint))
            except ValueError as error:
                raise BadCheckpoint(str(error)) from error
            return
        try:
            weights = read_weights(Path(resume_from_checkpoint))
        except ValueError as error:
            raise BadCheckpoint(str(error)) from error
        unknown = set(weights) - {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
        unknown = {name for name in unknown if "rotary_emb." not in name and "position_ids" not in name}
        if unknown:
            raise BadCheckpoint(
                f"{resume_from_checkpoint} has {len(unknown)} weights that this run does not have: {listed(unknown)}; "
                "resume with the flags of the interrupted run, or give another --output_dir"
            )
        missing = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        missing = [name for name in missing if name not in weights and LEARNED not in name]
        if missing:
            raise BadCheckpoint(
                f"{resume_from_checkpoint} lacks {len(missing)} weights that are being trained, such as {missing[0]}; "
                "resume with the flags of the interrupted run, or give another --output_dir"
            )
        try:
            model.load_state_dict(weights, strict=False)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise BadCheckpoint(f"{resume_from_checkpoint} is of a model of other sizes: {reason}") from error

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with self._one_line(checkpoint, "optimizer and scheduler"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with self._one_line(checkpoint, "random numbers"):
            super()._load_rng_state(checkpoint)

    @contextmanager
    def _one_line(self, checkpoint: str | None, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # torch and the Trainer raise many kinds
            reason = " ".join(str(error).split())[:300]
            raise BadCheckpoint(
                f"the state of {what} in {checkpoint} cannot be loaded ({type(error).__name__}: {reason}); remove that "
                f"checkpoint, so that the run continues from an older one, or resume with the flags of its run"
            ) from error

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))
