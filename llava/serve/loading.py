"""Flags and loading of the model of a chat."""

from __future__ import annotations

import argparse

from llava.eval.models.llava_checkpoint import load_checkpoint
from llava.eval.models.reply import DTYPES
from llava.serve.engine import Engine

EMBEDDED = "embedded"


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say which model to load and how."""
    parser.add_argument("--model-path", required=True, help="checkpoint folder, or Hub name")
    parser.add_argument("--model-base", help="base language model of a projector-only or LoRA checkpoint")
    parser.add_argument(
        "--device", default="cuda", help="cuda, cuda:1, mps, cpu (default: cuda, if available, else mps or cpu)"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: float16, on a CPU float32")
    parser.add_argument("--load-8bit", action="store_true", help="quantise the language model with bitsandbytes")
    parser.add_argument("--load-4bit", action="store_true")
    parser.add_argument(
        "--needs-picture",
        action=argparse.BooleanOptionalAction,
        help="refuse questions without a picture (default: only where the checkpoint's folder is called "
        f"{EMBEDDED}, the small model of the repository, which was trained on pictures only)",
    )
    parser.add_argument("--pruner", help="flowcut:budget=64, ..., or none (default: the checkpoint's own, if any)")


def load_engine(args: argparse.Namespace, interval: int = 1) -> Engine:
    """The engine that `add_model_flags` describe. Raises ValueError, one line, for invalid flags or checkpoints."""
    checkpoint = load_checkpoint(
        args.model_path,
        args.model_base,
        getattr(args, "conv_mode", None),
        args.device,
        args.dtype,
        load_8bit=args.load_8bit,
        load_4bit=args.load_4bit,
        use_flash_attn=getattr(args, "use_flash_attn", False),
    )
    needed = getattr(args, "needs_picture", None)
    return Engine(checkpoint, args.pruner, interval, checkpoint.name == EMBEDDED if needed is None else needed)
