"""Cells: one (model, pruner, budget, benchmark) each, measured and stored in a JSON file with its origin.

    python -m scripts.tables.cell --model-path playground/embedded --pruner none --pruner flowcut:budget=64

`<out>/<benchmark>/<pruner>.json` has the numbers, `<out>/<benchmark>/answers/` every answer. An existing cell with
the same model, data and settings is not made again; an interrupted one is continued. Cells that are made
together alternate question by question, so that other load on the machine affects all of them alike.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from flowcut.cli.command_line import Parser, parse_first, print_result, program
from llava.eval.models.reply import DTYPES


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument(
        "--model-path",
        also=["--model"],
        dest="model",
        default="playground/embedded",
        help="checkpoint folder, or Hub name",
    )
    parser.add_argument("--benchmark", choices=("embedded",), default="embedded")
    parser.add_argument("--data", type=Path, default=Path("playground/data/embedded"), help="the benchmark's folder")
    parser.add_argument("--pruner", action="append", help="none, flowcut:budget=64, ...; may be given several times")
    parser.add_argument("--blind", action="store_true", help="also measure answers with another scene's picture")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--limit", type=int, help="number of questions, spread evenly (default: all)")
    parser.add_argument("--batch-size", type=int, default=1, help="times are comparable at 1")
    parser.add_argument("--device")
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--conv-mode")
    parser.add_argument("--fresh", action="store_true", help="make the cells again")
    return parser


parse_first(__name__, build_parser)

from flowcut import parse_pruner
from llava.eval.models.llava_checkpoint import load_checkpoint
from scripts.tables.cells.in_process import Cell, Plan, Setup, measure, report


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    command = "python -m scripts.tables.cell " + shlex.join(sys.argv[1:] if argv is None else argv)
    cells = [Cell(args.benchmark, pruner) for pruner in args.pruner or ["none"]]
    if args.blind:
        cells.insert(0, Cell(args.benchmark, blind=True))
    for cell in cells:
        parse_pruner(cell.pruner)
    checkpoint = load_checkpoint(args.model, None, args.conv_mode, args.device, args.dtype, "vicuna_v1")
    setup = Setup(checkpoint, args.data, args.out, args.limit, args.batch_size, args.fresh, command)
    plans = [Plan(setup, cell) for cell in cells]
    results, problems = measure(plans)
    report(problems)
    shown = ("pruner", "budget", "blind", "n", "missing", "accuracy", "ci95", "gflops", "ms")
    print_result({"out": str(args.out), "cells": [{key: result[key] for key in shown} for result in results]})
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    main()
