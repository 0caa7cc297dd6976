"""Times of the unpruned model and every row, in one run: python -m scripts.embedded.times

Takes about seven minutes; nothing else should run meanwhile. `results/embedded/efficiency.json` is replaced.
"""

from __future__ import annotations

from pathlib import Path

from flowcut.cli.command_line import Parser, parse_first, print_result, program
from scripts.tables.cells.times import EFFICIENCY, measure_times, times_of


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"))
    return parser


parse_first(__name__, build_parser)

from scripts.embedded.rows import BUDGETS, all_rows
from scripts.tables.cells.embedded import DATA, MODEL, QUICK


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    texts = [text for budget in BUDGETS for text in all_rows(budget)]
    file = args.results / "embedded" / EFFICIENCY
    file.unlink(missing_ok=True)
    measure_times(MODEL, texts, file, DATA / "questions.jsonl", DATA / "images", QUICK)
    print_result({"file": str(file), "ms": {text: row["total"] for text, row in times_of(file).items()}})


if __name__ == "__main__":
    main()
