"""Make a benchmark's question file from its official annotations, or list the missing files.

    python -m llava.eval.prepare gqa              # writes the question file, unless LLaVA's own exists
    python -m llava.eval.prepare gqa --check      # writes nothing; lists what is missing and where to get it
    python -m llava.eval.prepare mme --limit 50   # a file of 50 pictures' questions, spread evenly
    python -m llava.eval.prepare --all --check    # everything that is missing for any benchmark, with sizes and sources

No model is loaded. The last line of stdout is one JSON document: question file, images' folder, answering program. The
exit status is 1 when files or images of questions are missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import Parser, program
from llava.eval.benchmarks.contract import PROGRAMS, Benchmark, Need, Prepared, Split
from llava.eval.benchmarks.registry import DATA, MODULES, benchmark
from llava.eval.files import absent
from llava.forecast import PAPER_MODELS, PAPER_SECONDS, SECONDS_PER_ANSWER, duration, from_environment, size, total

_SHOWN = 5


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("benchmark", nargs="?", choices=MODULES)
    parser.add_argument("--all", action="store_true", help="every benchmark, each with its published split")
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder of all benchmarks (default: {DATA})")
    parser.add_argument("--split", help="default: the one of the published number; a wrong name lists all")
    parser.add_argument("--check", action="store_true", help="only list existing and missing files")
    parser.add_argument(
        "--limit", type=int, help="number of questions (MMBench: each with all its rotations; default: all)"
    )
    parser.add_argument("--rebuild", action="store_true", help="replace an existing question file")
    return parser


def report_needs(bench: Benchmark, folder: Path, split: Split) -> bool:
    """Print the benchmark's files and whether they exist; returns whether all do."""
    print(f"{bench.title}, split {split.name}, in {folder}")
    for need in split.needs:
        state = "found" if need.met(folder) else "optional, missing" if need.optional else "MISSING"
        where = "" if need.met(folder) else f"; get it from {need.source}, {size(need.gigabytes)}"
        print(f"  {state:8} {' or '.join(need.paths)}: {need.purpose}{where}")
    return not bench.missing(folder, split)


def sizes_of(needs: Iterable[Need]) -> dict[str, float | None]:
    """Gigabytes of what is needed, by its source; None where that is not known."""
    sizes: dict[str, float | None] = {}
    for need in needs:
        sizes[need.source] = sizes.get(need.source) or need.gigabytes
    return sizes


def hours_of(questions: int, model: str = "") -> str:
    """One line: about how long the model takes for so many questions, without pruning."""
    own = from_environment(SECONDS_PER_ANSWER)
    like = "v1_6" if "v1.6" in model else "v1_5"
    seconds = PAPER_SECONDS[like] if own is None else own
    paper = f", as the paper's {PAPER_MODELS[like]} without pruning on an A800; long answers take longer"
    source = paper if own is None else ""
    return (
        f"estimate: {questions} questions take {duration(seconds * questions)} on one GPU, at {seconds:.3g} s an "
        f"answer{source} ({SECONDS_PER_ANSWER}=s sets it)"
    )


def look(bench: Benchmark, folder: Path, split: Split) -> Prepared:
    """The result of `prepare`, without writing anything."""
    images = bench.images(folder, split)
    packed = bench.unpack is not None and images is not None and not images.is_dir()
    rows = [] if packed else bench.rows(folder, split)  # pictures in an archive cannot be checked
    return Prepared(folder / split.question_file, images, len(rows), False, absent(rows, images))


def report_absent(prepared: Prepared) -> None:
    if prepared.absent:
        first = ", ".join(prepared.absent[:_SHOWN])
        print(
            f"{len(prepared.absent)} images of questions are not in {prepared.images} (first: {first})", file=sys.stderr
        )


def document(bench: Benchmark, split: Split, prepared: Prepared) -> dict[str, Any]:
    return {
        "benchmark": bench.name,
        "split": split.name,
        "question_file": str(prepared.question_file),
        "image_folder": None if prepared.images is None else str(prepared.images),
        "program": PROGRAMS[bench.program],
        "max_new_tokens": bench.max_new_tokens,
        "questions": prepared.questions,
        "built": prepared.built,
        "absent_images": len(prepared.absent),
    }


def survey(data: Path, check: bool, rebuild: bool) -> dict[str, Any]:
    """Report and prepare every benchmark; one that cannot be stops no other. -> the JSON document.

    check: write nothing.
    """
    complete: list[str] = []
    missing: dict[str, list[str]] = {}
    problems: dict[str, str] = {}
    wanted: list[Need] = []
    questions = 0
    for name in MODULES:
        bench = benchmark(name)
        split = bench.split()
        folder = bench.folder(data, split)
        if not report_needs(bench, folder, split):
            lacking = bench.missing(folder, split)
            missing[name] = [f"{folder / need.paths[0]}" for need in lacking]
            wanted += lacking
            questions += split.published or 0
            continue
        try:
            prepared = look(bench, folder, split) if check else bench.prepare(folder, split, None, rebuild)
        except ValueError as error:
            problems[name] = str(error)
            continue
        report_absent(prepared)
        questions += prepared.questions
        if prepared.absent:
            problems[name] = f"{len(prepared.absent)} images of questions are absent"
        else:
            complete.append(name)
    sizes = sizes_of(wanted)
    return {
        "complete": complete,
        "missing": missing,
        "problems": problems,
        "questions": questions,
        "gigabytes": round(sum(known for known in sizes.values() if known), 3),
        "sizes": sizes,
    }


def summary(found: dict[str, Any]) -> str:
    lines = [f"{len(found['complete'])} of {len(MODULES)} benchmarks are complete"]
    lines += [f"  {name} lacks {', '.join(files)}" for name, files in found["missing"].items()]
    lines += [f"  {name}: {problem}" for name, problem in found["problems"].items()]
    if found["sizes"]:
        lines.append(f"missing downloads: {len(found['sizes'])}, {total(found['sizes'].values())}")
    lines.append(hours_of(found["questions"]))
    return "\n".join(lines)


@program
def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.all == (args.benchmark is not None):
        parser.error("give the name of a benchmark, or --all")
    if args.all:
        if args.split or args.limit is not None:
            parser.error("--all takes each benchmark's published split whole; leave --split and --limit out")
        found = survey(args.data, args.check, args.rebuild)
        print(summary(found))
        print(json.dumps(found, ensure_ascii=False))
        if found["missing"] or found["problems"]:
            sys.exit(1)
        return
    bench = benchmark(args.benchmark)
    split = bench.split(args.split)
    folder = bench.folder(args.data, split)
    complete = report_needs(bench, folder, split)
    if not complete:
        lacking = bench.missing(folder, split)
        print(f"missing downloads: {total(sizes_of(lacking).values())}")
        print(
            json.dumps({"benchmark": bench.name, "split": split.name, "missing": [need.paths[0] for need in lacking]})
        )
        sys.exit(f"error: {bench.title} is not complete; get what is marked MISSING")
    prepared = look(bench, folder, split) if args.check else bench.prepare(folder, split, args.limit, args.rebuild)
    report_absent(prepared)
    if not args.check:
        print(f"{'built' if prepared.built else 'used unchanged'}: {prepared.question_file}")
    print(json.dumps(document(bench, split, prepared), ensure_ascii=False))
    if prepared.absent:
        sys.exit(1)


if __name__ == "__main__":
    main()
