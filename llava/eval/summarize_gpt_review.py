"""Scores from LLaVA's review files, in LLaVA's columns: for each category and all, 100 times the second mean over the
first, and ten times the means of the first and of the second.

    python -m llava.eval.summarize_gpt_review --files reviews/llava-v1.5-7b.jsonl

Unreadable reviews (-1, -1) are included in the means, as in LLaVA, and counted. The last line of stdout is one
JSON document.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from flowcut.cli.command_line import Parser, program
from llava.eval.benchmarks.llavabench import UNREADABLE
from llava.eval.files import read_rows

Pair = list[float]
_BEGINNINGS = ("gpt4_text", "reviews_", "review_")


def review_files(folder: Path | None, files: Sequence[Path] | None) -> list[Path]:
    """The files named, those of `folder` if it is given, or all review files in it. Raises ValueError for none."""
    if files:
        return sorted(folder / file if folder else file for file in files)
    if folder is None:
        raise ValueError("neither --dir nor --files was given; give a folder of reviews, or review files")
    found = sorted(file for file in folder.glob("*.jsonl") if file.name.startswith(_BEGINNINGS))
    if not found:
        raise ValueError(f"{folder} holds no {'*.jsonl, '.join(_BEGINNINGS)}*.jsonl; name the files by --files")
    return found


def pairs_of(file: Path, ignore: Collection[int] = ()) -> dict[str, list[Pair]]:
    """Category, and `all` -> (reference's, model's) scores; reviews of ignored questions left out.

    Raises ValueError, one line, for a line without a pair of scores.
    """
    pairs: dict[str, list[Pair]] = defaultdict(list)
    for number, row in enumerate(read_rows(file, "review"), start=1):
        pair = row.get("tuple", row.get("score"))
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{file} line {number} has no pair of scores; give the output of eval_gpt_review_bench")
        if row.get("question_id") not in ignore:
            for name in filter(None, ("all", row.get("category"))):
                pairs[name].append(pair)
    return dict(sorted(pairs.items()))


def selected(files: Sequence[Path], version: str | None, words: Sequence[str]) -> list[Path]:
    """The files with every word in their names, and the version. Raises ValueError when none is left."""
    kept = [file for file in files if all(word in file.name for word in (*words, version or ""))]
    if not kept:
        raise ValueError("no review file has what --select and --version name; drop them")
    return kept


def tenfold(pairs: Sequence[Pair], place: int) -> float:
    return round(round(fmean(pair[place] for pair in pairs), 3) * 10, 1)


def relative(pairs: Sequence[Pair]) -> float | None:
    """LLaVA's number: the means to three decimals, their ratio in percent to one; None without positive reference."""
    reference, model = (round(fmean(pair[place] for pair in pairs), 3) for place in (0, 1))
    return round(model / reference * 100, 1) if reference > 0 else None


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("-d", "--dir", type=Path, help="folder of review files")
    parser.add_argument("-f", "--files", type=Path, nargs="*", help="review files; in --dir, if that is given")
    parser.add_argument("-v", "--version", help="take the files with this in their names")
    parser.add_argument(
        "-s", "--select", nargs="*", default=(), help="take the files with all these words in their names"
    )
    parser.add_argument("-i", "--ignore", type=int, nargs="*", default=(), help="question ids to leave out")
    return parser


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    summary: dict[str, Any] = {}
    means: dict[tuple[str, str], str] = {}
    for file in selected(review_files(args.dir, args.files), args.version, args.select):
        pairs = pairs_of(file, args.ignore)
        name = file.name.replace("gpt4_text_", "").removesuffix(".jsonl")
        unread = sum(pair == UNREADABLE for pair in pairs.get("all", ()))
        means |= {(name, part): f" {tenfold(own, 0)} {tenfold(own, 1)}" for part, own in pairs.items()}
        summary[name] = {**{part: relative(own) for part, own in pairs.items()}, "unreadable": unread}
    for name, scores in summary.items():
        print(name)
        for part, value in scores.items():
            print(part, "-" if value is None else value, means.get((name, part), "").strip())
        print("=" * 33)
    print(json.dumps({"benchmark": "llavabench", "files": summary}, ensure_ascii=False))


if __name__ == "__main__":
    main()
