"""Train a LLaVA model: `python -m llava.train.train <flags>`, with LLaVA's flags and its two stages.

Stage 1 (`--tune_mm_mlp_adapter True --version plain`) trains the projector on captions. Stage 2 (`--version v1
--pretrain_mm_mlp_adapter .../mm_projector.bin`) trains projector and language model on dialogues, and the vision tower
too with `--unfreeze_mm_vision_tower True`. A run that was interrupted goes on from its last checkpoint. With `--pruner`
the language model sees pruned visual tokens, and checkpoints remember the pruner.
"""

import os
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import HfArgumentParser, PreTrainedTokenizerBase
from transformers.utils import logging

from flowcut import Pruner, attach
from flowcut.registry import parse_pruner, pruner_to_text
from llava.conversation import Conversation, conv_templates
from llava.model.builder import load_tokenizer
from llava.model.checkpoint import local_folder, read_config
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.language_model.llava_mistral import LlavaMistralForCausalLM
from llava.model.remembered_pruner import remember, remembered_pruner
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments
from llava.train.data import (
    DataCollatorForSupervisedDataset,
    LazySupervisedDataset,
    make_supervised_data_module,
)
from llava.train.llava_trainer import LLaVATrainer, last_complete_checkpoint
from llava.train.preprocess import (
    BadSample,
    preprocess,
    preprocess_llama_2,
    preprocess_mpt,
    preprocess_multimodal,
    preprocess_plain,
    preprocess_v1,
)

