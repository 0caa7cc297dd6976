"""Train a LLaVA model: `python -m llava.train.train <flags>`, with LLaVA's flags and its two stages.

Stage 1 (`--tune_mm_mlp_adapter True --version plain`) trains the projector on captions. Stage 2 (`--version v1
--pretrain_mm_mlp_adapter .../mm_projector.bin`) trains projector and language model on dialogues, and the vision tower
too with `--unfreeze_mm_vision_tower True`; with `--lora_enable True` LoRA is trained instead of the language model's
weights, which `--bits 4` quantises. An interrupted run continues from its last checkpoint. With `--pruner`
the language model gets pruned visual tokens, and checkpoints store the pruner.
"""

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import HfArgumentParser, PreTrainedTokenizerBase
from transformers.utils import logging

from flowcut import Pruner, attach
from flowcut.cli.command_line import Parser, print_result, program, refuse, typed
from flowcut.registry import parse_pruner, pruner_to_text
from llava.conversation import Conversation, conv_templates
from llava.model.builder import load_tokenizer
from llava.model.checkpoint import local_folder, read_config
from llava.model.loading import check_tower
from llava.model.lora import is_lora_folder
from llava.model.partitioned import full_size, is_partitioned, whole
from llava.model.remembered_pruner import remember, remembered_pruner
from llava.train.anyres import configure_anyres, warn_of_other_pictures
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments
from llava.train.data import (
    DataCollatorForSupervisedDataset,
    LazySupervisedDataset,
    make_supervised_data_module,
)
from llava.train.dry_run import examine
from llava.train.flags import check_flags, read_every_flag, read_flags
from llava.train.language_model import compute_type, load_model, settle_types
from llava.train.learned import refuse_sharding
from llava.train.llava_trainer import LLaVATrainer
from llava.train.lora import add_lora, check_lora_folder, find_all_linear_names, load_lora, prepare_quantised
from llava.train.preprocess import (
    BadSample,
    preprocess,
    preprocess_llama_2,
    preprocess_mpt,
    preprocess_multimodal,
    preprocess_plain,
    preprocess_v1,
)
from llava.train.resuming import chosen_checkpoint
from llava.train.saving import (
    BadCheckpoint,
    get_mm_adapter_state_maybe_zero_3,
    get_peft_state_maybe_zero_3,
    get_peft_state_non_lora_maybe_zero_3,
    maybe_zero_3,
    try_saving,
)

__all__ = [
    "DataArguments",
    "DataCollatorForSupervisedDataset",
    "LazySupervisedDataset",
    "ModelArguments",
    "TrainingArguments",
    "build_trainer",
    "find_all_linear_names",
    "get_mm_adapter_state_maybe_zero_3",
    "get_peft_state_maybe_zero_3",
    "get_peft_state_non_lora_maybe_zero_3",
    "main",
    "make_supervised_data_module",
    "maybe_zero_3",
    "prepare",
    "preprocess",
    "preprocess_llama_2",
    "preprocess_mpt",
    "preprocess_multimodal",
    "preprocess_plain",
    "preprocess_v1",
    "rank0_print",
    "run",
    "safe_save_model_for_hf_trainer",
    "smart_tokenizer_and_embedding_resize",
    "train",
]

logger = logging.get_logger(__name__)

ARGUMENTS: list[Any] = [ModelArguments, DataArguments, TrainingArguments]


def train(attn_implementation: str | None = None, argv: list[str] | None = None) -> LLaVATrainer:
    """Parse the flags (default: the command line), train, and save the result to `--output_dir`.

    Returns the trainer, whose `state.log_history` holds the losses. Raises ValueError for invalid flags or
    data; `BadSample` names the sample.
    """
    return run(prepare(attn_implementation, argv))


def prepare(attn_implementation: str | None = None, argv: list[str] | None = None) -> LLaVATrainer:
    """A trainer with flags, model and data, ready to start."""
    return build_trainer(*parse(argv), attn_implementation)


def parse(argv: list[str] | None = None) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """The flags. Raises ValueError, one line, for values that cannot be."""
    parser: Any = HfArgumentParser(ARGUMENTS, prog=typed(), description=__doc__)
    parser.error = partial(Parser.error, parser)
    return read_flags(parser, argv)


