"""Records the durations of the runs of train_pruned.sh: python -m scripts.embedded.training_record --runs runs/embedded
--out FILE

Reads each run's trainer_state.json. An interrupted run has only the time since it was resumed, and is an error.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import Parser, parse_first, print_result, program
from llava.eval.files import write_atomic
from scripts.tables.cells.training import training_run


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/embedded"))
    parser.add_argument("--out", type=Path, required=True)
    return parser


parse_first(__name__, build_parser)

import torch

from llava.eval.provenance import environment
from scripts.embedded.rows import PATCHES, TRAINED


def record(runs: Path) -> dict[str, Any]:
    rows = []
    for pruner, run in TRAINED.items():
        tokens = PATCHES if pruner == "none" else int(pruner.partition("=")[2])
        steps, seconds = training_run(runs / run)
        rows.append({"run": run, "tokens": tokens, "steps": steps, "seconds": round(seconds, 1)})
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"rows": rows, "date": date, **environment(torch.device("cpu"))}


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    recorded = record(args.runs)
    write_atomic(args.out, json.dumps(recorded, indent=1) + "\n")
    print_result({"file": str(args.out), **recorded})


if __name__ == "__main__":
    main()
