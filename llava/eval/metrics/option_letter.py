"""The option that an answer chooses: MMBench's rule, also for benchmarks without their own."""

from __future__ import annotations

from collections.abc import Mapping

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BARE = "ABCDE"
# Decorations of the letter, in the order in which they are tried.
_DECORATIONS = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")


def infer_option(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that an answer chooses, or None.

    options: letter -> text. First a word that is a letter, or a decorated letter, if it is the only one of its kind;
    then the only option whose text occurs in the answer, ignoring case. A bare `A` in more than three words counts as
    an article. The returned letter may not be an option of the question: such an answer is wrong.
    """
    return _letter(answer.split()) or _by_text(answer.lower(), options)


def _letter(words: list[str]) -> str | None:
    found = [letter for letter in _BARE if letter in words]
    if len(found) == 1 and not ("A" in found and len(words) > 3):
        return found[0]
    for decoration in _DECORATIONS:
        found = [letter for letter in _BARE if decoration.format(letter) in words]
        if len(found) == 1:
            return found[0]
    return None


def _by_text(answer: str, options: Mapping[str, str]) -> str | None:
    found = [letter for letter, text in options.items() if text.lower() in answer]
    return found[0] if len(found) == 1 else None
