"""Command-line arguments of training: LLaVA's names, transformers' names, and the flags removed in transformers 5.

Every field is a `--flag`. A flag that is declared but not supported yet raises a ValueError; none is
silently ignored, except those whose help text says that they have no effect.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers.integrations import is_deepspeed_available
from transformers.utils import is_torch_bf16_gpu_available, is_torch_tf32_available, logging

from flowcut.registry import parse_pruner
from llava.train.anyres import parse_grids

logger = logging.get_logger(__name__)


def option(default: Any, help: str) -> Any:
    """A dataclass field whose `help` appears under `--help`."""
    return field(default=default, metadata={"help": help})


@dataclass
class ModelArguments:
    """The language model, vision tower and projector, and which of them are trained."""

    model_name_or_path: str = option("facebook/opt-125m", "Llama directory or name, or a LLaVA checkpoint")
    version: str = option("v0", "conversation template: plain for pretraining, v1 for LLaVA-1.5 instruction tuning")
    freeze_backbone: bool = option(False, "freeze the language model's layers and embeddings")
    tune_mm_mlp_adapter: bool = option(False, "train the projector only (stage 1) and save only the projector")
    vision_tower: str | None = option(None, "CLIP vision model: local folder or name; default: the checkpoint's own")
    mm_vision_select_layer: int = option(-1, "vision layer that gives the patch features; LLaVA-1.5: -2")
    pretrain_mm_mlp_adapter: str | None = option(None, "mm_projector.bin to start the projector from")
    mm_projector_type: str = option("linear", "linear, mlp{N}x_gelu or identity")
    mm_use_im_start_end: bool = option(False, "wrap every image in <im_start> ... <im_end>")
    mm_use_im_patch_token: bool = option(True, "add <im_patch> to the vocabulary")
    mm_patch_merge_type: Literal["flat", "spatial", "spatial_unpad"] = option(
        "flat", "tokens of an image's tiles: concatenated, or on their grid, without padding (LLaVA-1.6)"
    )
    mm_vision_select_feature: str = option("patch", "patch, or cls_patch to keep the CLS token")
    attn_implementation: str | None = option(
        None, "attention of language model and tower: eager, sdpa, flash_attention_2; default: the fastest available"
    )
    unfreeze_mm_vision_tower: bool = option(False, "train the vision tower too; it is then saved in the checkpoint")
    pruner: str | None = option(
        None,
        "train with pruned visual tokens, such as flowcut:budget=192, which is stored in checkpoints; none: all "
        "tokens; default: the pruner of the checkpoint that training continues from",
    )

    def __post_init__(self) -> None:
        if self.pruner is not None:
            parse_pruner(self.pruner)
        if self.unfreeze_mm_vision_tower and self.tune_mm_mlp_adapter:
            raise ValueError(
                "--unfreeze_mm_vision_tower and --tune_mm_mlp_adapter exclude each other: the latter trains and saves "
                "the projector only; drop one of them"
            )


@dataclass
class DataArguments:
    """Paths of the samples, and the preparation of their images."""

    data_path: str | None = option(None, "JSON list of training samples in LLaVA's format")
    eval_data_path: str | None = option(None, "JSON list of samples for the evaluation loss (with --eval_strategy)")
    lazy_preprocess: bool = option(False, "no effect: samples are always prepared on demand")
    is_multimodal: bool = option(False, "no effect: set by the presence of a vision tower")
    image_folder: str | None = option(None, "folder to which the samples' image paths are relative")
    image_aspect_ratio: Literal["square", "pad", "anyres"] = option(
        "square", "square (centre crop), pad (to a square, with the mean colour), or anyres (tiles, as LLaVA-1.6)"
    )
    image_grid_pinpoints: str | None = option(
        None, 'with anyres: canvas sizes (width, height), such as "[(336, 672), (672, 336), (672, 672)]"'
    )
    skip_bad_samples: bool = option(False, "replace unusable samples by the next usable one and count them")

    # set at run time
    image_processor: Any = field(default=None, init=False)
    image_tokens: int = field(default=1, init=False)
    tile_count: Any = field(default=None, init=False)  # TileCount, with anyres
    mm_use_im_start_end: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.image_grid_pinpoints is not None:
            parse_grids(self.image_grid_pinpoints)
            if self.image_aspect_ratio != "anyres":
                logger.warning(f"--image_aspect_ratio {self.image_aspect_ratio}: --image_grid_pinpoints has no effect")


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' TrainingArguments with LLaVA's fields and defaults, and the flags of transformers 4.

    On a machine without an accelerator training runs on the CPU, where `--bf16 True` means autocast over float32
    weights. `--tf32` and `--bf16` on a device that lacks them become a warning.
    """

    cache_dir: str | None = option(None, "where downloaded models are kept")
    optim: str = option("adamw_torch", "optimizer, any of transformers' names")
    remove_unused_columns: bool = option(False, "must stay False: the collator needs every column")
    freeze_mm_mlp_adapter: bool = option(False, "do not train the projector")
    mpt_attn_impl: str = option("triton", "no effect: MPT models are not supported")
    model_max_length: int = option(512, "longest sequence in tokens: of the text, and again after images are inserted")
    double_quant: bool = option(True, "with --bits 4: quantise the quantisation constants too")
    quant_type: Literal["nf4", "fp4"] = option("nf4", "with --bits 4: data type")
    bits: Literal[4, 8, 16] = option(16, "with --lora_enable True, 4 or 8 quantise the frozen language model")
    lora_enable: bool = option(False, "train LoRA on the language model's linear layers, and the projector")
    lora_r: int = option(64, "LoRA's rank")
    lora_alpha: int = option(16, "LoRA's scale is this over the rank")
    lora_dropout: float = option(0.05, "dropout before LoRA")
    lora_weight_path: str = option("", "folder of an adapter to start from, of the same base and rank")
    lora_bias: Literal["none", "all", "lora_only"] = option("none", "which biases LoRA trains")
    mm_projector_lr: float | None = option(None, "separate learning rate of the projector")
    mm_vision_tower_lr: float | None = option(None, "separate learning rate of the vision tower, if it is unfrozen")
    group_by_modality_length: bool = option(False, "batches of samples with similar modality and length")
    loss_average: Literal["micro_batch", "token"] = option(
        "micro_batch",
        "micro_batch: mean over micro-batches of their mean token loss (LLaVA); "
        "token: mean over all tokens of the accumulated global batch",
    )

    dry_run: bool = option(False, "list everything that is wrong with flags and files, and train nothing")

    # flags of transformers 4
    evaluation_strategy: str | None = option(None, "old name of --eval_strategy")
    warmup_ratio: float | None = option(None, "warm-up as a share of all steps; now --warmup_steps below 1")
    group_by_length: bool = option(False, "old name of --train_sampling_strategy group_by_length")
    no_cuda: bool = option(False, "old name of --use_cpu")
    logging_dir: str | None = option(None, "folder of the tensorboard logs")
    save_safetensors: bool = option(True, "must be True: transformers 5 writes nothing else")
    overwrite_output_dir: bool = option(False, "start from the beginning even if --output_dir has checkpoints")
    half_precision_backend: str = option("auto", "no effect: torch's autocast is the only one")

    def __post_init__(self) -> None:
        self._translate_old_spellings()
        self._refuse_unsupported()
        self._adapt_to_device()
        super().__post_init__()

    def _translate_old_spellings(self) -> None:
        if self.evaluation_strategy is not None:
            self.eval_strategy = self.evaluation_strategy
        if self.warmup_ratio is not None:
            if not 0 <= self.warmup_ratio < 1:
                raise ValueError(f"--warmup_ratio {self.warmup_ratio}: give a share of all steps, from 0 to below 1")
            # LLaVA's scripts give only the ratio; as in transformers 4, steps take precedence if both are given
            if not self.warmup_steps:
                self.warmup_steps = self.warmup_ratio
        if self.group_by_length:
            self.train_sampling_strategy = "group_by_length"
        if self.logging_dir is not None:
            os.environ.setdefault("TENSORBOARD_LOGGING_DIR", self.logging_dir)  # transformers 5 reads only this
        self.use_cpu = self.use_cpu or self.no_cuda

    def _refuse_unsupported(self) -> None:
        if not self.save_safetensors:
            raise ValueError("--save_safetensors False: checkpoints are always safetensors; drop the flag")
        if self.remove_unused_columns:
            raise ValueError("--remove_unused_columns True would drop the images; drop the flag")
        if self.deepspeed is not None:
            own_rates = [rate for rate in (self.mm_projector_lr, self.mm_vision_tower_lr) if rate is not None]
            check_deepspeed(self.deepspeed, bool(own_rates))

    def _adapt_to_device(self) -> None:
        if not torch.accelerator.is_available():
            self.use_cpu = True
        if self.tf32 and (self.use_cpu or not is_torch_tf32_available()):
            logger.warning("--tf32 True: this device has no TF32; the flag has no effect")
            self.tf32 = None
        if self.bf16 and not self.use_cpu and not is_torch_bf16_gpu_available():
            logger.warning("--bf16 True: this device has no bfloat16; training in float32 (--fp16 True may be faster)")
            self.bf16 = False


