"""Names of cells' files, which follow from the text form of a pruner, and of folders of evaluation scripts."""

from __future__ import annotations

FAMILIES: dict[str, str | None] = {"v1_5": "vicuna_v1", "v1_6": "vicuna_v1", "qwen2_vl": None, "video": None}
"""Folder of `scripts/` with evaluation scripts -> their conversation mode; None for the checkpoint's own."""


def method_of(pruner: str) -> str:
    """The method's name in a pruner's text form: flowcut of flowcut:budget=64."""
    return pruner.partition(":")[0]


def cell_name(pruner: str) -> str:
    """Name of a cell's file without its suffix: none, flowcut_64, pdrop_192_layers=1-2-3."""
    settings = [part.strip().removeprefix("budget=") for part in pruner.split(":")[1:] for part in part.split(",")]
    return "_".join([method_of(pruner), *settings]).replace("/", "-")
