"""Records the durations of the runs of train_pruned.sh: python -m scripts.embedded.training_record --runs runs/embedded
--out FILE

Reads each run's trainer_state.json. An interrupted run has only the time since it was resumed, and is an error.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from llava.eval.files import write_atomic
from llava.eval.provenance import environment
from llava.given import told_in_one_line
from scripts.tables.cells.training import training_run

RUNS = {"trained_576": 576, "trained_192": 192, "trained_128": 128, "trained_plus_192": 192, "trained_plus_128": 128}
"""Folder of a run -> visual tokens that it was trained with."""


def record(runs: Path) -> dict[str, Any]:
    rows = []
    for run, tokens in RUNS.items():
        steps, seconds = training_run(runs / run)
        rows.append({"run": run, "tokens": tokens, "steps": steps, "seconds": round(seconds, 1)})
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"rows": rows, "date": date, **environment(torch.device("cpu"))}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/embedded"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    with told_in_one_line():
        write_atomic(args.out, json.dumps(record(args.runs), indent=1) + "\n")


if __name__ == "__main__":
    main()
