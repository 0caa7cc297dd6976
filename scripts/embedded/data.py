"""Write the embedded data sets: LLaVA's JSON for the two training stages, question files for the benchmark.

Splits differ by seed only: ``train`` scenes never occur in ``dev`` (for choices in development) or ``test``
(for reported numbers). Everything can be regenerated from the seeds, so no picture is stored in the repository.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from flowcut.cli.command_line import Parser, print_result, program
from flowcut.cli.progress import progress_bar
from scripts.embedded.questions import MAKERS, ask, caption
from scripts.embedded.scenes import Scene, compose, draw

SPLIT_SEEDS = {"train": 5, "dev": 6, "test": 7}


def scene_at(split: str, number: int) -> tuple[Scene, np.random.Generator]:
    """Scene ``number`` of a split, and the generator from which its questions are drawn."""
    rng = np.random.default_rng((SPLIT_SEEDS[split], number))
    return compose(rng), rng


def save_picture(scene: Scene, path: Path) -> None:
    """Write a picture, unless it exists, to a temporary file that is then renamed."""
    if not path.exists():
        part = path.with_suffix(".part")
        Image.fromarray(draw(scene)).save(part, format="PNG", compress_level=1)
        part.replace(path)


def write_training(out: Path, first: int, scenes: int, questions: int) -> None:
    """``pretrain.json`` (captions) and ``finetune.json`` (several questions per picture), pictures in ``images/``."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    captions: list[dict] = []
    dialogues: list[dict] = []
    for number in progress_bar(range(first, first + scenes), desc="training scenes", unit="scene"):
        scene, rng = scene_at("train", number)
        name = f"train_{number:06d}.png"
        save_picture(scene, out / "images" / name)
        described = [("human", "<image>\nDescribe the image."), ("gpt", caption(scene))]
        turns = []
        for position, question in enumerate(ask(scene, rng, questions)):
            turns += [("human", ("<image>\n" if position == 0 else "") + question.text), ("gpt", question.answer)]
        for rows, dialogue in ((captions, described), (dialogues, turns)):
            conversations = [{"from": who, "value": value} for who, value in dialogue]
            rows.append({"id": name[:-4], "image": name, "conversations": conversations})
    (out / "pretrain.json").write_text(json.dumps(captions))
    (out / "finetune.json").write_text(json.dumps(dialogues))


def write_benchmark(out: Path, split: str, scenes: int, questions: int, kinds: tuple[str, ...]) -> None:
    """``questions.jsonl`` (LLaVA's format), ``blind.jsonl`` (each on another scene's picture) and ``answers.jsonl``."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    seeing: list[dict] = []
    blind: list[dict] = []
    truth: list[dict] = []
    for number in progress_bar(range(scenes), desc=f"{split} scenes", unit="scene"):
        scene, rng = scene_at(split, number)
        name, other = f"{split}_{number:04d}.png", f"{split}_{(number + 1) % scenes:04d}.png"
        save_picture(scene, out / "images" / name)
        for question in ask(scene, rng, questions, kinds):
            key = f"{split}-{len(truth)}"
            row = {"question_id": key, "image": name, "text": question.text, "category": question.kind}
            seeing.append(row)
            blind.append(row | {"image": other})
            truth.append({"question_id": key, "answer": question.answer, "category": question.kind, "scene": number})
    for file, rows in (("questions", seeing), ("blind", blind), ("answers", truth)):
        (out / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--split", choices=SPLIT_SEEDS, default="test")
    parser.add_argument("--scenes", type=int, default=250)
    parser.add_argument("--questions", type=int, help="questions per scene (default: 8 for training, 6 else)")
    parser.add_argument("--first", type=int, default=0, help="train only: number of the first scene")
    parser.add_argument("--kinds", default=",".join(MAKERS), help="dev and test: comma-separated question types")
    return parser


@program
def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    kinds = tuple(args.kinds.split(","))
    if unknown := set(kinds) - set(MAKERS):
        parser.error(f"unknown question types {sorted(unknown)}; there are {', '.join(MAKERS)}")
    if args.split == "train":
        write_training(args.out, args.first, args.scenes, args.questions or 8)
    else:
        write_benchmark(args.out, args.split, args.scenes, args.questions or 6, kinds)
    print_result({"out": str(args.out), "split": args.split, "scenes": args.scenes})


if __name__ == "__main__":
    main()
