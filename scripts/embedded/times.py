"""Times of the unpruned model and every row, in one run: python -m scripts.embedded.times

Takes about seven minutes; nothing else should run meanwhile. `results/embedded/efficiency.json` is replaced.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llava.given import told_in_one_line
from scripts.embedded.rows import BUDGETS, all_rows
from scripts.tables.cells.embedded import DATA, MODEL, QUICK
from scripts.tables.cells.times import EFFICIENCY, measure_times


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    args = parser.parse_args(argv)
    texts = [text for budget in BUDGETS for text in all_rows(budget)]
    file = args.results / "embedded" / EFFICIENCY
    file.unlink(missing_ok=True)
    with told_in_one_line():
        measure_times(MODEL, texts, file, DATA / "questions.jsonl", DATA / "images", QUICK)


if __name__ == "__main__":
    main()
