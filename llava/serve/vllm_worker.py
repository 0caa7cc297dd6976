"""Answers questions through a running vLLM server with OpenAI's protocol, with LLaVA's protocol and a token budget.

    python -m vllm.entrypoints.openai.api_server --model llava-hf/llava-1.5-7b-hf \\
        --hf-overrides '{"flowcut": {"budget": 64}}' \\
        --trust-request-mm-kwargs --trust-request-chat-template --enable-prompt-tokens-details
    python -m llava.serve.vllm_worker --controller-address http://localhost:21001 --port 21002 \\
        --worker-address http://localhost:21002 --server http://localhost:8000 --pruner flowcut:budget=64

The method and its settings are the server's; a question may have its own budget, or "none" for all tokens.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from time import perf_counter
from typing import Any

from flowcut.cli.command_line import Parser, needs, parse_first, program
from llava.serve.flags import add_worker_flags


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    add_worker_flags(parser)
    parser.add_argument("--server", required=True, help="the vLLM server's address; see above for its flags")
    parser.add_argument(
        "--model-path",
        help="the checkpoint's folder or Hub name, for the prompt (default: the server's)",
    )
    parser.add_argument("--pruner", default="none", help="the server's pruner (default: none)")
    parser.add_argument("--conv-mode", help="prompt template (default: the checkpoint's own, else by its name)")
    return parser


parse_first(__name__, build_parser)

with needs(__name__):
    from flowcut.pruner import Pruner
    from flowcut.registry import parse_pruner, pruner_to_config, pruner_to_text
    from llava.eval.models.served_answerer import Manner, manner_of
    from llava.eval.models.vllm_server import Served, error_of, find_served, try_served, usage_of
    from llava.mm_utils import get_model_name_from_path
    from llava.serve.answer_stats import AnswerStats
    from llava.serve.engine import EXCEEDS, GREEDY_BELOW
    from llava.serve.forwarding import ForwardingWorker
    from llava.serve.limits import decode_images
    from llava.serve.protocol import MAX_NEW_TOKENS, GenerateRequest, WorkerStatus
    from llava.serve.server import serve
    from llava.serve.worker import Place, place_of
    from llava.utils import build_logger

_NO_COMPARISON = {"rounds": 0, "problem": "vLLM answers others meanwhile, so there is no time to compare with"}


class VLLMWorker(ForwardingWorker):
    """A worker that passes questions to vLLM's chat completions.

    served: the server's model. manner: LLaVA's template, and how pictures are prepared. pruner: the server's, as text;
    "none" where it has none. name: to serve under.

    Raises ValueError, one line, when the server lacks a flag or prunes otherwise, or when its model is none of LLaVA's.
    """

    server = "vLLM"

    def __init__(
        self, served: Served, place: Place, manner: Manner, pruner: str = "none", name: str | None = None
    ) -> None:
        if manner.mode is None:
            raise ValueError(f"{served.model} is not a LLaVA model, and the page writes LLaVA's prompts only")
        self.served, self.manner = served, manner
        self.pruner = parse_pruner(pruner)
        self.visual_tokens = try_served(served, self.pruner, whole_prompts=True)
        super().__init__(name or get_model_name_from_path(served.model), place, served.url)

    def status(self) -> WorkerStatus:
        known = {
            "visual_tokens": self.visual_tokens,
            "pruner": pruner_to_text(self.pruner),
            "conv_mode": self.manner.mode,
            "methods": [] if self.pruner is None else [pruner_to_config(self.pruner)["method"]],
        }
        return super().status().model_copy(update=known)

    def reason(self, body: str) -> str:
        return error_of(body)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[dict[str, Any]]:
        """vLLM's answer, preceded by the prompt as LLaVA's clients expect; the last document has figures."""
        if request.max_new_tokens == 0:
            yield {"text": request.prompt + EXCEEDS, "error_code": 0}
            return
        pruner = self._pruner(request)
        body = await asyncio.to_thread(self._body, request, pruner)
        begin, first, text, finish = perf_counter(), 0.0, "", "stop"
        async for event in self.events("/v1/chat/completions", body):
            for choice in event.get("choices", ()):
                piece = choice["delta"].get("content") or ""
                finish = choice.get("finish_reason") or finish
                first = first or ((perf_counter() - begin) if piece else 0.0)
                text += piece
            document: dict[str, Any] = {"text": request.prompt + text, "error_code": 0}
            if event.get("usage"):
                usage, total = usage_of(event), perf_counter() - begin
                later = total - first
                document["figures"] = asdict(
                    AnswerStats(
                        pruner=pruner_to_text(pruner),
                        patches=len(request.images or ()) * self.visual_tokens,
                        visual_tokens=usage.visual,
                        text_tokens=usage.text,
                        new_tokens=usage.new,
                        encode_ms=None,
                        prefill_ms=None,
                        total_ms=round(total * 1000, 3),
                        tokens_per_second=round((usage.new - 1) / later, 3) if usage.new > 1 and later > 0 else None,
                        finish=finish,
                        comparison=_NO_COMPARISON if request.rounds else None,
                    )
                )
            yield document

    def _pruner(self, request: GenerateRequest) -> Pruner | None:
        """The pruner of a question. Raises ValueError, one line, for another one than the server's."""
        if request.pruner is None:
            return self.pruner
        wanted = parse_pruner(request.pruner)
        if wanted is None:
            return None
        if self.pruner is None or replace(wanted, budget=self.pruner.budget) != self.pruner:
            raise ValueError(
                f"{request.pruner} is not what the server was started with, {pruner_to_text(self.pruner)}; a question "
                f"may change only the budget"
            )
        return wanted

    def _body(self, request: GenerateRequest, pruner: Pruner | None) -> dict[str, Any]:
        images = [self.manner.picture(image) for image in decode_images(request.prompt, request.images or [])]
        greedy = request.temperature <= GREEDY_BELOW or request.top_p == 0  # vLLM takes no top_p of 0
        return self.served.body(
            request.prompt,
            images,
            pruner,
            max_tokens=min(request.max_new_tokens, MAX_NEW_TOKENS),
            temperature=0 if greedy else request.temperature,
            top_p=1.0 if greedy else request.top_p,
            stop=list(request.stops),
            stream=True,
            stream_options={"include_usage": True},
            **({} if request.seed is None else {"seed": request.seed}),
        )


def worker_of(args: argparse.Namespace) -> VLLMWorker:
    """The worker that the flags ask for. Raises ValueError, one line, where there can be none."""
    served = find_served(args.server, args.model_path)
    try:
        manner = manner_of(args.model_path or served.root, args.conv_mode)
    except ValueError as error:
        raise ValueError(f"{error} (it is needed for the prompt; give --model-path)") from error
    return VLLMWorker(served, place_of(args), manner, args.pruner, args.model_name)


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    build_logger("vllm_worker", f"vllm_worker_{args.port}.log", args.log_dir)
    worker = worker_of(args)
    serve(worker.build_app(), args.host, args.port)


if __name__ == "__main__":
    main()
