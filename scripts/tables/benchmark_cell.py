"""Cells of real benchmarks: one (model, pruner, benchmark) each, evaluated as documented and stored in a JSON file.

    python -m scripts.tables.benchmark_cell --family v1_5 --benchmark pope --model-path M --pruner flowcut:budget=64

Does the same as `scripts/<family>/eval/<benchmark>.sh`, which continues an interrupted run, and writes the score, the
cost of the answers and their origin to `<out>/<model>/<benchmark>/<pruner>.json`. An up-to-date cell
is not made again. Flags that are not listed are passed to `python -m llava.eval.launch` (--split, --devices,
--judge-base-url, --dtype, ...).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from flowcut.cli.command_line import Parser, parse_first, program
from llava.eval.benchmarks.registry import MODULES
from llava.eval.prepare import DATA
from scripts.tables.cells.file_names import FAMILIES


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, allow_abbrev=False)
    parser.add_argument("--family", default="v1_5", help=f"folder of scripts: {', '.join(FAMILIES)}")
    parser.add_argument("--benchmark", required=True, choices=MODULES)
    parser.add_argument(
        "--model-path", also=["--model"], dest="model", required=True, help="checkpoint folder, or Hub name"
    )
    parser.add_argument("--pruner", default="none", help="none, flowcut:budget=64, ... (default: none)")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder of all benchmarks (default: {DATA})")
    parser.add_argument("--limit", type=int, help="number of questions, spread evenly (default: all)")
    return parser


parse_first(__name__, build_parser, others=True)

from scripts.tables.cells.produce import make_cell
from scripts.tables.cells.spec import CellSpec


@program
def main(argv: list[str] | None = None) -> None:
    args, flags = build_parser().parse_known_args(argv)
    given = (args.family, args.benchmark, args.model, args.pruner, args.out, args.limit, args.data, tuple(flags))
    spec = CellSpec(*given)
    made = make_cell(spec)
    print(json.dumps({"file": str(spec.file), **made}, ensure_ascii=False))


if __name__ == "__main__":
    main()