__all__ = [
    "DataArguments",
    "DataCollatorForSupervisedDataset",
    "LazySupervisedDataset",
    "ModelArguments",
    "TrainingArguments",
    "build_trainer",
    "main",
    "make_supervised_data_module",
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
MODEL_CLASSES: dict[str, Any] = {
    "LlamaForCausalLM": LlavaLlamaForCausalLM,
    "LlavaLlamaForCausalLM": LlavaLlamaForCausalLM,
    "MistralForCausalLM": LlavaMistralForCausalLM,
    "LlavaMistralForCausalLM": LlavaMistralForCausalLM,
}


def train(attn_implementation: str | None = None, argv: list[str] | None = None) -> LLaVATrainer:
    """Parse the flags (default: the command line), train, and save the result to `--output_dir`.

    Returns the trainer, whose `state.log_history` holds the losses. Raises ValueError for flags or data that cannot
    work; `BadSample` names the sample.
    """
    return run(prepare(attn_implementation, argv))


def prepare(attn_implementation: str | None = None, argv: list[str] | None = None) -> LLaVATrainer:
    """Flags, model and data in a trainer that is ready to start."""
    parser = HfArgumentParser(ARGUMENTS)
    model_args, data_args, training_args = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    return build_trainer(model_args, data_args, training_args, attn_implementation)


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
    """Model, tokenizer and data as the arguments say, in a trainer.

    `attn_implementation` holds where `--attn_implementation` is not given. Without `--resume_from_checkpoint` the last
    complete checkpoint in the output folder is taken for it, if there is one.
    """
    model_args.attn_implementation = model_args.attn_implementation or attn_implementation
    if training_args.resume_from_checkpoint is None and not training_args.overwrite_output_dir:
        training_args.resume_from_checkpoint = last_complete_checkpoint(training_args.output_dir)
    pruner = choose_pruner(model_args, training_args)
    transformers.set_seed(training_args.seed)  # a new projector's weights are drawn before the Trainer sets its seed
    model = load_model(model_args, training_args)
    tokenizer = load_tokenizer(model_args.model_name_or_path, training_args.cache_dir)
    tokenizer.model_max_length = training_args.model_max_length
    tokenizer.padding_side = "right"
    conversation = choose_conversation(model_args.version, tokenizer, model)
    add_vision(model, tokenizer, model_args, data_args, training_args)
    choose_trainable(model, model_args, training_args)
    add_pruner(model, pruner, data_args)
    data_module = make_supervised_data_module(tokenizer, data_args, conversation)
    trainer = LLaVATrainer(
        model=model,
        tokenizer=tokenizer,
        args=training_args,
        tune_mm_mlp_adapter=model_args.tune_mm_mlp_adapter,
        **data_module,
    )
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    rank0_print(f"training {count:,} parameters on {len(trainer.train_dataset):,} samples")
    return trainer


def choose_pruner(model_args: ModelArguments, training_args: TrainingArguments) -> Pruner | None:
    """The pruner of `--pruner`, or else the one that a starting point of the run remembers; prints which.

    Raises ValueError, one line, when a starting point remembers something that cannot be understood.
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
    """Folders whose config.json tells how the weights that a run starts from were trained: model, then projector.

    A checkpoint to resume from stands alone, because it was made from the others.
    """
    resumed = Path(training_args.resume_from_checkpoint or "")
    if training_args.resume_from_checkpoint and (resumed / "config.json").is_file():
        return [resumed]
    folders = [local_folder(model_args.model_name_or_path, training_args.cache_dir)]
    if model_args.pretrain_mm_mlp_adapter is not None:
        beside = Path(model_args.pretrain_mm_mlp_adapter).parent
        folders += [beside] if (beside / "config.json").is_file() else []
    return folders


def add_pruner(model: Any, pruner: Pruner | None, data_args: DataArguments) -> None:
    """Attach the pruner for the run and have the model's config, hence every checkpoint, remember it.

    Raises ValueError, one line, when it does not fit the model.
    """
    remember(model.config, pruner)
    if pruner is None:
        return
    if model.get_vision_tower() is None:
        raise ValueError(
            f"there is no vision tower, hence nothing for {pruner_to_text(pruner)} to drop; give --vision_tower, or "
            f"--pruner none"
        )
    handle = attach(model, pruner)
    if not handle.watches_language:  # what is cut inside the language model still takes its place in the sequence
        data_args.image_tokens = min(data_args.image_tokens, pruner.budget)


def load_model(model_args: ModelArguments, training_args: TrainingArguments) -> Any:
    """The language model (from a Llama or a LLaVA checkpoint) as a LLaVA model, in float32.

    float32 holds the weights that the optimizer changes; `--bf16` and `--fp16` are autocast over them. DeepSpeed keeps
    its own float32 copies, so under it the weights are loaded in the compute type.
    """
    dtype = torch.float32
    if training_args.deepspeed and training_args.bf16:
        dtype = torch.bfloat16
    folder = local_folder(model_args.model_name_or_path, training_args.cache_dir)
    fields = read_config(folder)
    architecture = (fields.get("architectures") or ["none"])[0]
    if architecture not in MODEL_CLASSES:
        raise ValueError(f"{folder} is a {architecture}; training takes {', '.join(MODEL_CLASSES)}")
    model_class = MODEL_CLASSES[architecture]
    config = model_class.config_class.from_dict({key: value for key, value in fields.items() if key != "model_type"})
    config._name_or_path = str(folder)  # a tower of the checkpoint's own is looked for in this folder
    model, report = model_class.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        attn_implementation=model_args.attn_implementation,
        output_loading_info=True,
    )
    if report["missing_keys"]:
        raise ValueError(
            f"{folder} lacks {len(report['missing_keys'])} weights of {architecture}, such as "
            f"{min(report['missing_keys'])}; give a whole checkpoint"
        )
    model.config.architectures = [model_class.__name__]  # a projector is saved with this config alone
    return model


def choose_conversation(version: str, tokenizer: PreTrainedTokenizerBase, model: Any) -> Conversation:
    """The template named by `--version` (an unknown name means Vicuna v1), with the pad token that goes with it."""
    if version == "v0" and tokenizer.pad_token is None:
        smart_tokenizer_and_embedding_resize({"pad_token": "[PAD]"}, tokenizer, model)
    elif version != "v0":
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if version not in conv_templates:
        logger.warning(f"--version {version} is no conversation template; using vicuna_v1")
    return conv_templates.get(version, conv_templates["vicuna_v1"])


def add_vision(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
) -> None:
    """Vision tower, projector and image tokens, and what the checkpoint's config must remember of them."""
    config = model.config
    model_args.vision_tower = model_args.vision_tower or getattr(config, "mm_vision_tower", None)
    config.tokenizer_padding_side = tokenizer.padding_side
    config.tokenizer_model_max_length = tokenizer.model_max_length
    if model_args.vision_tower is None:
        if model_args.tune_mm_mlp_adapter or model_args.unfreeze_mm_vision_tower:
            raise ValueError("there is no vision tower, hence no projector to train; give --vision_tower")
        return
    adapter = model_args.pretrain_mm_mlp_adapter
    if adapter is not None and not Path(adapter).is_file():
        raise ValueError(f"--pretrain_mm_mlp_adapter {adapter}: no such file; give the mm_projector.bin of stage 1")
    brings_own_tower = getattr(config, "unfreeze_mm_vision_tower", False)
    model.get_model().initialize_vision_modules(model_args)
    # a tower that was trained once differs from its source for ever: every later checkpoint has to carry it
    config.unfreeze_mm_vision_tower = brings_own_tower or model_args.unfreeze_mm_vision_tower
    config.image_aspect_ratio = data_args.image_aspect_ratio
    config.tune_mm_mlp_adapter = model_args.tune_mm_mlp_adapter
    config.freeze_mm_mlp_adapter = training_args.freeze_mm_mlp_adapter
    config.mm_projector_lr = training_args.mm_projector_lr
    config.mm_vision_tower_lr = training_args.mm_vision_tower_lr
    config.mm_use_im_start_end = model_args.mm_use_im_start_end
    config.mm_use_im_patch_token = model_args.mm_use_im_patch_token
    if model_args.version != "plain":
        config.conv_version = model_args.version  # so that inference need not guess the template from a folder's name
    model.initialize_vision_tokenizer(model_args, tokenizer)
    tower = model.get_vision_tower()
    if model_args.attn_implementation is not None:
        tower.vision_tower.set_attn_implementation(model_args.attn_implementation)
    halve = not training_args.use_cpu and not config.unfreeze_mm_vision_tower
    compute_type = torch.bfloat16 if training_args.bf16 else torch.float16 if training_args.fp16 else torch.float32
    tower.to(dtype=compute_type if halve else torch.float32)
    data_args.image_processor = tower.image_processor
    data_args.image_tokens = tower.num_patches
    data_args.is_multimodal = True
    data_args.mm_use_im_start_end = model_args.mm_use_im_start_end


def choose_trainable(model: Any, model_args: ModelArguments, training_args: TrainingArguments) -> None:
    """Freeze and unfreeze language model, projector and tower as the flags say."""
    body = model.get_model()
    tower = model.get_vision_tower()
    projector = getattr(body, "mm_projector", None)
    if model_args.freeze_backbone:
        body.requires_grad_(False)
    if model_args.tune_mm_mlp_adapter:
        model.requires_grad_(False)
        if model_args.mm_use_im_start_end:
            model.get_input_embeddings().requires_grad_(True)  # the rows of the two new tokens have to be learned
    if projector is not None:
        projector.requires_grad_(not training_args.freeze_mm_mlp_adapter)
    if tower is not None:
        tower.requires_grad_(False)
        if model_args.unfreeze_mm_vision_tower:
            # The features leave before the last layers: those get no gradient, which DDP would wait for
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
        weight = embeddings.weight.data
        weight[-added:] = weight[:-added].mean(dim=0, keepdim=True)


def safe_save_model_for_hf_trainer(trainer: transformers.Trainer, output_dir: str | None) -> None:
    """Save what was trained: projector or whole model, as the trainer's flags say (see `LLaVATrainer`)."""
    trainer.save_model(output_dir)


def rank0_print(*values: Any) -> None:
    """Print on the first process only."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(*values, flush=True)


def main(argv: list[str] | None = None, attn_implementation: str | None = None) -> None:
    """Entry point: `train`, with unusable flags, models and samples as one line instead of a traceback."""
    try:
        trainer = prepare(attn_implementation, argv)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    try:
        run(trainer)
    except BadSample as error:
        # from a worker process the message comes wrapped in that process's traceback
        raise SystemExit(f"error: {str(error).rpartition('BadSample: ')[2].strip()}") from error


if __name__ == "__main__":
    main()
