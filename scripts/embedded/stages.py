"""What serving in one stage costs: FlowCut with and without its cut inside the language model, on pictures in tiles.

    python -m scripts.embedded.stages --data playground/data/embedded --limit 200 --budget 192 --budget 96

vLLM cannot drop tokens inside the language model, so a two-stage family is served with the whole cut in the encoder.
The embedded model is asked about the whole picture and two tiles; it was trained without tiles, so these rows compare
with each other alone. Both ways get the same budget. Printed is one JSON line for each row: the tokens that enter the
language model and its last layer, the accuracy in percent with its 95 % interval over scenes, and the answers that
equal the unpruned ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from flowcut.cli.command_line import Parser, parse_first, program


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--model-path", also=["--model"], dest="model", default="playground/embedded")
    parser.add_argument(
        "--data", type=Path, default=Path("playground/data/embedded"), help="the embedded benchmark's folder"
    )
    parser.add_argument("--limit", type=int, default=200, help="number of questions, spread evenly")
    parser.add_argument(
        "--budget", type=int, action="append", help="tokens of a picture; may be repeated (default: 96, 48)"
    )
    return parser


parse_first(__name__, build_parser)

from flowcut.methods import FlowCut
from flowcut.pruner import EncoderShape, Pruner
from flowcut.pruner.view import Rows
from llava.eval.benchmarks import embedded
from llava.eval.media.images import load_image
from llava.eval.models.llava_answerer import LlavaAnswerer
from llava.eval.models.llava_checkpoint import load_checkpoint
from llava.eval.models.reply import Generation, Reply
from llava.eval.questions import questions_of
from llava.eval.sample import Sample

CANVASES = [[336, 672], [672, 336]]


@dataclass(frozen=True)
class OneStage(FlowCut):
    """FlowCut as vLLM serves it: the encoder keeps the budget, the language model drops nothing."""

    def cuts_language(self, two_stage: bool) -> bool:
        return False

    def targets(self, rows: Rows, shape: EncoderShape) -> list[int]:
        return Pruner.targets(self, rows, shape)


def row_of(replies: list[Reply], samples: list[Sample], plain: list[Reply]) -> dict[str, Any]:
    """The numbers of one way. plain: the unpruned replies to the same questions."""
    scores = [embedded.score(replace(sample, text=reply.text)) for sample, reply in zip(samples, replies, strict=True)]
    deepest = [reply.language_tokens[-1] if reply.language_tokens else reply.visual_tokens for reply in replies]
    return {
        "tokens_entering": round(fmean(reply.visual_tokens for reply in replies), 1),
        "tokens_in_last_layer": round(fmean(deepest), 1),
        **embedded.accuracy(scores),
        "equal_to_unpruned": sum(one.text == two.text for one, two in zip(replies, plain, strict=True)),
    }


def measure(model: str, data: Path, limit: int, budgets: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The rows: unpruned, then for each budget FlowCut in two stages and in one."""
    questions, images, _ = questions_of(data / embedded.QUESTIONS, data / embedded.IMAGES, limit)
    benchmark = embedded.BENCHMARK
    truth = {sample.question_id: sample for sample in benchmark.load(data, benchmark.split(), [])}
    samples = [truth[question.question_id] for question in questions]
    checkpoint = load_checkpoint(model, default_mode="vicuna_v1")
    config = checkpoint.model.config
    config.image_aspect_ratio, config.image_grid_pinpoints = "anyres", CANVASES
    ways: list[tuple[str, Pruner | None]] = [("unpruned", None)]
    for budget in budgets:
        ways += [("two-stage", FlowCut(budget=budget)), ("one-stage", OneStage(budget=budget))]
    plain: list[Reply] = []
    for stages, pruner in ways:
        answerer = LlavaAnswerer(checkpoint, "none", Generation(max_new_tokens=embedded.MAX_NEW_TOKENS))
        answerer.pruner = pruner
        replies = [
            answerer([question.text], [[load_image(images / str(name)) for name in question.images]])[0]
            for question in questions
        ]
        plain = plain or replies
        yield {"stages": stages, "budget": pruner.budget if pruner else None, **row_of(replies, samples, plain)}


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    for row in measure(args.model, args.data, args.limit, args.budget or [96, 48]):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
