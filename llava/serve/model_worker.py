"""Loads a LLaVA checkpoint and answers questions over HTTP.

    python -m llava.serve.model_worker --controller-address http://localhost:21001 --port 21002 \\
        --worker-address http://localhost:21002 --model-path playground/embedded

A request may name a pruner ("pruner": "flowcut:budget=64"); --pruner is the default for requests without one.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

from flowcut.cli.command_line import Parser, needs, parse_first, program
from llava.serve.flags import add_model_flags, add_worker_flags
from llava.serve.limits import MOST_PICTURES, PATIENCE, PictureLimits, decode_images


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    add_worker_flags(parser)
    add_model_flags(parser)
    parser.add_argument("--multi-modal", action="store_true", help="ignored: determined from config.json")
    parser.add_argument("--use-flash-attn", action="store_true")
    parser.add_argument(
        "--stream-timeout", type=float, default=PATIENCE, help="seconds without a new token (%(default)g)"
    )
    parser.add_argument(
        "--largest-image", type=float, default=20, help="maximal MiB of an image (default: %(default)g)"
    )
    parser.add_argument(
        "--largest-picture",
        type=float,
        default=89,
        help="maximal megapixels of all images of a question, each padded to a square (default: %(default)g)",
    )
    parser.add_argument(
        "--most-pictures", type=int, default=MOST_PICTURES, help="maximal images of a question (default: %(default)s)"
    )
    return parser


parse_first(__name__, build_parser)

with needs(__name__):
    from starlette.concurrency import iterate_in_threadpool

    from flowcut.registry import pruner_to_text
    from llava.serve.engine import ChatPrompt, Engine
    from llava.serve.loading import load_engine
    from llava.serve.protocol import MAX_NEW_TOKENS, GenerateRequest, WorkerStatus
    from llava.serve.server import serve
    from llava.serve.worker import Place, Worker, place_of
    from llava.utils import build_logger


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits(PictureLimits):
    """Limits of a request: those of its images, and seconds without a new token."""

    patience: float = PATIENCE


class ModelWorker(Worker):
    """A worker with the model in the same process."""

    def __init__(self, engine: Engine, place: Place, name: str | None = None, limits: Limits | None = None) -> None:
        super().__init__(name or engine.checkpoint.name, place)
        self.engine = engine
        self.limits = limits or Limits()

    def status(self) -> WorkerStatus:
        checkpoint = self.engine.checkpoint
        known = {
            "visual_tokens": checkpoint.model.get_vision_tower().num_patches,
            "pruner": pruner_to_text(self.engine.pruner),
            "conv_mode": checkpoint.mode,
            "methods": list(self.engine.budgets),
            "budgets": self.engine.budgets,
            "needs_picture": self.engine.needs_picture,
        }
        return super().status().model_copy(update=known)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[dict[str, Any]]:
        """The engine's updates, preceded by the prompt as LLaVA's clients expect."""
        # In a thread, because heartbeats and other clients must not wait for large pictures.
        images = await asyncio.to_thread(decode_images, request.prompt, request.images or (), self.limits)
        question = ChatPrompt(
            prompt=request.prompt,
            images=images,
            temperature=request.temperature,
            top_p=request.top_p,
            max_new_tokens=min(request.max_new_tokens, MAX_NEW_TOKENS),
            stop=request.stops,
            pruner=request.pruner,
            seed=request.seed,
            trace=request.trace,
            rounds=request.rounds,
            against=request.against,
            cancelled=(cancelled := threading.Event()),
        )
        news = self.engine.ask(question, self.limits.patience)
        try:
            async for progress in iterate_in_threadpool(news):
                document: dict[str, Any] = {"text": request.prompt + progress.text, "error_code": 0}
                if progress.figures is not None:
                    document["figures"] = asdict(progress.figures)
                if progress.kept is not None:
                    document["kept"] = progress.kept
                yield document
        finally:
            # Not by closing the generator: when the server shuts down, a thread may still wait for its next part.
            cancelled.set()


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    build_logger("model_worker", f"model_worker_{args.port}.log", args.log_dir)
    if args.multi_modal:
        logger.warning("--multi-modal is not needed and ignored: the checkpoint's config.json determines it")
    size = (int(args.largest_image * 2**20), int(args.largest_picture * 1e6), args.most_pictures)
    limits = Limits(*size, patience=args.stream_timeout)
    worker = ModelWorker(load_engine(args, args.stream_interval), place_of(args), args.model_name, limits)
    serve(worker.build_app(), args.host, args.port)


if __name__ == "__main__":
    main()
