"""The TFLOPs that the paper prints in Tables 5 and 9, compared with flowcut.cost for the same methods.

    python -m scripts.tables.tflops                    (Markdown; --csv for CSV, --write for docs/cost.md)

Nothing is run: sizes are those of CLIP-L/14-336 and Vicuna-7B, token counts come from each method's own schedule. The
paper does not say what "TFLOPs" includes, or how long a prompt is; see docs/cost.md. FlowCut's counts depend on the
picture, through the entropy ratio r of equation 3, which is not printed either: one r for all layers is assumed.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import Parser, parse_first, program
from flowcut.cost import Cost
from scripts.tables.render.grid import NOTHING, Grid
from scripts.tables.render.marked_files import fill

PAGE = Path("docs/cost.md")
TEXT_TOKENS, ENTROPY_RATIO = 62, 0.95


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument(
        "--text-tokens", type=int, default=TEXT_TOKENS, help="prompt tokens that are not visual (default: %(default)s)"
    )
    parser.add_argument(
        "--entropy-ratio",
        type=float,
        default=ENTROPY_RATIO,
        help="r of equation 3, 0 to 1, in every layer: an assumption (default: %(default)s)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="print CSV")
    form.add_argument("--write", action="store_true", help=f"put the table into {PAGE}")
    return parser


parse_first(__name__, build_parser)

from transformers import AutoConfig

from flowcut.bench.geometries import GEOMETRIES
from scripts.tables.paper.counting import PATCHES, BudgetNotMet, Case
from scripts.tables.paper.printed_tflops import LINES, NEXT, ONE, Line


@cache
def configs() -> tuple[Any, Any]:
    """The configs of CLIP-L/14-336 and Vicuna-7B."""
    geometry = GEOMETRIES["llava-1.5-7b"]
    return AutoConfig.for_model(**geometry.vision), AutoConfig.for_model(**geometry.text)


def counted(line: Line, case: Case, tokens: int | None) -> Cost | None:
    """The cost of a number of tokens by the line's way of counting; None where its schedule cannot reach this
    number.
    """
    if line.count is None or tokens is None:
        return None
    try:
        return line.count(case, tokens)
    except BudgetNotMet:
        return None


def solve(line: Line, case: Case) -> int | None:
    """The number of tokens whose cost comes nearest to the printed one; None where none comes within 1 %."""

    def tflops(tokens: int) -> float:
        cost = counted(line, case, tokens)
        return 0.0 if cost is None else cost.total / 1e12

    low, high = 1, PATCHES * case.tiles
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tflops(middle) >= line.printed else (middle, high)
    best = min((low, high), key=lambda tokens: abs(tflops(tokens) - line.printed))
    return best if abs(tflops(best) / line.printed - 1) < 0.01 else None


def cells(line: Line, text_tokens: int, entropy_ratio: float) -> list[str]:
    """tokens | printed | ours | difference in % | the language model alone | tokens that give the printed number."""
    case = Case(*configs(), text_tokens, entropy_ratio, line.tiles)
    printed, ours = line.printed, counted(line, case, line.tokens)
    solved = solve(line, case) if line.solvable else None
    return [
        NOTHING if line.tokens is None else str(line.tokens),
        f"{printed:.2f}",
        *([NOTHING] * 3 if ours is None else _figures(ours, printed)),
        NOTHING if solved is None else str(solved),
    ]


def _figures(ours: Cost, printed: float) -> list[str]:
    total = ours.total / 1e12
    difference = round(100 * (total / printed - 1), 1) + 0.0  # no "-0.0"
    return [f"{total:.2f}", f"{difference:+.1f}", f"{ours.prefill / 1e12:.2f}"]


HEADER = [
    "table",
    "model",
    "method",
    "counted as",
    "tokens",
    "printed",
    "ours",
    "difference, %",
    "language model alone",
    "printed = ours at",
]


def table(text_tokens: int = TEXT_TOKENS, entropy_ratio: float = ENTROPY_RATIO, footnotes: bool = True) -> Grid:
    """All lines. Their notes are footnotes, or the last column."""
    grid = Grid("TFLOPs, printed and counted", HEADER if footnotes else [*HEADER, "note"], left=4)
    for line in LINES:
        number, model = str(line.table.number), NEXT if line.tiles > 1 else ONE
        counted = cells(line, text_tokens, entropy_ratio)
        if footnotes:
            grid.lines.append([number, model, grid.mark(line.method, line.note), line.how, *counted])
        else:
            grid.lines.append([number, model, line.method, line.how, *counted, line.note])
    grid.notes.append(f"{text_tokens} text tokens; FlowCut with an entropy ratio of {entropy_ratio} in every layer.")
    return grid


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.text_tokens < 0:
        raise ValueError(
            f"--text-tokens {args.text_tokens} is not a number of tokens >= 0; a short question has about 62"
        )
    if not 0 <= args.entropy_ratio <= 1:
        raise ValueError(f"--entropy-ratio {args.entropy_ratio} is not in 0 ... 1; 1 is attention spread evenly")
    grid = table(args.text_tokens, args.entropy_ratio, footnotes=not args.csv)
    if args.write:
        PAGE.write_text(fill(PAGE.read_text("utf-8"), "tflops", grid.markdown()), "utf-8")
    else:
        print(grid.csv() if args.csv else grid.markdown(), end="" if args.csv else "\n")


if __name__ == "__main__":
    main()
