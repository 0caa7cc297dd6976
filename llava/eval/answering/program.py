"""The common part of the answering programs (`model_vqa_loader` and the others): flags, resuming, progress, report.

A program reads its kind of question file; everything else is here. When started again, it answers the remaining
questions. Questions that could not be answered are reported at the end, one line each, and listed in
`<answers>.bad.jsonl`; the exit status is then 1, unless --skip-bad is given.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flowcut.cli.command_line import print_result, program, told_in_one_line
from flowcut.cli.progress import progress_bar
from llava.eval.answering.answer_run import AnswerRun, QuestionRun
from llava.eval.answering.chunks import end_with_parent
from llava.eval.answering.journal import Journal
from llava.eval.answering.served_run import ServedRun
from llava.eval.answering.settings import SERVED, check_server
from llava.eval.models.load import load_answerer
from llava.eval.models.reply import Generation, check_device
from llava.eval.models.served_answerer import ServedAnswerer, manner_of
from llava.eval.provenance import fingerprint
from llava.eval.questions import Problem, Question, chunk, subset
from llava.given import home_path

QuestionReader = Callable[[argparse.Namespace], tuple[list[Question], list[Problem]]]


@dataclass(frozen=True)
class AnsweringProgram:
    """A program that answers one kind of question file.

    build_parser: its flags. read: the questions of `args.question_file`, and the problems of unreadable ones; it may
    raise ValueError, one line, for a file of another kind.
    """

    build_parser: Callable[[], argparse.ArgumentParser]
    read: QuestionReader

    def eval_model(self, args: argparse.Namespace) -> int:
        """Answer a question file with the flags in `args`; returns how many questions could not be answered."""
        return answer_all(start_run(args, self.read))

    @program
    def main(self, argv: Sequence[str] | None = None) -> None:
        """The program itself: ends with one line and status 1 for invalid input and unanswered questions."""
        args = self.build_parser().parse_args(argv)
        end_with_parent()
        with told_in_one_line(kept=f"answers so far are in {args.answers_file}, and the same command continues them"):
            run = start_run(args, self.read)
            unanswered = answer_all(run, args.chunk_idx)
        counts = {"questions": len(run.questions), "answered": len(run.journal), "unanswered": unanswered}
        print_result({"answers_file": str(args.answers_file), **counts})
        if unanswered and not args.skip_bad:
            sys.exit(1)


def start_run(args: argparse.Namespace, read: QuestionReader) -> QuestionRun:
    """Everything up to the first answer. Raises ValueError, one line, for invalid flags and files."""
    if args.batch_size < 1:
        raise ValueError(f"--batch-size {args.batch_size} is not a number of questions; give 1 or more")
    if args.workers is not None and args.workers < 0:
        raise ValueError(f"--workers {args.workers} is not a number of processes; give 0 or more")
    check_device(args.device)
    check_server(args)
    generation = Generation(args.temperature, args.top_p, args.num_beams, args.max_new_tokens, args.seed)
    rows, problems = read(args)
    questions = chunk(subset(rows, args.limit), args.num_chunks, args.chunk_idx)
    return (_served if args.backend == SERVED else _loaded)(args, generation, questions, problems)


def _loaded(
    args: argparse.Namespace, generation: Generation, questions: list[Question], problems: list[Problem]
) -> AnswerRun:
    """A run with a model in this process."""
    answerer = load_answerer(
        args.model_path,
        pruner=args.pruner,
        generation=generation,
        backend=args.backend,
        frames=args.frames,
        max_pixels=args.max_pixels,
        model_base=args.model_base,
        conv_mode=args.conv_mode,
        default_mode=args.default_mode,
        device=args.device,
        dtype=args.dtype,
    )
    journal = _journal(args, answerer.settings())
    workers = default_workers(answerer.checkpoint.model.device) if args.workers is None else args.workers
    return AnswerRun(answerer, questions, args.image_folder, journal, args.batch_size, problems, workers)


def _served(
    args: argparse.Namespace, generation: Generation, questions: list[Question], problems: list[Problem]
) -> ServedRun:
    """A run with a server's model."""
    manner = manner_of(args.model_path, args.conv_mode, args.default_mode)
    answerer = ServedAnswerer(args.server, args.model_path, args.pruner, generation, manner, args.in_flight)
    return ServedRun(answerer, questions, args.image_folder, _journal(args, answerer.settings()), problems)


def _journal(args: argparse.Namespace, settings: dict[str, Any]) -> Journal:
    """The answers file, with everything that determines its answers. settings: those of the answerer."""
    more = {
        "questions": fingerprint([home_path(args.question_file)]),
        # relative, so that data and answers may be moved together
        "image_folder": os.path.relpath(home_path(args.image_folder), home_path(args.answers_file).parent),
        "chunk": [args.chunk_idx, args.num_chunks],
        **_prompt_flags(args),
    }
    return Journal(args.answers_file, settings | more, fresh=args.fresh)


def _prompt_flags(args: argparse.Namespace) -> dict[str, object]:
    """Flags of single programs that change the prompts, where they are set."""
    names = ("single_pred_prompt", "all_rounds", "lang")
    return {name: getattr(args, name) for name in names if getattr(args, name, None)}


def default_workers(device: torch.device) -> int:
    """As many readers as in LLaVA with an accelerator; none on a CPU, where they would compete for the model's
    cores.
    """
    return 0 if device.type == "cpu" else min(4, os.cpu_count() or 1)


def answer_all(run: QuestionRun, line: int = 0) -> int:
    """Finish a run with a progress bar and report its problems; returns their number.

    line: the bar's line on the screen, so that the bars of several processes do not overwrite each other.
    """
    total = len(run.questions)
    name = run.journal.path.name
    with progress_bar(total=total, initial=total - run.remaining, desc=name, unit="question", position=line) as bar:
        try:
            while run.remaining:
                bar.update(run.step())
        except BaseException:  # the disk is full, Ctrl-C: the answers so far stay, and the file is free again
            run.close()
            raise
    problems = run.finish()
    for problem in problems:
        print(f"not answered: {problem.where}: {problem.what}", file=sys.stderr)
    print(f"{len(run.journal)} of {total} questions answered in {run.journal.path}", file=sys.stderr)
    return len(problems)
