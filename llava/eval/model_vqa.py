"""Answer a question file with long answers (MM-Vet, LLaVA-Bench): `model_vqa_loader` with up to 1024 new tokens."""

from __future__ import annotations

import argparse

from flowcut.cli.command_line import parse_first
from llava.eval.answering import settings


def build_parser() -> argparse.ArgumentParser:
    return settings.build_parser(__doc__, "JSON lines with question_id, image, text", "llava_v1", max_new_tokens=1024)


parse_first(__name__, build_parser)

from llava.eval.answering.program import AnsweringProgram
from llava.eval.model_vqa_loader import read

PROGRAM = AnsweringProgram(build_parser, read)
eval_model, main = PROGRAM.eval_model, PROGRAM.main

if __name__ == "__main__":
    main()
