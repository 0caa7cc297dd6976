"""Renders docs/families.md: which models can be pruned, and what each method does there, read from the code.

    python -m scripts.families            (--check: change nothing, fail if the page is out of date)

Every class that the modules of `flowcut.anatomy` name is built with the default config of its class, which is that of
a published size (where it is not, that of `flowcut.bench`), on the meta device: it has its layers and no weights. Then
each method is attached to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import Parser, parse_first, program
from scripts.tables.render.marked_files import fill, keep


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the page is out of date")
    return parser


parse_first(__name__, build_parser)

import torch
import transformers

from flowcut import attach
from flowcut.anatomy.find import FAMILIES, anatomy_of
from flowcut.bench.geometries import GEOMETRIES
from flowcut.hooks.parts import Anatomy
from flowcut.pruner import EncoderShape, Pruner
from flowcut.registry import METHODS

PAGE = Path("docs/families.md")
HEAD = "ForConditionalGeneration"
BUDGET = 64
ENCODER, LANGUAGE = "encoder", "LLM"
SIZES = {f"SmolVLM{HEAD}": "smolvlm2-2.2b", f"Gemma3{HEAD}": "gemma3-4b"}
"""Classes whose default config is of no published model, and one of `flowcut.bench` that is."""


def classes() -> Iterator[type]:
    """transformers' classes that the families' modules name: with a head, where there is one."""
    for family in FAMILIES:
        names = re.findall(r"\w+", family.FAMILY)
        heads = [name for name in names if name.endswith(HEAD)] or names
        yield from (getattr(transformers, name) for name in heads if hasattr(transformers, name))


@cache
def model_of(cls: Any) -> Any:
    """A model of the class's default size, or of the published one in SIZES, without weights."""
    config = cls.config_class()
    if cls.__name__ in SIZES:
        sizes = GEOMETRIES[SIZES[cls.__name__]]
        config = cls.config_class(vision_config=sizes.vision, text_config=sizes.text, **sizes.fields)
    with torch.device("meta"):
        return cls._from_config(config)


def title(cls: type) -> str:
    return f"`{cls.__name__.removesuffix(HEAD)}`"


def where(pruner: Pruner, anatomy: Anatomy) -> str:
    """In which of its two parts a method cuts a model."""
    shape = anatomy.shape
    places = [ENCODER] if type(pruner).vision is not Pruner.vision else []
    if shape.decoder_layers is not None and pruner.cuts_language(shape.two_stage):
        places.append(LANGUAGE)
    return " + ".join(places)


def attached(cls: type, name: str) -> tuple[str, str]:
    """Where the method cuts, and, if it is refused, why."""
    pruner = METHODS[name].make(budget=BUDGET)
    try:
        with attach(model_of(cls), pruner) as handle:
            return where(pruner, handle.anatomy), ""
    except ValueError as error:
        return "", str(error).replace(type(pruner).__name__, "It")


def first_token(encoder: EncoderShape) -> str:
    """What stands for the image as a whole in a method's scores."""
    if encoder.num_prefix_tokens == 0:
        return "mean of all tokens"
    registers = encoder.num_prefix_tokens - 1
    return f"CLS ({registers} registers follow)" if registers else "CLS"


def joined(encoder: EncoderShape) -> str:
    """How patches become tokens of the language model."""
    if encoder.patches_per_token == 1:
        return "1"
    if encoder.cell is None:
        return f"{encoder.patches_per_token}, one after the other"
    return f"{encoder.cell[0]} x {encoder.cell[1]} of the grid"


def features(encoder: EncoderShape, alone: bool) -> str:
    """After which layer the language model reads the encoder."""
    if alone:
        return "the caller's choice"
    return f"{encoder.feature_layer + 1} of {encoder.layers}"


def decoder_of(anatomy: Anatomy) -> tuple[str, str]:
    """Layers of the language model, and the kind of its position ids."""
    if anatomy.find_decoder is None:
        return "", ""
    layers = str(anatomy.decoder_layers)
    try:
        return layers, "time, height, width (M-RoPE)" if anatomy.find_decoder().mrope else "one number"
    except ValueError:
        return f"{layers}, encoder only", ""


def models() -> str:
    """A line for every class: its parts."""
    lines = [
        "| model | tower | whole image | patches a token | features after layer | LLM layers | position ids | stages |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cls in classes():
        anatomy = anatomy_of(model_of(cls))
        encoder = anatomy.shape.encoders[0]
        alone = anatomy.decoder_layers is None
        stages = "" if alone else "encoder and LLM" if anatomy.two_stage else "encoder"
        cells = [title(cls), f"`{encoder.name}`", first_token(encoder), joined(encoder), features(encoder, alone)]
        lines.append("| " + " | ".join([*cells, *decoder_of(anatomy), stages]) + " |")
    return "\n".join(lines)


def methods() -> str:
    """Where each method cuts in each model; equal columns are one. Numbers refer to the reasons below the table."""
    reasons: list[str] = []
    columns: dict[tuple[str, ...], list[type]] = {}
    for cls in classes():
        cells = []
        for name in METHODS:
            place, refused = attached(cls, name)
            if refused and refused not in reasons:
                reasons.append(refused)
            cells.append(place or f"no [{reasons.index(refused) + 1}]")
        columns.setdefault(tuple(cells), []).append(cls)
    head = ["method", *(", ".join(map(title, group)) for group in columns.values())]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row, name in enumerate(METHODS):
        lines.append("| " + " | ".join([f"`{name}`", *(cells[row] for cells in columns)]) + " |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))])


@program
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    page = PAGE.read_text("utf-8")
    for name, table in (("models", models()), ("methods", methods())):
        page = fill(page, name, table)
    keep({PAGE: page}, args.check, "scripts.families")


if __name__ == "__main__":
    main()
