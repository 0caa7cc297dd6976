"""Chat about one or more pictures, or without any, in the terminal.

    python -m llava.serve.cli --model-path playground/embedded --image docs/images/scene.png --device cpu

An empty line or the end of input (Ctrl-D) ends the chat; Ctrl-C ends an answer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import TextIO

from PIL import Image

from flowcut.cli.command_line import Parser, parse_first, program
from llava import pictures
from llava.conversation import conv_templates
from llava.eval.media.images import load_image
from llava.serve.flags import add_model_flags
from llava.serve.terminal import Typist
from llava.serve.turns import prompt_of, stop_of


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    add_model_flags(parser)
    parser.add_argument(
        "--image",
        also=["--image-file"],
        dest="image_file",
        action="append",
        default=[],
        help="path or http(s) address; separate several by commas or repeat the flag; none: no pictures",
    )
    parser.add_argument("--conv-mode", help="prompt template (default: the checkpoint's own, else by its name)")
    parser.add_argument("--temperature", type=float, default=0.2, help="0 is greedy")
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0, help="for temperatures above 0")
    parser.add_argument("--allow-private", action="store_true", help="fetch from loopback and private addresses too")
    parser.add_argument("--debug", action="store_true", help="print each prompt and the cost of its answer")
    return parser


parse_first(__name__, build_parser)

from llava.serve.answer_stats import AnswerStats
from llava.serve.engine import ChatPrompt, Engine
from llava.serve.loading import load_engine


class Chat:
    """A conversation about `images` that stores its turns, without special tokens."""

    def __init__(self, engine: Engine, images: Sequence[Image.Image], args: argparse.Namespace) -> None:
        self.engine, self.images, self.args = engine, images, args
        self.template = conv_templates[engine.checkpoint.mode]
        self.turns: list[tuple[str, str | None]] = []

    def prompt(self, text: str) -> str:
        return prompt_of(self.template, [*self.turns, (text, None)], len(self.images))

    def say(self, text: str, out: TextIO) -> AnswerStats | None:
        """Write the answer to `out` as it is generated; of an interrupted answer, the generated part is stored.

        Raises ValueError, one line, for an invalid question, and any error of the model.
        """
        question = ChatPrompt(
            self.prompt(text),
            self.images,
            temperature=self.args.temperature,
            top_p=self.args.top_p,
            max_new_tokens=self.args.max_new_tokens,
            stop=(stop_of(self.template),),
            seed=self.args.seed + len(self.turns),  # a repeated question may get another answer
        )
        typist, figures = Typist(out), None
        try:
            with closing(self.engine.ask(question)) as news:  # type: ignore[type-var]
                for progress in news:
                    typist.show(progress.text)
                    figures = progress.figures
        except KeyboardInterrupt:
            out.write(" (interrupted)")
        typist.end()
        if figures is None or figures.finish != "context":
            self.turns.append((text, typist.shown.strip()))
        return figures


def picture_names(given: Sequence[str]) -> list[str]:
    return [name for text in given for name in pictures.picture_names(text)]


def converse(chat: Chat, read: Callable[[str], str], out: TextIO) -> None:
    """Turn by turn until an empty line or the end of input."""
    roles = ("USER", "ASSISTANT") if "mpt" in chat.template.version else chat.template.roles
    while True:
        try:
            text = read(f"{roles[0]}: ")
        except (EOFError, KeyboardInterrupt):
            text = ""
        if not text:
            out.write("exit...\n")
            return
        out.write(f"{roles[1]}: ")
        out.flush()
        prompt = chat.prompt(text)
        try:
            figures = chat.say(text, out)
        except Exception as error:  # out of memory, an invalid setting: the chat continues
            out.write(f"error: {type(error).__name__}: {' '.join(str(error).split())}\n")
            continue
        if chat.args.debug:
            out.write(f"{ {'prompt': prompt, **(asdict(figures) if figures else {})} }\n")


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    images = [load_image(name, args.allow_private) for name in picture_names(args.image_file)]
    chat = Chat(load_engine(args), images, args)
    converse(chat, input, sys.stdout)


if __name__ == "__main__":
    main()
