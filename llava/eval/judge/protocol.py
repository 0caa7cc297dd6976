"""How a benchmark is judged: the request, parsing of the reply, and handling of unreadable replies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from llava.eval.files import read_json
from llava.eval.sample import Sample
from llava.given import home_path

Message = dict[str, str]


@dataclass(frozen=True)
class JudgeProtocol:
    """A benchmark's rules for its judge.

    model: the judge of the published numbers. runs: how often they judged each answer.
    prompts: the texts by name, the most important one first. version: the name of these texts.
    messages: sample, texts, attempt (from 1) -> chat messages.
    parse: a reply's verdict in JSON values, None when it cannot be read; then the request is repeated, `attempts` times
    in all. fallback: the verdict on an answer without a readable reply; None for no verdict.
    temperature: by attempt; None for the server's own.
    """

    version: str
    model: str
    prompts: Mapping[str, str]
    messages: Callable[[Sample, Mapping[str, str], int], list[Message]]
    parse: Callable[[str], Any]
    max_tokens: int | None = None
    temperature: Callable[[int], float | None] = lambda attempt: 0.0
    attempts: int = 3
    fallback: Any = None
    runs: int = 1


class Prompts(NamedTuple):
    """The texts in use, and a version that changes with their content."""

    texts: Mapping[str, str]
    version: str


class Ask(NamedTuple):
    """One request to a judge."""

    question_id: int | str
    run: int
    attempt: int
    body: dict[str, Any]

    @property
    def key(self) -> str:
        """A hash of the whole request, 32 hex digits, by which replies are found again."""
        return hashlib.sha256(json.dumps(list(self), sort_keys=True).encode()).hexdigest()[:32]


def load_prompts(protocol: JudgeProtocol, file: Path | None = None) -> Prompts:
    """The protocol's own texts, or replacements from a file.

    file: a JSON object from names to texts, other texts being unchanged; LLaVA's rule files are accepted, whose values
    are objects with a `prompt` and which may have further rules; any other file is the protocol's first text.
    Raises ValueError, one line, when the file is missing or has a text that the protocol does not have.
    """
    texts = dict(protocol.prompts)
    if file is None:
        return Prompts(texts, f"{protocol.version} {_digest(texts)}")
    file = home_path(file)
    if not file.is_file():
        raise ValueError(f"prompt file {file} does not exist; give a text file or JSON")
    if file.suffix != ".json":
        return _with(texts, {next(iter(texts)): file.read_text("utf-8")}, file)
    given = read_json(file)
    if not isinstance(given, dict):
        raise ValueError(f"{file} is not a JSON object; give texts by name: {', '.join(texts)}")
    rules = {name: rule["prompt"] for name, rule in given.items() if isinstance(rule, dict) and "prompt" in rule}
    plain = {name: text for name, text in given.items() if name not in rules}
    known = {name: text for name, text in rules.items() if name in texts}
    if bad := [name for name, text in plain.items() if name not in texts or not isinstance(text, str)]:
        raise ValueError(f"{file} has {bad[0]!r}; allowed are texts by the names {', '.join(texts)}")
    if not plain and not known:
        raise ValueError(f"{file} has none of the texts {', '.join(texts)}; name them so")
    return _with(texts, {**known, **plain}, file)


def _with(texts: dict[str, str], given: Mapping[str, str], file: Path) -> Prompts:
    merged = {**texts, **given}
    return Prompts(merged, f"{file.name} {_digest(merged)}")


def _digest(texts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(texts), sort_keys=True).encode()).hexdigest()[:8]


def fill(text: str, **fields: str) -> str:
    """A text with its $fields filled in; `$$` is a dollar.

    Raises ValueError, one line, for an unknown field.
    """
    try:
        return Template(text).substitute(fields)
    except (KeyError, ValueError) as error:
        allowed = ", ".join(f"${name}" for name in fields)
        raise ValueError(
            f"the judge's prompt has a bad field ({error}); allowed are {allowed}, $$ is a dollar"
        ) from None


def body_of(
    protocol: JudgeProtocol, prompts: Prompts, sample: Sample, attempt: int, model: str, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """The request body of an attempt. changes: fields that override the protocol's; None removes a field."""
    fields = {
        "model": model,
        "messages": protocol.messages(sample, prompts.texts, attempt),
        "temperature": protocol.temperature(attempt),
        "max_tokens": protocol.max_tokens,
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not None}
