"""Loading of the model of a chat."""

from __future__ import annotations

import argparse

from llava.eval.models.llava_checkpoint import load_checkpoint
from llava.serve.engine import Engine
from llava.serve.flags import EMBEDDED


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
