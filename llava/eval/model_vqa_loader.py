"""Answer a question file: LLaVA's program of this name and its flags, batched, resumable, with a pruner if you like.

Started again after any kind of end, it answers what is missing. What could not be answered is reported at the end,
one line each, and listed in `<answers>.bad.jsonl`; the exit status is then 1, unless --skip-bad was given.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from llava.eval.answer import DTYPES, Answerer, Generation, load_checkpoint
from llava.eval.journal import Journal
from llava.eval.provenance import fingerprint
from llava.eval.questions import chunk, read_questions, subset
from llava.eval.run import Run


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True, help="checkpoint folder, or Hub name")
    parser.add_argument("--model-base", help="language model under a projector-only checkpoint")
    parser.add_argument("--image-folder", default="", help="folder the questions' image paths start from")
    parser.add_argument("--question-file", required=True, help="JSON lines with question_id, image, text")
    parser.add_argument("--answers-file", default="answer.jsonl", help="JSON lines to write, or to continue")
    parser.add_argument("--conv-mode", help="prompt template (default: the checkpoint's own, else llava_v1)")
    parser.add_argument("--num-chunks", type=int, default=1, help="split the questions into this many pieces ...")
    parser.add_argument("--chunk-idx", type=int, default=0, help="... and answer this one, from 0")
    parser.add_argument("--temperature", type=float, default=0.2, help="0 is greedy, as for published numbers")
    parser.add_argument("--top_p", type=float)
    parser.add_argument("--num_beams", type=int, default=1)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0, help="for temperatures above 0")
    parser.add_argument("--pruner", help="flowcut:budget=64, ..., or none (default: the checkpoint's own, if any)")
    parser.add_argument("--batch-size", type=int, default=1, help="questions at a time; answers do not depend on it")
    parser.add_argument("--limit", type=int, help="ask this many questions only, spread evenly over the file")
    parser.add_argument("--skip-bad", action="store_true", help="exit with 0 even if some questions were unanswerable")
    parser.add_argument("--fresh", action="store_true", help="start over instead of continuing the answers file")
    parser.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: cuda where there is one)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float16, on a CPU float32")
    return parser


def prepare(args: argparse.Namespace) -> Run:
    """Everything up to the first answer. Raises ValueError, one line, for whatever the user has to mend."""
    if args.batch_size < 1:
        raise ValueError(f"--batch-size {args.batch_size} is no number of questions; give 1 or more")
    rows, problems = read_questions(args.question_file)
    questions = chunk(subset(rows, args.limit), args.num_chunks, args.chunk_idx)
    generation = Generation(args.temperature, args.top_p, args.num_beams, args.max_new_tokens, args.seed)
    checkpoint = load_checkpoint(
        args.model_path, args.model_base, args.conv_mode, args.device, args.dtype, default_mode="llava_v1"
    )
    answerer = Answerer(checkpoint, args.pruner, generation)
    settings = {
        **answerer.settings(),
        "questions": fingerprint([Path(args.question_file).expanduser()]),
        "chunk": [args.chunk_idx, args.num_chunks],
    }
    journal = Journal(args.answers_file, settings, fresh=args.fresh)
    return Run(answerer, questions, args.image_folder, journal, args.batch_size, problems)


def answer_all(run: Run) -> int:
    """Take a run to its end with a progress bar, report its problems; returns how many there were."""
    total = len(run.questions)
    with tqdm(total=total, initial=total - run.remaining, desc=run.journal.path.name, unit="question") as bar:
        while run.remaining:
            bar.update(run.step())
    problems = run.finish()
    for problem in problems:
        print(f"not answered: {problem.where}: {problem.what}", file=sys.stderr)
    print(f"{len(run.journal)} of {total} questions answered in {run.journal.path}", file=sys.stderr)
    return len(problems)


def eval_model(args: argparse.Namespace) -> int:
    """Answer a question file as the flags in `args` say; returns how many questions could not be answered."""
    return answer_all(prepare(args))


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    try:
        run = prepare(args)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if answer_all(run) and not args.skip_bad:
        sys.exit(1)


if __name__ == "__main__":
    main()
