"""Weights of a pruner's own, such as CrossGET's cross tokens, in checkpoints: they have a file beside the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from flowcut.attach import Handle, handle_of
from flowcut.hooks.learned import learned_on
from flowcut.registry import pruner_to_config, pruner_to_text
from llava.model.remembered_pruner import FIELD, remembered_pruner


def refuse_sharding(handle: Handle, deepspeed: Any) -> None:
    """
    Raises:
        ValueError: the run splits weights over processes, and the pruner has some of its own.
    """
    if deepspeed and any(learned_on(encoder.model) is not None for encoder in handle.anatomy.encoders):
        said = pruner_to_text(handle.pruner)
        raise ValueError(f"{said} has weights of its own, which --deepspeed would split; leave --deepspeed out")


def save_learned(model: nn.Module, folder: Path) -> None:
    """Write the pruner's own weights beside a checkpoint's, and have its config.json speak of them."""
    handle, learned = _learned(model)
    if handle is None or learned is None:
        return
    fields = json.loads((folder / "config.json").read_text("utf-8"))
    fields[FIELD] = pruner_to_config(handle.pruner.keep_learned(learned, folder))
    (folder / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", "utf-8")


def load_learned(model: nn.Module, folder: Path) -> None:
    """Read the pruner's own weights that `save_learned` wrote.

    Raises ValueError, one line, when they cannot be read or are of another method or encoder.
    """
    handle, learned = _learned(model)
    if handle is None or learned is None:
        return
    remembered = remembered_pruner(json.loads((folder / "config.json").read_text("utf-8")), folder)
    found = None if remembered is None else remembered.learned(handle.shape.encoders[0])
    if found is None:
        raise ValueError(f"{folder} lacks the weights that {pruner_to_text(handle.pruner)} trains")
    learned.load_state_dict(found.state_dict())


def _learned(model: Any) -> tuple[Handle | None, nn.Module | None]:
    handle = None if getattr(model.config, FIELD, None) is None else handle_of(model)
    return handle, None if handle is None else learned_on(handle.anatomy.encoders[0].model)
