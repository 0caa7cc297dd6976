"""Measures questions per second of an evaluation: python -m llava.eval.bench --pruner flowcut:budget=64

Every combination of batch size, pruner and number of reading workers answers the same questions, from picture file to
answer line, in one run. The combinations alternate, round by round, so that other load on the machine affects all
alike. A rate is questions over the wall time of a whole round; its spread is over rounds. The first round is discarded.

Without --question-file the embedded benchmark is used. Loading the model is not included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from flowcut.cli.command_line import Parser, parse_first, program
from flowcut.cli.progress import progress_bar
from llava.eval.answering.journal import Journal
from llava.eval.models.reply import DTYPES, Generation
from llava.eval.questions import Question, questions_of


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--model-path", default="playground/embedded", help="(default: %(default)s)")
    parser.add_argument("--question-file", type=Path, help="JSON lines with question_id, image, text")
    parser.add_argument("--image-folder", type=Path, help="folder that the questions' image paths are relative to")
    parser.add_argument("--pruner", action="append", help="compared with none; may be given several times")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], help="(default: 1 8 32)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="(default: 0 2)")
    parser.add_argument("--limit", type=int, default=64, help="questions per round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds (default: %(default)s)")
    parser.add_argument("--max_new_tokens", type=int, default=8)
    parser.add_argument("--device", help="default: CUDA where there is one")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float16, on a CPU float32")
    return parser


parse_first(__name__, build_parser)

import torch

from flowcut import parse_pruner
from flowcut.bench.measuring import device_name
from llava.eval.answering.answer_run import AnswerRun
from llava.eval.models.answerer import Answerer
from llava.eval.models.llava_answerer import LlavaAnswerer
from llava.eval.models.llava_checkpoint import Checkpoint, load_checkpoint
from llava.eval.provenance import environment


class LoopVariant(NamedTuple):
    """One measured combination. workers: processes that prefetch pictures."""

    pruner: str
    batch: int
    workers: int


class LoopRates(NamedTuple):
    """rates: questions per second, one per round. texts: the answers."""

    rates: list[float]
    texts: list[str]


def variants_of(args: argparse.Namespace) -> list[LoopVariant]:
    """Raises ValueError, one line, for an invalid pruner, batch size or number of workers."""
    for name, values, least in (("--batch", args.batch, 1), ("--workers", args.workers, 0)):
        if min(values) < least:
            raise ValueError(f"{name} {min(values)} is invalid; give whole numbers of at least {least}")
    for pruner in args.pruner:
        parse_pruner(pruner)
    return [LoopVariant(*variant) for variant in itertools.product(["none", *args.pruner], args.batch, args.workers)]


def answer_once(
    answerer: Answerer, questions: Sequence[Question], images: Path, variant: LoopVariant
) -> tuple[float, list[str]]:
    """Seconds for all questions, and the answers."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answers.jsonl"
        run = AnswerRun(answerer, questions, images, Journal(file, {}), variant.batch, workers=variant.workers)
        begin = perf_counter()
        while run.remaining:
            run.step()
        problems = run.finish()
        seconds = perf_counter() - begin
        if problems:
            raise ValueError(f"{problems[0].where}: {problems[0].what}; the benchmark needs questions without faults")
        return seconds, [json.loads(line)["text"] for line in file.read_text("utf-8").splitlines()]


def measure(
    checkpoint: Checkpoint,
    questions: Sequence[Question],
    images: Path,
    variants: Sequence[LoopVariant],
    args: argparse.Namespace,
) -> dict[LoopVariant, LoopRates]:
    """Every variant's rates, and the answers of its last round."""
    generation = Generation(max_new_tokens=args.max_new_tokens)
    answerers = {
        pruner: LlavaAnswerer(checkpoint, pruner, generation)
        for pruner in dict.fromkeys(variant.pruner for variant in variants)
    }
    results = {variant: LoopRates([], []) for variant in variants}
    with progress_bar(total=len(variants) * (1 + args.rounds), desc="rounds", unit="round") as bar:
        for number in range(1 + args.rounds):
            for variant in variants:
                seconds, texts = answer_once(answerers[variant.pruner], questions, images, variant)
                if number:
                    results[variant].rates.append(len(questions) / seconds)
                results[variant].texts[:] = texts
                bar.update()
    return results


def report(
    results: dict[LoopVariant, LoopRates], questions: int, args: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    variants = list(results)
    first = statistics.median(results[variants[0]].rates)
    rows = []
    for variant, result in results.items():
        plain = results[LoopVariant(variant.pruner, variants[0].batch, variants[0].workers)]
        rows.append(
            {
                **variant._asdict(),
                "questions_per_second": round(statistics.median(result.rates), 3),
                "min": round(min(result.rates), 3),
                "max": round(max(result.rates), 3),
                "ratio": round(statistics.median(result.rates) / first, 3),
                "same_answers": result.texts == plain.texts,
            }
        )
    shared = {"questions": questions, "rounds": args.rounds, "max_new_tokens": args.max_new_tokens}
    return {"model": args.model_path, **shared, "rows": rows, "device": device_name(device), **environment(device)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'pruner':28} {'batch':>5} {'workers':>7} {'questions/s':>12} {'spread':>15} {'ratio':>6}"]
    for row in rows:
        spread = f"{row['min']:.2f}-{row['max']:.2f}"
        rate = f"{row['questions_per_second']:.2f}"
        lines.append(f"{row['pruner']:28} {row['batch']:5} {row['workers']:7} {rate:>12} {spread:>15} {row['ratio']:6}")
    return "\n".join(lines)


@program
def main(argv: list[str] | None = None) -> None:
    """Prints a table and, as the last line, the report as JSON."""
    args = build_parser().parse_args(argv)
    args.pruner = args.pruner or ["flowcut:budget=64"]
    variants = variants_of(args)
    questions, images, _ = questions_of(args.question_file, args.image_folder, args.limit)
    checkpoint = load_checkpoint(args.model_path, device=args.device, dtype=args.dtype, default_mode="vicuna_v1")
    results = measure(checkpoint, questions, images, variants, args)
    found = report(results, len(questions), args, checkpoint.model.device)
    print(table(found["rows"]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
