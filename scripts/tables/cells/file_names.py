"""Names of cells' files, which follow from the text form of a pruner."""

from __future__ import annotations


def method_of(pruner: str) -> str:
    """The method's name in a pruner's text form: flowcut of flowcut:budget=64."""
    return pruner.partition(":")[0]


def cell_name(pruner: str) -> str:
    """Name of a cell's file without its suffix: none, flowcut_64, pdrop_192_layers=1-2-3."""
    settings = [part.strip().removeprefix("budget=") for part in pruner.split(":")[1:] for part in part.split(",")]
    return "_".join([method_of(pruner), *settings]).replace("/", "-")
