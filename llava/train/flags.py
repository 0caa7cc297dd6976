"""Checks of flags and required packages, before anything is loaded."""

import argparse
import importlib.util
import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Never

from transformers import HfArgumentParser
from transformers.integrations.integration_utils import is_tensorboard_available, is_wandb_available

from llava.conversation import conv_templates
from llava.train.arguments import ModelArguments, TrainingArguments, zero_stage

REPORTERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}


def read_flags(parser: Any, argv: Sequence[str] | None) -> tuple[Any, ...]:
    """The flags of each group of an HfArgumentParser; a flag that none of them has is wrong use (`parser.error`)."""
    *found, unknown = parser.parse_args_into_dataclasses(argv, True, look_for_args_file=False)
    if unknown:
        flags = ", ".join(token for token in unknown if token.startswith("-")) or ", ".join(unknown)
        parser.error(f"{flags}: there is no such flag; --help lists all")
    return tuple(found)


def read_every_flag(groups: Sequence[Any], argv: Sequence[str]) -> tuple[list[Any], list[str]]:
    """The flags of each group (a dataclass), and one line for each flag that is unknown or has an impossible value.

    Such a flag has its default in what is returned. A group whose own checks fail comes with its values alone.
    """
    parser: Any = HfArgumentParser(groups)
    parser.exit_on_error, parser.error = False, _refuse
    rest, wrong = list(argv), []
    while True:
        try:
            _, unknown = parser.parse_known_args(rest)
            break
        except argparse.ArgumentError as error:
            names = (error.argument_name or "").split("/")
            left = _without(rest, names)
            wrong.append(f"{names[0]}: {error.message}" if names[0] else error.message)
            if len(left) == len(rest):
                raise ValueError(wrong[-1]) from error
            rest = left
    wrong += [f"{token}: there is no such flag; --help lists all" for token in unknown if token.startswith("-")]
    found = []
    for group in groups:
        own: Any = HfArgumentParser([group])
        own.error = _refuse
        try:
            found.append(own.parse_args_into_dataclasses(rest, True, look_for_args_file=False)[0])
        except ValueError as error:
            wrong.append(str(error))
            found.append(SimpleNamespace(**vars(own.parse_known_args(rest)[0])))
    return found, wrong


def _refuse(message: str) -> Never:
    raise ValueError(message)


def _without(argv: list[str], names: list[str]) -> list[str]:
    """The arguments without a flag of these names and its values, wherever it is given."""
    left, dropping = [], False
    for token in argv:
        dropping = token.split("=")[0] in names if token.startswith("-") else dropping
        left += [] if dropping else [token]
    return left


def check_flags(model_args: ModelArguments, training_args: TrainingArguments) -> None:
    """Raise ValueError, one line, for contradictory flags of several groups."""
    for reason in contradictions(model_args, training_args):
        raise ValueError(reason)


def contradictions(model_args: ModelArguments, training_args: TrainingArguments) -> list[str]:
    """One line for each contradiction between flags, and for each package that they need and that is missing."""
    found: list[str | None] = []
    if model_args.version not in conv_templates:
        templates = ", ".join(conv_templates)
        found.append(f"--version {model_args.version} is not a conversation template; use one of {templates}")
    found += [_lora(model_args, training_args), _quantisation(training_args), _launcher(training_args)]
    for name, is_available in REPORTERS.items():
        if name in (training_args.report_to or []) and not is_available():
            found.append(f"--report_to {name} needs the {name} package; pip install {name}, or give --report_to none")
    return [reason for reason in found if reason is not None]


def _lora(model_args: ModelArguments, training_args: TrainingArguments) -> str | None:
    if not training_args.lora_enable:
        if training_args.lora_weight_path:
            return "--lora_weight_path has no effect without --lora_enable True; add that, or drop the path"
        return None
    others = {
        "--tune_mm_mlp_adapter": (model_args.tune_mm_mlp_adapter, "trains the projector alone"),
        "--unfreeze_mm_vision_tower": (model_args.unfreeze_mm_vision_tower, "trains the tower, which LoRA cannot save"),
        "--freeze_backbone": (model_args.freeze_backbone, "freezes what LoRA is for"),
    }
    for flag, (given, reason) in others.items():
        if given:
            return f"--lora_enable and {flag} exclude each other: the latter {reason}; drop one of them"
    if training_args.lora_r < 1:
        return f"--lora_r {training_args.lora_r}: give a rank of at least 1"
    return _missing("peft", "--lora_enable True")


def _quantisation(training_args: TrainingArguments) -> str | None:
    if training_args.bits == 16:
        return None
    if not training_args.lora_enable:
        return (
            f"--bits {training_args.bits}: quantised weights cannot be trained themselves; add --lora_enable True, or "
            f"use --bits 16"
        )
    if zero_stage(training_args.deepspeed) == 3:
        return (
            f"--bits {training_args.bits} and ZeRO stage 3 exclude each other: quantised weights cannot be split; "
            f"use --deepspeed ./scripts/zero2.json, or --bits 16"
        )
    return _missing("bitsandbytes", f"--bits {training_args.bits}")


def _launcher(training_args: TrainingArguments) -> str | None:
    if training_args.deepspeed and "RANK" not in os.environ and importlib.util.find_spec("mpi4py") is None:
        return (
            "--deepspeed needs a launcher that tells the processes of each other; start with `deepspeed "
            "llava/train/train_mem.py` or torchrun in place of python, or drop the flag"
        )
    return None


def _missing(package: str, flag: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return f"{flag} needs the {package} package; pip install {package}"
    return None
