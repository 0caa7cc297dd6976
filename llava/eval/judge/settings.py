"""The settings of judging, and their flags."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.eval.judge.client import Endpoint

HOW = "give --judge-base-url and --judge-model, or --judge-requests FILE; see docs/judges.md"


@dataclass(frozen=True)
class JudgeSettings:
    """Settings of judging.

    model: None for the protocol's. endpoint: None for judging by files. body: changes to each request's body.
    runs: verdicts per answer. workers: concurrent requests. failures: the share of verdicts that may fail.
    requests: file for requests without a reply. replies: files of replies.
    """

    model: str | None = None
    endpoint: Endpoint | None = None
    prompt: Path | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    runs: int = 1
    workers: int = 8
    failures: float = 0.02
    requests: Path | None = None
    replies: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.endpoint and (self.requests or self.replies):
            raise ValueError(
                "a judge's address and request or reply files were given; give either --judge-base-url or files"
            )
        if self.runs < 1 or self.workers < 1:
            raise ValueError(f"{self.runs} judge runs with {self.workers} workers; give at least 1 of each")
        if not 0 <= self.failures <= 1:
            raise ValueError(f"--max-judge-failures {self.failures} is not a share; give a number from 0 to 1")

    @property
    def judges(self) -> bool:
        return bool(self.endpoint or self.requests or self.replies)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The judge's flags, for programs that score."""
    group = parser.add_argument_group(
        "judge", "for benchmarks that a language model scores; without it they have no score"
    )
    group.add_argument("--judge-base-url", metavar="URL", help="OpenAI-compatible server, https://api.openai.com/v1")
    group.add_argument("--judge-model", metavar="NAME", help="default: the one of the published numbers")
    group.add_argument(
        "--judge-key-env", metavar="NAME", default="OPENAI_API_KEY", help="environment variable that holds the key"
    )
    group.add_argument("--judge-runs", metavar="N", type=int, default=1, help="judge each answer N times, and average")
    group.add_argument("--judge-workers", metavar="N", type=int, default=8, help="concurrent requests")
    group.add_argument("--judge-timeout", metavar="S", type=float, default=120.0, help="seconds to wait for data")
    group.add_argument("--judge-retries", metavar="N", type=int, default=6, help="retries of a failed request")
    group.add_argument(
        "--max-judge-failures",
        metavar="SHARE",
        type=float,
        default=0.02,
        help="largest share of failed verdicts, 0 to 1; above it, no score",
    )
    group.add_argument(
        "--judge-prompt", metavar="FILE", type=Path, help="another prompt: text, JSON, LLaVA's rule.json"
    )
    group.add_argument(
        "--judge-body", metavar="JSON", type=_object, default={},
        help='fields to add to each request, null removes one: \'{"max_tokens": null, "temperature": 1}\'',
    )  # fmt: skip
    group.add_argument(
        "--judge-requests", metavar="FILE", type=Path, help="contact no server; write the requests to this file"
    )
    group.add_argument(
        "--judge-replies",
        metavar="FILE",
        type=Path,
        nargs="+",
        default=(),
        help="read the replies from these files (output of a batch)",
    )


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error.msg})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def settings_of(args: argparse.Namespace) -> JudgeSettings:
    """The flags of `add_arguments` as settings. Raises ValueError, one line, when they exclude each other."""
    endpoint = None
    if args.judge_base_url:
        endpoint = Endpoint(
            args.judge_base_url,
            os.environ.get(args.judge_key_env) or None,
            args.judge_timeout,
            args.judge_retries,
            connections=args.judge_workers,
        )
    settings = JudgeSettings(
        args.judge_model,
        endpoint,
        args.judge_prompt,
        args.judge_body,
        args.judge_runs,
        args.judge_workers,
        args.max_judge_failures,
        args.judge_requests,
        tuple(args.judge_replies),
    )
    if not settings.judges and (settings.model or settings.prompt):
        raise ValueError(f"a judge's model or prompt was given, but no judge; {HOW}")
    return settings