def run(trainer: LLaVATrainer) -> LLaVATrainer:
    """Train, from `resume_from_checkpoint` (see `build_trainer`) if there is one, and save."""
    arguments = trainer.args
    checkpoint = arguments.resume_from_checkpoint
    if checkpoint:
        rank0_print(f"resuming from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_state()
    safe_save_model_for_hf_trainer(trainer, arguments.output_dir)
    if trainer.train_dataset.skipped:
        rank0_print(f"unusable samples were replaced {trainer.train_dataset.skipped} times; the log names them")
    return trainer


def build_trainer(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    attn_implementation: str | None = None,
) -> LLaVATrainer:
    """A trainer with model, tokenizer and data according to the arguments.

    `attn_implementation` is the default of `--attn_implementation`. The default of `--resume_from_checkpoint` is the
    last whole checkpoint in the output folder, if there is one.
    """
    check_flags(model_args, training_args)
    model_args.attn_implementation = model_args.attn_implementation or attn_implementation
    choose_checkpoint(model_args, training_args)
    pruner = choose_pruner(model_args, training_args)
    model = load_model(model_args, training_args)
    if training_args.bits != 16:
        model = prepare_quantised(model, training_args)
    tokenizer = load_tokenizer(model_args.model_name_or_path, training_args.cache_dir)
    tokenizer.model_max_length = training_args.model_max_length
    tokenizer.padding_side = "right"
    conversation = choose_conversation(model_args.version, tokenizer, model)
    # New weights are drawn before the Trainer sets its seed, and equal on every process and with every ZeRO stage.
    transformers.set_seed(training_args.seed)
    add_vision(model, tokenizer, model_args, data_args, training_args)
    if training_args.lora_enable:
        transformers.set_seed(training_args.seed)
        model = add_lora(model, model_args, training_args)
    choose_trainable(model, model_args, training_args)
    settle_types(model, training_args)
    if training_args.lora_weight_path and not training_args.resume_from_checkpoint:
        load_lora(model, Path(training_args.lora_weight_path))
    add_pruner(model, pruner, data_args, training_args.deepspeed)
    data_module = make_supervised_data_module(tokenizer, data_args, conversation)
    trainer = LLaVATrainer(
        model=model,
        tokenizer=tokenizer,
        args=training_args,
        tune_mm_mlp_adapter=model_args.tune_mm_mlp_adapter,
        **data_module,
    )
    if training_args.should_save:
        try_saving(model, tokenizer, Path(str(training_args.output_dir)))
    rank0_print(summary(trainer))
    return trainer


def choose_checkpoint(model_args: ModelArguments, training_args: TrainingArguments) -> None:
    """Decide from which checkpoint to continue, if any.

    Raises ValueError, one line, when there is no such one, or its run is of another kind.
    """
    training_args.resume_from_checkpoint = chosen_checkpoint(
        training_args.resume_from_checkpoint, training_args.output_dir, training_args.overwrite_output_dir
    )
    resumed = training_args.resume_from_checkpoint
    folder = resumed or training_args.lora_weight_path
    if training_args.lora_enable and folder:
        check_lora_folder(Path(folder), model_args, training_args)
    if resumed and not training_args.lora_enable and is_lora_folder(Path(resumed)):
        raise ValueError(f"{resumed} was trained with LoRA; add --lora_enable True, or start in another --output_dir")


def summary(trainer: LLaVATrainer) -> str:
    """A summary of the run in one line: weights, samples, steps, devices and batch."""
    arguments, parameters = trainer.args, list(trainer.model.parameters())
    trained = sum(full_size(parameter) for parameter in parameters if parameter.requires_grad)
    loader = trainer.get_train_dataloader()
    steps = trainer.set_initial_training_values(arguments, loader)[-1]
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return (
        f"training {trained:,} of {sum(map(full_size, parameters)):,} parameters on {len(trainer.train_dataset):,} "
        f"samples for {steps:,} steps of {batch} samples ({arguments.world_size} x {arguments.device.type}, "
        f"{arguments.train_batch_size} at once, {arguments.gradient_accumulation_steps} accumulated)"
    )


def choose_pruner(model_args: ModelArguments, training_args: TrainingArguments) -> Pruner | None:
    """The pruner of `--pruner`, or else the one stored in a starting point of the run; prints which.

    Raises ValueError, one line, when the stored one is invalid.
    """
    if model_args.pruner is not None:
        wanted = parse_pruner(model_args.pruner)
        rank0_print(f"training with {'all visual tokens' if wanted is None else pruner_to_text(wanted)}")
        return wanted
    for folder in starting_points(model_args, training_args):
        remembered = remembered_pruner(read_config(folder), folder)
        if remembered is not None:
            rank0_print(f"training with {pruner_to_text(remembered)}, as {folder} was; --pruner none turns that off")
            return remembered
    return None


def starting_points(model_args: ModelArguments, training_args: TrainingArguments) -> list[Path]:
    """Folders whose config.json describes the training of a run's initial weights: model, then projector.

    A checkpoint to resume from is the only one, because it was made from the others.
    """
    resumed = Path(training_args.resume_from_checkpoint or "")
    if training_args.resume_from_checkpoint and (resumed / "config.json").is_file():
        return [resumed]
    folders = [local_folder(model_args.model_name_or_path, training_args.cache_dir)]
    if model_args.pretrain_mm_mlp_adapter is not None:
        beside = Path(model_args.pretrain_mm_mlp_adapter).parent
        folders += [beside] if (beside / "config.json").is_file() else []
    return folders


def add_pruner(model: Any, pruner: Pruner | None, data_args: DataArguments, deepspeed: Any = None) -> None:
    """Attach the pruner for the run and store it in the model's config, and so in every checkpoint.

    Raises ValueError, one line, when it does not fit the model.
    """
    remember(model.config, pruner)
    if pruner is None:
        return
    if model.get_vision_tower() is None:
        raise ValueError(
            f"there is no vision tower, so {pruner_to_text(pruner)} has nothing to drop; give --vision_tower, or "
            f"--pruner none"
        )
    handle = attach(model, pruner)
    refuse_sharding(handle, deepspeed)
    if not handle.cuts_language:  # else dropped tokens still count in the sequence length
        data_args.image_tokens = min(data_args.image_tokens, pruner.tokens_of(data_args.image_tokens))
    if data_args.tile_count is not None:
        data_args.tile_count = replace(data_args.tile_count, pruner=pruner)


def choose_conversation(version: str, tokenizer: PreTrainedTokenizerBase, model: Any) -> Conversation:
    """Set the template named by `--version`, and its pad token."""
    if version == "v0" and tokenizer.pad_token is None:
        smart_tokenizer_and_embedding_resize({"pad_token": "[PAD]"}, tokenizer, model)
    elif version != "v0":
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return conv_templates[version]


def add_vision(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
) -> None:
    """Set up vision tower, projector and image tokens, and their fields in the checkpoint's config."""
    config = model.config
    model_args.vision_tower = model_args.vision_tower or getattr(config, "mm_vision_tower", None)
    config.tokenizer_padding_side = tokenizer.padding_side
    config.tokenizer_model_max_length = tokenizer.model_max_length
    if model_args.vision_tower is None:
        if model_args.tune_mm_mlp_adapter or model_args.unfreeze_mm_vision_tower:
            raise ValueError("there is no vision tower, so there is no projector to train; give --vision_tower")
        return
    adapter = model_args.pretrain_mm_mlp_adapter
    if adapter is not None and not Path(adapter).is_file():
        raise ValueError(f"--pretrain_mm_mlp_adapter {adapter}: no such file; give the mm_projector.bin of stage 1")
    warn_of_other_pictures(config, model_args, data_args)
    brings_own_tower = getattr(config, "unfreeze_mm_vision_tower", False)
    model.get_model().initialize_vision_modules(model_args)
    check_tower(model, model_args.model_name_or_path)
    # a trained tower differs from its source, so every later checkpoint has to include it
    config.unfreeze_mm_vision_tower = brings_own_tower or model_args.unfreeze_mm_vision_tower
    config.image_aspect_ratio = data_args.image_aspect_ratio
    config.tune_mm_mlp_adapter = model_args.tune_mm_mlp_adapter
    config.freeze_mm_mlp_adapter = training_args.freeze_mm_mlp_adapter
    config.mm_projector_lr = training_args.mm_projector_lr
    config.mm_vision_tower_lr = training_args.mm_vision_tower_lr
    config.mm_use_im_start_end = model_args.mm_use_im_start_end
    config.mm_use_im_patch_token = model_args.mm_use_im_patch_token
    if model_args.version != "plain":
        config.conv_version = model_args.version  # so that inference need not infer the template from a folder's name
    model.initialize_vision_tokenizer(model_args, tokenizer)
    tower = model.get_vision_tower()
    if data_args.image_aspect_ratio == "anyres":
        configure_anyres(config, tower, data_args)
    if model_args.attn_implementation is not None:
        tower.vision_tower.set_attn_implementation(model_args.attn_implementation)
    halve = not training_args.use_cpu and not config.unfreeze_mm_vision_tower
    if not any(map(is_partitioned, tower.parameters())):  # ZeRO-3 has chosen the type, and tensors are empty here
        tower.to(dtype=compute_type(training_args) if halve or training_args.deepspeed else torch.float32)
    data_args.image_processor = tower.image_processor
    data_args.image_tokens = tower.num_patches
    data_args.is_multimodal = True
    data_args.mm_use_im_start_end = model_args.mm_use_im_start_end


def choose_trainable(model: Any, model_args: ModelArguments, training_args: TrainingArguments) -> None:
    """Freeze and unfreeze language model, projector and tower according to the flags."""
    body = model.get_model()
    tower = model.get_vision_tower()
    projector = getattr(body, "mm_projector", None)
    if training_args.lora_enable and model_args.mm_use_im_start_end:
        model.get_input_embeddings().requires_grad_(True)  # LoRA has frozen the rows of the two new tokens
    if model_args.freeze_backbone:
        body.requires_grad_(False)
    if model_args.tune_mm_mlp_adapter:
        model.requires_grad_(False)
        if model_args.mm_use_im_start_end:
            model.get_input_embeddings().requires_grad_(True)  # the rows of the two new tokens have to be learned
    if projector is not None:
        projector.requires_grad_(not training_args.freeze_mm_mlp_adapter)
    if hasattr(body, "image_newline"):  # trained with the projector, unless no row of an image ends with it
        used = "unpad" in model.config.mm_patch_merge_type
        body.image_newline.requires_grad_(used and not training_args.freeze_mm_mlp_adapter)
    if tower is not None:
        tower.requires_grad_(False)
        if model_args.unfreeze_mm_vision_tower:
            # The layers after the feature layer get no gradient, for which DDP would wait
            vision_model, used = tower.vision_tower, tower.layers_run
            for part in (vision_model.embeddings, vision_model.pre_layrnorm, *vision_model.encoder.layers[:used]):
                part.requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("the flags freeze every weight; drop one of the freeze flags")


def smart_tokenizer_and_embedding_resize(
    special_tokens_dict: dict[str, Any], tokenizer: PreTrainedTokenizerBase, model: Any
) -> None:
    """Add special tokens; their embeddings, input and output, start as the mean of the old ones."""
    added = tokenizer.add_special_tokens(special_tokens_dict)
    if not added:
        return
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
        with whole([embeddings.weight], write=True):
            weight = embeddings.weight.data
            weight[-added:] = weight[:-added].mean(dim=0, keepdim=True)


def safe_save_model_for_hf_trainer(trainer: transformers.Trainer, output_dir: str | None) -> None:
    """Save projector, LoRA or whole model, according to the flags (see `LLaVATrainer`).

    All processes have to call it, because each has parts of the weights under ZeRO-3; the first one writes.
    """
    trainer.save_model(output_dir)


def rank0_print(*values: Any) -> None:
    """Print on the first process only."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(*values, flush=True)


@program
def main(argv: list[str] | None = None, attn_implementation: str | None = None) -> None:
    """Entry point: `train`, with invalid flags, models and samples as one line instead of a traceback."""
    given = [str(token) for token in (sys.argv[1:] if argv is None else argv)]
    if any(token.startswith("--dry_run") for token in given):
        groups, wrong = read_every_flag(ARGUMENTS, given)
        if not examine(wrong, *groups):
            return
    arguments = parse(given)
    trainer = build_trainer(*arguments, attn_implementation)
    if arguments[2].dry_run:
        return rank0_print("dry run: nothing is wrong, and nothing was trained")
    try:
        ended = run(trainer).state
        last = ended.log_history[-1] if ended.log_history else {}
        if trainer.is_world_process_zero():
            print_result({"output_dir": trainer.args.output_dir, "steps": ended.global_step, **last})
    except (BadSample, BadCheckpoint) as error:
        # from a worker process the message is wrapped in that process's traceback
        refuse(f"error: {str(error).rpartition('BadSample: ')[2].strip()}")


if __name__ == "__main__":
    main()
