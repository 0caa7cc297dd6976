"""Normalisation of answers before comparison, and accuracy against human answers.

There are two normalisations with small differences: `m4c` (TextVQA, and uploads to VQAv2's and VizWiz' servers) and
VQAv2's own (`official_answer`, `official_reference`). Both are reproduced with their oddities, because published
numbers depend on them. The lists of punctuation, numbers and contractions are the public VQA evaluation's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from llava.eval.metrics.contractions import CONTRACTIONS

MARKS = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBER_WORDS)}}
ARTICLES = frozenset({"a", "an", "the"})
HUMANS = 10

_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# The reference passes re.UNICODE as the number of replacements.
_MOST_PERIODS = int(re.UNICODE)


def m4c(text: str) -> str:
    """The M4C / EvalAI form of an answer: `The red-umbrella.` -> `red umbrella`."""
    text = re.sub("[,?]", "", text.lower()).replace("'s", " 's").strip()
    return _digits_and_articles(_punctuation(_one_line(text)))


def official_answer(text: str) -> str:
    """A prediction normalised by VQAv2's own scorer: depends on commas, and `'s` is not split off."""
    return _digits_and_articles(_punctuation(_one_line(text)))


def official_reference(text: str) -> str:
    """A human answer normalised by VQAv2's own scorer if the ten are not all equal: punctuation only."""
    return _punctuation(text)


def consensus(prediction: str, references: Sequence[Any]) -> float:
    """min(1, matches / 3) against the other references, averaged over leaving out each: 0, 0.3, 0.6, 0.9 or 1 of ten.

    references: strings, or (string, anything) pairs; those equal to the one left out are also left out.
    """
    worth = []
    for left_out in references:
        others = [other for other in references if other != left_out]
        worth.append(min(1.0, sum(_text(other) == prediction for other in others) / 3))
    return sum(worth) / len(worth)


def m4c_accuracy(prediction: str, humans: Sequence[str]) -> float:
    """TextVQA's and VizWiz' accuracy of one answer against ten humans, 0..1.

    Raises ValueError when there are not ten.
    """
    if len(humans) != HUMANS:
        raise ValueError(
            f"{len(humans)} human answers; the metric is defined for {HUMANS}, correct the annotation file"
        )
    return consensus(m4c(prediction), [(m4c(human), index) for index, human in enumerate(humans)])


def official_accuracy(prediction: str, humans: Sequence[tuple[str, Any]]) -> float:
    """VQAv2's accuracy of one answer, 0..1. humans: (answer, rest of the record) pairs, compared as whole records."""
    if len({answer for answer, _ in humans}) > 1:
        humans = [(official_reference(answer), rest) for answer, rest in humans]
    return consensus(official_answer(prediction), humans)


def _text(reference: Any) -> str:
    return reference if isinstance(reference, str) else reference[0]


def _one_line(text: str) -> str:
    return re.sub("[\n\t]", " ", text).strip()


def _punctuation(text: str) -> str:
    """Remove punctuation; a mark that touches no space becomes a space, unless a number is written with commas."""
    numbers_with_commas = _DIGIT_COMMA_DIGIT.search(text) is not None
    cleaned = text
    for mark in MARKS:
        closes_up = numbers_with_commas or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if closes_up else " ")
    return _PERIOD.sub("", cleaned, count=_MOST_PERIODS)


def _digits_and_articles(text: str) -> str:
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
