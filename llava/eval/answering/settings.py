"""The settings of an answering program, for loading the model and generating answers, and their flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from flowcut.cli.command_line import Parser
from llava.eval.models.reply import BACKENDS, DTYPES, Generation, check_device

# Where a field's flag is not --name with dashes. LLaVA writes some of its flags with underscores.
_FLAGS = {"backend": "--host"} | {name: f"--{name}" for name in ("top_p", "num_beams", "max_new_tokens")}

SERVED = "vllm"
"""The backend that loads nothing: a server answers, see `llava.eval.models.served_answerer`."""
# What a server decides when it is started.
_OF_THE_SERVER = ("model_base", "dtype", "max_pixels")


def check_server(settings: Any) -> None:
    """Raise ValueError, one line, where the flags for a server are not given together, or others contradict them."""
    if (settings.backend == SERVED) != (settings.server is not None):
        raise ValueError("--backend vllm and --server URL belong together; give both or neither")
    if settings.server is None:
        return
    if settings.in_flight < 1:
        raise ValueError(f"--in-flight {settings.in_flight} is not a number of requests; give 1 or more")
    for name in _OF_THE_SERVER:
        if getattr(settings, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is decided by the server; leave it out with --backend vllm")
    if settings.num_beams > 1:
        raise ValueError(f"--num_beams {settings.num_beams} is not possible with --backend vllm; leave it out")


@dataclass(frozen=True)
class AnswerSettings:
    """Settings of an answering program. For None, the checkpoint, the device or the benchmark decides.

    more: flags that only some of the programs have, such as ("--lang", "cn").
    The help of the flags of these names describes the others; `backend` is --host.

    Raises ValueError, one line, for values that cannot be.
    """

    model_base: str | None = None
    conv_mode: str | None = None
    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1
    max_new_tokens: int | None = None
    seed: int = 0
    batch_size: int = 1
    workers: int | None = None
    fresh: bool = False
    device: str | None = None
    dtype: str | None = None
    backend: str = "auto"
    frames: int = 8
    max_pixels: int | None = None
    server: str | None = None
    in_flight: int = 16
    more: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        length = 1 if self.max_new_tokens is None else self.max_new_tokens
        Generation(self.temperature, self.top_p, self.num_beams, length, self.seed)
        for name, least in (("batch_size", 1), ("workers", 0), ("frames", 1), ("max_pixels", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} is not possible; give {least} or more")
        check_device(self.device)
        check_server(self)

    @classmethod
    def parse(cls, flags: Sequence[str], temperature: float = 0.0) -> AnswerSettings:
        """The settings from a program's flags; other flags are kept in `more`.

        Raises ValueError, one line, for a flag with a bad value.
        """
        parser = Parser(add_help=False, exit_on_error=False)
        add_answer_flags(parser, "", None, temperature)
        try:
            known, more = parser.parse_known_args(list(flags))
        except argparse.ArgumentError as error:
            raise ValueError(str(error)) from error
        return cls(**{name: getattr(known, name) for name in _names()}, more=tuple(more))

    def flags(self) -> list[str]:
        """The same as flags of an answering program; temperature and length are always included."""
        told: list[str] = []
        for name in _names():
            value, flag = getattr(self, name), _FLAGS.get(name, "--" + name.replace("_", "-"))
            if isinstance(value, bool):
                told += [flag] if value else []
            elif value is not None and (name == "temperature" or value != getattr(AnswerSettings, name)):
                told += [flag, str(value)]
        return [*told, *self.more]


def _names() -> list[str]:
    return [field.name for field in fields(AnswerSettings) if field.name != "more"]


def add_answer_flags(
    parser: argparse.ArgumentParser, conv_mode: str, max_new_tokens: int | None, temperature: float = 0.2
) -> None:
    """The flags of `AnswerSettings`, under LLaVA's names. conv_mode, max_new_tokens, temperature: their defaults."""
    parser.add_argument("--model-base", help="base model of a LoRA adapter or a projector")
    parser.add_argument("--conv-mode", help=f"prompt template (default: the checkpoint's own, else {conv_mode})")
    parser.add_argument("--temperature", type=float, default=temperature, help="0 is greedy, as for published numbers")
    parser.add_argument("--top_p", type=float)
    parser.add_argument("--num_beams", type=int, default=1)
    parser.add_argument("--max_new_tokens", type=int, default=max_new_tokens)
    parser.add_argument("--seed", type=int, default=0, help="for temperatures above 0")
    parser.add_argument("--batch-size", type=int, default=1, help="questions at a time; answers do not depend on it")
    parser.add_argument("--workers", type=int, help="processes that prefetch pictures (default: 4, on a CPU 0)")
    parser.add_argument("--fresh", action="store_true", help="start over instead of continuing the answers file")
    parser.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: cuda where there is one)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float16, on a CPU float32")
    parser.add_argument(
        "--host",
        "--backend",
        dest="backend",
        choices=(*BACKENDS, SERVED),
        default="auto",
        help="which classes to use (default: LLaVA's if they fit), or vllm for a server that answers",
    )
    parser.add_argument("--server", help="address of a vLLM server, with --backend vllm, such as http://localhost:8000")
    parser.add_argument("--in-flight", type=int, default=16, help="concurrent requests to it (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=8, help="frames per video, for transformers' video models")
    parser.add_argument("--max-pixels", type=int, help="pixels per picture, for Qwen2-VL; the authors used 1003520")


def build_parser(doc: str | None, questions: str, conv_mode: str, max_new_tokens: int) -> Parser:
    """The flags that every program has, under LLaVA's names.

    questions: help of --question-file. conv_mode, max_new_tokens: the program's defaults.
    """
    parser = Parser(doc)
    parser.add_argument("--model-path", required=True, help="checkpoint folder, or Hub name")
    parser.add_argument("--image-folder", default="", help="folder that the questions' image paths are relative to")
    parser.add_argument("--question-file", required=True, help=questions)
    parser.add_argument("--answers-file", default="answer.jsonl", help="JSON lines to write, or to continue")
    parser.add_argument("--num-chunks", type=int, default=1, help="split the questions into this many pieces ...")
    parser.add_argument("--chunk-idx", type=int, default=0, help="... and answer this one, from 0")
    parser.add_argument("--pruner", help="flowcut:budget=64, ..., or none (default: the checkpoint's own, if any)")
    parser.add_argument("--limit", type=int, help="number of questions, spread evenly over the file (default: all)")
    parser.add_argument(
        "--skip-bad", action="store_true", help="exit with 0 even if some questions could not be answered"
    )
    add_answer_flags(parser, conv_mode, max_new_tokens)
    parser.set_defaults(default_mode=conv_mode)
    return parser
