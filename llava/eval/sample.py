"""One question of a benchmark with its answer, the judge's verdicts, and its score."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class JudgeReply(NamedTuple):
    """A judge's reply. model: as the server reports it. date: ISO 8601, UTC."""

    text: str
    model: str
    date: str


class Verdict(NamedTuple):
    """The outcome of judging one answer once.

    value: in the format of the benchmark's protocol; None without a verdict. reply: the last one, None if there is
    none. problem: why there is no verdict, or why it is the fallback; empty if there is no problem.
    """

    value: Any
    reply: JudgeReply | None = None
    problem: str = ""


@dataclass(frozen=True)
class Sample:
    """A question in the scoring code.

    keys: an answer is joined by any of them. truth: the right answer, in the benchmark's format, None where
    it is not public. parts: its categories. extra: further data for export or parsing.
    text, prompt: the model's answer and its prompt; None without an answer. verdicts: of a judge, one per run; none
    without a judge.
    """

    question_id: int | str
    keys: tuple[Hashable, ...]
    truth: Any = None
    parts: Mapping[str, Any] = field(default_factory=dict)
    extra: Any = None
    text: str | None = None
    prompt: str | None = None
    verdicts: tuple[Verdict, ...] = ()


class Score(NamedTuple):
    """The score of one answer, 0..1, None without answer or truth; `parsed` is compared with `truth`."""

    question_id: int | str
    value: float | None
    parsed: str | None = None
    truth: Any = None
    parts: Mapping[str, Any] = {}
    answered: bool = True


def scored(sample: Sample, parse: Callable[[str], str | None], value: Callable[[str], float] | None = None) -> Score:
    """The score of a sample whose answer is parsed by `parse`.

    value: the score of the answer's text, 0..1; by default 1 if the parsed answer equals the truth, else 0.
    """
    if sample.text is None:
        return Score(sample.question_id, None, None, sample.truth, sample.parts, answered=False)
    said = parse(sample.text)
    if sample.truth is None:
        return Score(sample.question_id, None, said, None, sample.parts)
    worth = float(said == sample.truth) if value is None else value(sample.text)
    return Score(sample.question_id, worth, said, sample.truth, sample.parts)
