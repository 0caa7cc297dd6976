"""Answers to VQAv2 in the format of its server: every question of test2015, "" for those without an answer.

Reads DIR/answers/SPLIT/CKPT/merge.jsonl, writes DIR/answers_upload/SPLIT/CKPT.json.
"""

from __future__ import annotations

from pathlib import Path

from flowcut.cli.command_line import Parser, print_result, program
from llava.eval.benchmarks import vqav2
from llava.eval.benchmarks.join import read_answers
from llava.eval.files import write_rows


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--dir", type=Path, default=Path("playground/data/eval/vqav2"), help="VQAv2's folder")
    parser.add_argument("--ckpt", required=True, help="name of the answers' folder, slashes allowed")
    parser.add_argument("--split", required=True, help="llava_vqav2_mscoco_test-dev2015, for instance")
    return parser


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    target = args.dir / "answers_upload" / args.split / f"{args.ckpt}.json"
    ids = vqav2.upload_ids(args.dir)
    answers = read_answers(args.dir / "answers" / args.split / args.ckpt / "merge.jsonl")
    said = {row["question_id"]: row["text"] for row in answers}
    write_rows(vqav2.upload_rows(ids, said), target)
    answered = len(said.keys() & set(ids))
    print(f"{target}: {len(ids)} questions, {answered} answered, {len(said) - answered} answers to other questions")
    print_result({"file": str(target), "questions": len(ids), "answered": answered})


if __name__ == "__main__":
    main()
