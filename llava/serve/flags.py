"""The flags that the services share. Nothing heavy is imported here, so that --help comes at once."""

from __future__ import annotations

import argparse

from llava.eval.models.reply import DTYPES

EMBEDDED = "embedded"


def port_number(text: str) -> int:
    """A port from a command line; sockets would take 70000 for 4464."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give a number from 1 to 65535")
    return int(text)


def add_server_flags(parser: argparse.ArgumentParser, port: int) -> None:
    """The flags that say where a service listens."""
    parser.add_argument("--host", default="localhost", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=port_number, default=port)
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        help="another name under which it is reached, as in the Host header; * for any (may be repeated)",
    )
    parser.add_argument("--log-dir", help="also write the log to a file in this folder (default: write no files)")


def add_worker_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of every kind of worker. `--worker` and `--controller` stay unambiguous abbreviations."""
    add_server_flags(parser, 21002)
    parser.add_argument("--worker-address", default="http://localhost:21002", help="this worker's address for others")
    parser.add_argument("--controller-address", default="http://localhost:21001")
    parser.add_argument("--model-name", help="name to serve under (default: the checkpoint's)")
    parser.add_argument(
        "--limit-model-concurrency", type=int, default=5, help="questions processed at a time; others wait"
    )
    parser.add_argument("--stream-interval", type=int, default=1, help="new tokens between two updates")
    parser.add_argument("--no-register", action="store_true", help="run without a controller")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say which model to load and how."""
    parser.add_argument("--model-path", required=True, help="checkpoint folder, or Hub name")
    parser.add_argument("--model-base", help="base language model of a projector-only or LoRA checkpoint")
    parser.add_argument(
        "--device", default="cuda", help="cuda, cuda:1, mps, cpu (default: cuda, if available, else mps or cpu)"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: float16, on a CPU float32")
    parser.add_argument("--load-8bit", action="store_true", help="quantise the language model with bitsandbytes")
    parser.add_argument("--load-4bit", action="store_true")
    parser.add_argument(
        "--needs-picture",
        action=argparse.BooleanOptionalAction,
        help="refuse questions without a picture (default: only where the checkpoint's folder is called "
        f"{EMBEDDED}, the small model of the repository, which was trained on pictures only)",
    )
    parser.add_argument("--pruner", help="flowcut:budget=64, ..., or none (default: the checkpoint's own, if any)")


def add_page_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the page itself."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=port_number, help="default: the first free one from 7860")
    parser.add_argument("--concurrency-count", type=int, default=16, help="concurrent answers")
    parser.add_argument("--share", action="store_true", help="also reachable through a tunnel of gradio.live")
    parser.add_argument(
        "--moderate", action="store_true", help="check each question with OpenAI's moderation (needs OPENAI_API_KEY)"
    )
    parser.add_argument("--embed", action="store_true", help="hide the title, for embedding in another page")
    parser.add_argument(
        "--log-dir",
        help="log chats, votes and pictures, and offer buttons to vote, in this folder (default: log nothing)",
    )
