"""Ask one question about a picture with several methods or budgets, and show the answers side by side.

flowcut compare --image docs/images/scene.png --query "What color is the star?" --budget 576 64
flowcut compare --image docs/images/scene.png --query "What color is the star?" --pruner flowcut:budget=64 \\
    --pruner divprune:budget=64

The model without pruning comes first. Times are from pixels to the end of the answer, medians over rounds in which the
variants alternate, after one warm-up round. The last line is one JSON document.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import Parser, parse_first, program


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--image", required=True, help="picture to ask about")
    parser.add_argument("--query", also=["--question"], required=True, help="the question")
    parser.add_argument("--model-path", default="playground/embedded", help="checkpoint (default: %(default)s)")
    parser.add_argument("--pruner", action="append", help="such as flowcut:budget=64; may be given several times")
    parser.add_argument("--budget", type=int, nargs="+", help="visual tokens that --method keeps; one variant each")
    parser.add_argument("--method", default="flowcut", help="for --budget, see `flowcut list` (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds (default: %(default)s)")
    parser.add_argument("--out", help="also draw what is kept into this file (LLaVA checkpoints)")
    return parser


parse_first(__name__, build_parser)

from flowcut.checkpoints import answerers_of, load_image, load_reader, pruned_picture
from flowcut.cli.progress import progress_bar
from flowcut.plots import kept_patches
from flowcut.registry import parse_pruner


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0."""
    args = build_parser().parse_args(argv)
    if args.rounds < 1:
        raise ValueError(f"--rounds {args.rounds}: give 1 or more")
    picture = load_image(args.image)
    reader, _ = load_reader(args.model_path)
    variants = variants_of(args, reader)
    rows = measure(reader, variants, args.query, picture, args.rounds)
    print(table(args.query, rows))
    if args.out:
        print(f"drew {draw(args.image, args.model_path, variants[1:], args.out)}")
    print(json.dumps({"model": args.model_path, "image": args.image, "query": args.query, "rows": rows}))
    return 0


def variants_of(args: Any, reader: Any) -> list[str]:
    """The pruners as text, "none" first. A budget of all of a LLaVA's tokens is the model without pruning."""
    tower = getattr(reader.checkpoint.model, "get_vision_tower", None)
    whole = tower().num_patches if tower is not None else None
    wanted = [*(args.pruner or []), *(f"{args.method}:budget={budget}" for budget in args.budget or [])]
    left = [text for text in wanted or ["flowcut:budget=64"] if text != "none" and not text.endswith(f"budget={whole}")]
    for text in left:
        parse_pruner(text)
    return ["none", *dict.fromkeys(left)]


def measure(reader: Any, variants: Sequence[str], query: str, picture: Any, rounds: int) -> list[dict[str, Any]]:
    """One row for each variant: answer, visual tokens of the language model, milliseconds, times as fast as the first.

    Raises:
        ValueError: a pruner does not fit the model.
    """
    answerers = answerers_of(reader, variants)
    replies: list[list[Any]] = [[] for _ in variants]
    with progress_bar(total=(1 + rounds) * len(variants), desc="answers") as bar:
        for _ in range(1 + rounds):
            for answerer, own in zip(answerers, replies, strict=True):
                own += answerer([query], [[picture]])
                bar.update()
    times = [statistics.median(reply.ms for reply in own[1:]) for own in replies]
    return [
        {
            "pruner": text,
            "visual_tokens": own[-1].visual_tokens,
            "answer": own[-1].text,
            "ms": round(ms, 1),
            "speedup": round(times[0] / ms, 2),
        }
        for text, own, ms in zip(variants, replies, times, strict=True)
    ]


def table(query: str, rows: Sequence[dict[str, Any]]) -> str:
    wide = max(len("pruner"), *(len(row["pruner"]) for row in rows))
    lines = [f"Q: {query}", "", f"{'pruner':{wide}}  visual tokens      ms  speed  answer"]
    lines += [
        f"{row['pruner']:{wide}}  {row['visual_tokens']:13}  {row['ms']:6.1f}  {row['speedup']:4.2f}x  {row['answer']}"
        for row in rows
    ]
    return "\n".join(lines)


def draw(image: str, model_path: str, pruners: Sequence[str], out: str) -> str:
    """Write the picture, and beside it what the last selection of each pruner keeps; returns the file's name."""
    steps, shown, side = [], None, 1
    for text in pruners:
        pruner = parse_pruner(text)
        if pruner is None:
            continue
        shown, trace, side = pruned_picture(image, model_path, pruner)
        if trace.kept:
            steps.append((text, trace.kept[max(trace.kept)][0].cpu().numpy()))
    if shown is None or not steps:
        raise ValueError("--out draws what an encoder keeps, but no variant prunes there; try flowcut:budget=64")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    kept_patches(shown, steps, (side, side)).save(out)
    return out


if __name__ == "__main__":
    sys.exit(main())
