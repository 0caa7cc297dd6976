"""MMMU's rules for reading an answer: the last letter named, the last option quoted, numbers to two decimals.

The rules are those of lmms-eval; MMMU's own repository has `(X)` and ` X ` only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_TRIMMED = ",.!?;:'"
# What tells a letter, in the order tried, and where of several the last one stands: a letter alone comes after one that
# only ends a word.
_FORMS = (("({})", "({})"), ("{} ", " {} "), ("{}.", "{}."))
_SHORT = 5  # words; in a shorter answer an option's text does not count
_KEY_WORDS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_EMPTY_KEYS = frozenset([":", ",", ".", "!", "?", ";", "'"])
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
_SENTENCES = re.compile(r"\.\s(?=[A-Z])|\n")


def multiple_choice_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The chosen letter, or None: `(X)`, else `X `, else `X.`, else an option's text; of several the last.

    options: letter -> text.
    """
    for mark in _TRIMMED:
        answer = answer.strip(mark)
    answer = f" {answer} "
    for form, place in _FORMS:
        told = [letter for letter in options if form.format(letter) in answer]
        if told:
            return max(told, key=lambda letter: answer.rfind(place.format(letter)))
    if len(answer.split()) > _SHORT:
        return _last({letter: answer.lower().rfind(text.lower()) for letter, text in options.items()})
    return None


def _last(places: Mapping[str, int]) -> str | None:
    """The letter with the last position, the first one on ties; None where all are -1."""
    letter = max(places, key=places.__getitem__, default=None)
    return None if letter is None or places[letter] < 0 else letter


def open_answer_right(answer: str, truths: Sequence[str]) -> bool:
    """Whether a key phrase of the answer contains a true text, or one of its numbers is a true number."""
    wanted = [form for truth in truths for form in _normalised(truth)]
    texts = [form for form in wanted if isinstance(form, str)]
    for said in _candidates(answer):
        if isinstance(said, str) and any(text in said for text in texts):
            return True
        if isinstance(said, float) and said in wanted:
            return True
    return False


def _candidates(answer: str) -> list[str | float]:
    phrases = _key_phrases(answer.strip().strip(".").lower())
    numbers = [number for phrase in phrases for form in _NUMBERS for number in form.findall(phrase)]
    return [form for text in [*phrases, *numbers] for form in _normalised(text)]


def _key_phrases(answer: str) -> list[str]:
    """The shortest text after a key word (in the last sentence also `=`) in each sentence; else the answer itself."""
    sentences = _SENTENCES.split(answer)
    phrases = []
    for number, sentence in enumerate(sentences, start=1):
        words = [*_KEY_WORDS, "="] if number == len(sentences) else _KEY_WORDS
        tail = ""
        for word in words:
            if word in sentence:
                found = sentence.split(word)[-1].strip()
                tail = found if not tail or len(found) < len(tail) else tail  # an empty one is skipped
        if tail and tail not in _EMPTY_KEYS:
            phrases.append(tail)
    return phrases or [answer]


def _normalised(text: str) -> list[str | float]:
    """A number rounded to two decimals, else the lower-case text; one letter counts only next to a space."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
