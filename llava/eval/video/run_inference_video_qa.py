"""Answer questions about videos (TGIF, MSVD, MSRVTT): Video-LLaVA's program of this name, its flags and answer lines.

Lines `{"id", "question", "answer", "pred"}` go to `<output_dir>/<output_name>.json` when all questions have been tried.
Right answers are found by `question_id`, so they are correct in every chunk. Answers are written immediately to
`<output_name>.answers.jsonl`, with their costs; when started again, the remaining questions are answered.

Frames are spread evenly from the first to the last, with short side 224 and centre crop, and never flipped:
the original flips each video at random, also in evaluation.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import Parser, parse_first, print_result, program
from llava.eval.answering.journal import Journal
from llava.eval.files import write_atomic
from llava.eval.media.frames import is_video
from llava.eval.models.reply import DTYPES, Generation
from llava.eval.questions import Problem, Question, chunk, subset
from llava.given import home_path, read_json


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument(
        "--model_path", required=True, help="folder or Hub name, such as LanguageBind/Video-LLaVA-7B-hf"
    )
    parser.add_argument("--cache_dir", help="where downloads from the Hub go (default: its usual cache)")
    parser.add_argument("--video_dir", required=True, help="folder with the videos")
    parser.add_argument("--gt_file_question", required=True, help="JSON list of video_name, question, question_id")
    parser.add_argument("--gt_file_answers", required=True, help="JSON list of question_id, answer")
    parser.add_argument("--output_dir", required=True, help="folder for the answers; made if missing")
    parser.add_argument("--output_name", required=True, help="name of the answers file, without .json")
    parser.add_argument("--num_chunks", type=int, default=1, help="split the questions into this many pieces ...")
    parser.add_argument("--chunk_idx", type=int, default=0, help="... and answer this one, from 0")
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: cuda where there is one)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: the checkpoint's own, on a CPU float32")
    parser.add_argument(
        "--conv_mode", default="llava_v1", help="prompt template; '' for the checkpoint's chat template"
    )
    parser.add_argument("--frames", type=int, default=8, help="of each video")
    parser.add_argument("--max_pixels", type=int, help="of each frame, for Qwen2-VL")
    parser.add_argument("--max_new_tokens", type=int, default=1024)
    parser.add_argument("--pruner", help="flowcut:budget=32, ..., or none (default: the checkpoint's own, if any)")
    parser.add_argument("--batch_size", type=int, default=1, help="questions at a time; answers do not depend on it")
    parser.add_argument("--workers", type=int, help="processes that prefetch videos (default: 4, on a CPU 0)")
    parser.add_argument("--limit", type=int, help="number of questions, spread evenly over the file (default: all)")
    parser.add_argument(
        "--skip_bad", action="store_true", help="exit with 0 even if some questions could not be answered"
    )
    parser.add_argument("--fresh", action="store_true", help="start over instead of continuing")
    return parser


parse_first(__name__, build_parser)

from llava.eval.answering.answer_run import AnswerRun
from llava.eval.answering.program import answer_all, default_workers
from llava.eval.models.hf_answerer import HFAnswerer
from llava.eval.models.hf_checkpoint import load_hf_checkpoint
from llava.eval.provenance import fingerprint


def read(args: argparse.Namespace) -> tuple[list[Question], list[Problem]]:
    """The questions with a right answer, each with its video's name and its right answer in `extra`.

    Raises ValueError, one line, for missing or invalid files.
    """
    answers = _answers(home_path(args.gt_file_answers))
    videos = _videos(home_path(args.video_dir))
    questions, problems = [], []
    file = home_path(args.gt_file_question)
    for number, row in enumerate(_rows(file, ("video_name", "question", "question_id")), start=1):
        name, asked, identity = str(row["video_name"]), str(row["question"]), row["question_id"]
        if identity not in answers:
            problems.append(
                Problem(f"{file.name} entry {number}", f"question {identity} has no answer to compare with")
            )
            continue
        video = videos.get(name, name if is_video(name) else f"{name}.mp4")
        questions.append(Question(identity, (video,), asked, extra={"answer": answers[identity]}))
    return questions, problems


def _rows(file: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    rows = read_json(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and set(keys) <= set(row) for row in rows):
        raise ValueError(f"{file} is not a JSON list of {', '.join(keys)}; give the files of one benchmark")
    return rows


def _answers(file: Path) -> dict[Any, str]:
    answers: dict[Any, str] = {}
    for row in _rows(file, ("question_id", "answer")):
        identity, answer = row["question_id"], str(row["answer"])
        if answers.setdefault(identity, answer) != answer:
            raise ValueError(
                f"{file} answers question {identity} twice, {answers[identity]!r} and {answer!r}; correct it"
            )
    return answers


def _videos(folder: Path) -> dict[str, str]:
    """File names of videos by their name with and without extension."""
    if not folder.is_dir():
        raise ValueError(f"video folder {folder} does not exist; give the folder of the videos")
    names = sorted(entry.name for entry in folder.iterdir() if is_video(entry.name))
    return {Path(name).stem: name for name in reversed(names)} | {name: name for name in names}


def start(args: argparse.Namespace) -> AnswerRun:
    """Everything up to the first answer. Raises ValueError, one line, for invalid flags and files."""
    rows, problems = read(args)
    questions = chunk(subset(rows, args.limit), args.num_chunks, args.chunk_idx)
    checkpoint = load_hf_checkpoint(
        args.model_path, args.conv_mode, args.device, args.dtype, args.frames, args.max_pixels, args.cache_dir
    )
    answerer = HFAnswerer(checkpoint, args.pruner, Generation(max_new_tokens=args.max_new_tokens))
    files = [home_path(file) for file in (args.gt_file_question, args.gt_file_answers)]
    settings = {
        **answerer.settings(),
        "questions": fingerprint(files),
        "chunk": [args.chunk_idx, args.num_chunks],
    }
    journal = Journal(Path(args.output_dir) / f"{args.output_name}.answers.jsonl", settings, fresh=args.fresh)
    workers = default_workers(checkpoint.model.device) if args.workers is None else args.workers
    return AnswerRun(answerer, questions, args.video_dir, journal, args.batch_size, problems, workers)


def run_inference(args: argparse.Namespace) -> int:
    """Answer the questions with the flags in `args`; returns how many questions could not be answered."""
    run = start(args)
    failures = answer_all(run)
    lines = [json.loads(line) for line in run.journal.path.read_text("utf-8").splitlines()]
    written = [
        {"id": line["question_id"], "question": line["prompt"], "answer": line["answer"], "pred": line["text"]}
        for line in lines
    ]
    output = home_path(args.output_dir) / f"{args.output_name}.json"
    write_atomic(output, "".join(json.dumps(line) + "\n" for line in written))
    return failures


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    failures = run_inference(args)
    print_result({"answers_file": str(Path(args.output_dir) / f"{args.output_name}.json"), "unanswered": failures})
    if failures and not args.skip_bad:
        sys.exit(1)


if __name__ == "__main__":
    main()