def check_deepspeed(config: str | dict, own_rate: bool) -> None:
    """Raise ValueError, one line, unless DeepSpeed is installed and `--deepspeed` names a configuration that works
    here.

    own_rate: whether a part of the model has a separate learning rate.
    """
    if not is_deepspeed_available():
        raise ValueError("--deepspeed needs the deepspeed package; pip install deepspeed, or drop the flag")
    fields = read_deepspeed(config)
    zero = fields.get("zero_optimization", {})
    if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        raise ValueError(
            f'--deepspeed {config}: without "stage3_gather_16bit_weights_on_model_save": true under '
            f'"zero_optimization" a checkpoint would hold no weights; add it, or use ./scripts/zero3.json'
        )
    if own_rate and "optimizer" in fields:
        raise ValueError(
            f'--deepspeed {config}: with an "optimizer" section --mm_projector_lr and --mm_vision_tower_lr have no '
            f"effect; remove the section, so that --optim and the flags hold"
        )
    if "scheduler" in fields:
        logger.warning(f'--deepspeed {config}: its "scheduler" section replaces --lr_scheduler_type')


def read_deepspeed(config: str | dict) -> dict[str, Any]:
    """A DeepSpeed configuration, given as dict, JSON text or file name. Raises ValueError, one line."""
    if isinstance(config, dict):
        return config
    if not config.lstrip().startswith("{") and not Path(config).is_file():
        raise ValueError(f"--deepspeed {config}: no such file; give a JSON file such as ./scripts/zero2.json")
    try:
        return json.loads(config if config.lstrip().startswith("{") else Path(config).read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"--deepspeed {config} is not JSON: {error}") from error


def zero_stage(config: str | dict | None) -> int:
    """The ZeRO stage (0 to 3) of a DeepSpeed configuration; 0 without one."""
    return read_deepspeed(config).get("zero_optimization", {}).get("stage", 0) if config else 0
