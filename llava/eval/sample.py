"""One question of a benchmark on its way to a score: the answer, the judge's verdicts, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class JudgeReply(NamedTuple):
    """The text a judge replied. model: what the server says it is. date: ISO 8601, UTC."""

    text: str
    model: str
    date: str


class Verdict(NamedTuple):
    """The outcome of judging one answer once.

    value: in the form that the benchmark's protocol gives it; None without a verdict. reply: the last one, None when
    none came. problem: why there is no verdict, or why it is the fallback; empty when all went well.
    """

    value: Any
    reply: JudgeReply | None = None
    problem: str = ""


@dataclass(frozen=True)
class Sample:
    """A question as scoring sees it.

    keys: what an answer may be joined by; any of them. truth: what is right, in the benchmark's own form, None where
    it is not public. parts: the headings it is counted under. extra: what else export or parsing need.
    text, prompt: what the model said, and to what; None when it said nothing yet. verdicts: what a judge said to that,
    one a run; none without a judge.
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
    """What one answer is worth, 0..1, None without answer or truth; `parsed`: what was compared with `truth`."""

    question_id: int | str
    value: float | None
    parsed: str | None = None
    truth: Any = None
    parts: Mapping[str, Any] = {}
    answered: bool = True


def scored(sample: Sample, parse: Callable[[str], str | None], value: Callable[[str], float] | None = None) -> Score:
    """The score of a sample whose answer is brought into form by `parse`.

    value: what the answer's text is worth, 0..1; by default 1 where its form equals the truth, else 0.
    """
    if sample.text is None:
        return Score(sample.question_id, None, None, sample.truth, sample.parts, answered=False)
    said = parse(sample.text)
    if sample.truth is None:
        return Score(sample.question_id, None, said, None, sample.parts)
    worth = float(said == sample.truth) if value is None else value(sample.text)
    return Score(sample.question_id, worth, said, sample.truth, sample.parts)
