"""The sentences at the end of LLaVA's questions, and the format of options."""

from __future__ import annotations

from collections.abc import Sequence

from llava.eval.metrics.option_letter import LETTERS

SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


def with_options(question: str, options: Sequence[str]) -> str:
    """The question and its options below it, one line `A. ...` each."""
    return "\n".join([question, *(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))])


def short_answer(question: str) -> str:
    return f"{question}\n{SHORT_ANSWER}"


def multiple_choice(question: str, options: Sequence[str]) -> str:
    return f"{with_options(question, options)}\n{OPTION_LETTER}"
