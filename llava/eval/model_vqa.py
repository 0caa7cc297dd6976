"""Answer a question file with long answers (MM-Vet, LLaVA-Bench): `model_vqa_loader` with up to 1024 new tokens."""

from __future__ import annotations

import argparse

from llava.eval import model_vqa_loader, program


def build_parser() -> argparse.ArgumentParser:
    return program.build_parser(__doc__, "JSON lines with question_id, image, text", "llava_v1", max_new_tokens=1024)


def eval_model(args: argparse.Namespace) -> int:
    """Answer a question file as the flags in `args` say; returns how many questions could not be answered."""
    return model_vqa_loader.eval_model(args)


def main(argv: list[str] | None = None) -> None:
    program.run_program(build_parser(), model_vqa_loader.read, argv)


if __name__ == "__main__":
    main()
