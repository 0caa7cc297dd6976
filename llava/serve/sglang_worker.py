"""Answers questions through a running SGLang server, with LLaVA's protocol.

    python -m llava.serve.sglang_worker --controller-address http://localhost:21001 --port 21002 \\
        --worker-address http://localhost:21002 --sgl-endpoint http://localhost:30000

SGLang cannot prune: requests with a pruner give an error.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from typing import Any

from flowcut.cli.command_line import Parser, needs, parse_first, program
from llava.serve.flags import add_worker_flags


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    add_worker_flags(parser)
    parser.add_argument("--sgl-endpoint", required=True, help="the SGLang server's address")
    return parser


parse_first(__name__, build_parser)

with needs(__name__):
    from flowcut.registry import parse_pruner
    from llava.serve.client import get
    from llava.serve.engine import EXCEEDS, GREEDY_BELOW
    from llava.serve.forwarding import ForwardingWorker
    from llava.serve.limits import decode_images
    from llava.serve.protocol import MAX_NEW_TOKENS, GenerateRequest, WorkerStatus
    from llava.serve.server import serve
    from llava.serve.worker import Place, place_of
    from llava.utils import build_logger


class SGLangWorker(ForwardingWorker):
    """A worker that passes questions to SGLang's `/generate`.

    interval: new tokens between two updates. Raises ValueError, one line, when SGLang does not respond.
    """

    server = "SGLang"

    def __init__(self, endpoint: str, place: Place, name: str | None = None, interval: int = 1) -> None:
        endpoint = endpoint.rstrip("/")
        self.interval = max(interval, 1)
        path = get(f"{endpoint}/get_model_info").get("model_path", "")
        super().__init__(name or path.rstrip("/").split("/")[-1], place, endpoint)

    def status(self) -> WorkerStatus:
        return super().status().model_copy(update={"methods": []})

    async def generate(self, request: GenerateRequest) -> AsyncIterator[dict[str, Any]]:
        """SGLang's answer, preceded by the prompt as LLaVA's clients expect."""
        if request.max_new_tokens == 0:
            yield {"text": request.prompt + EXCEEDS, "error_code": 0}
            return
        async for event in self.events("/generate", await asyncio.to_thread(self._body, request)):
            yield {"text": request.prompt + event["text"], "error_code": 0}

    def _body(self, request: GenerateRequest) -> dict[str, Any]:
        images = request.images or []
        decode_images(request.prompt, images)  # so that the error names the image
        if request.pruner is not None and parse_pruner(request.pruner) is not None:
            raise ValueError(f"SGLang cannot prune ({request.pruner}); send none, or ask a model_worker")
        greedy = request.temperature <= GREEDY_BELOW or request.top_p == 0  # SGLang takes no top_p of 0
        return {
            "text": request.prompt,
            "image_data": images or None,
            "sampling_params": {
                "temperature": 0 if greedy else request.temperature,
                "top_p": request.top_p or 1.0,
                "max_new_tokens": min(request.max_new_tokens, MAX_NEW_TOKENS),
                "stop": list(request.stops),
                "stream_interval": self.interval,
            },
            "stream": True,
        }


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    build_logger("sglang_worker", f"sglang_worker_{args.port}.log", args.log_dir)
    worker = SGLangWorker(args.sgl_endpoint, place_of(args), args.model_name, args.stream_interval)
    serve(worker.build_app(), args.host, args.port)


if __name__ == "__main__":
    main()
