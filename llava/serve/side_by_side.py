"""Two chats of a visitor about the same picture and questions, each with its own method, and the history of answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from llava.serve.client import ControllerClient
from llava.serve.session import Session, Wish

MOST_ROWS = 100


@dataclass(frozen=True)
class HistoryRow:
    """One answer.

    tokens: see `visual_path`, empty if there was no picture or the worker does not say. ttft_ms: median time to the
    first token in milliseconds, None if it was not measured.
    """

    number: int
    question: str
    method: str
    answer: str
    tokens: tuple[int, ...] = ()
    ttft_ms: float | None = None
    new_tokens: int | None = None


@dataclass
class SideBySide:
    """The chats, of which the second one may be off; `timings` has a side's entry of `comparison["runs"]`, or None.

    A new question, `again`, `stop` and `clear` end the answers that are still being generated.
    """

    sides: tuple[Session, Session] = field(default_factory=lambda: (Session(), Session()))
    timings: list[dict[str, Any] | None] = field(default_factory=lambda: [None, None])
    rounds: int = 0
    problem: str = ""
    rows: list[HistoryRow] = field(default_factory=list)
    _questions: int = 0
    _turn: int = 0

    def add(self, text: str, path: str | None, wishes: Sequence[Wish], controller: ControllerClient) -> None:
        """A new question, to as many sides as there are wishes. Raises what `Session.add` raises."""
        self._join(wishes)
        for side, wish in zip(self.sides, wishes, strict=False):
            side.add(text, path, wish, controller)
        self._turn += 1
        self._questions += 1

    def again(self, wishes: Sequence[Wish]) -> bool:
        """Remove the last answers, to generate them again; False if there are none."""
        if not self.sides[0].turns:
            return False
        self._join(wishes)
        self._turn += 1
        self._questions += 1
        return all([side.reopen() for side in self.sides[: len(wishes)]])

    def _join(self, wishes: Sequence[Wish]) -> None:
        """If the second side was off meanwhile, it takes over what was said on the first one."""
        first, second = self.sides
        if len(wishes) > 1 and first.conversation is not None and first.turns != second.turns:
            self.sides = (first, replace(first, conversation=first.conversation.copy()))

    def stop(self) -> None:
        self._turn += 1
        for side in self.sides:
            side.close()

    def clear(self) -> None:
        """Begin new conversations; the history stays."""
        self.stop()
        self.sides = (Session(), Session())
        self._forget()

    def _forget(self) -> None:
        self.timings, self.rounds, self.problem = [None, None], 0, ""

    def answer(self, wishes: Sequence[Wish], controller: ControllerClient) -> Iterator[int]:
        """Answer on each side, one after the other; yields the number of the side whose answer grew.

        With the last answer the first token is timed, with both methods in turns on that side's prompt.
        """
        turn, number = self._turn, self._questions
        self._forget()
        for side in self.sides:
            side.figures = side.kept = None
            side.note = ""
        for place, (side, wish) in enumerate(zip(self.sides, wishes, strict=False)):
            last = place == len(wishes) - 1
            other = wishes[0].pruner if last and place and self.sides[0].figures else None
            against = other if other != wish.pruner else None
            with closing(side.answer(wish if last else wish.untimed(), controller, against)) as texts:  # type: ignore[type-var]
                for _ in texts:
                    if self._turn != turn:
                        return
                    yield place
            if self._turn != turn:
                return
            if last:
                self._read_times(place, (side.figures or {}).get("comparison"))
        rows = [self._row(number, place, wish) for place, wish in enumerate(wishes)]
        self.rows = [*self.rows, *rows][-MOST_ROWS:]

    def _read_times(self, last: int, comparison: dict[str, Any] | None) -> None:
        if not comparison:
            return
        self.rounds, self.problem = comparison["rounds"], comparison.get("problem", "")
        runs = comparison.get("runs", [])
        for place in range(last + 1):  # one run stands for both sides where their methods are the same
            if runs and self.sides[place].figures:
                self.timings[place] = runs[0] if place == last else runs[-1]

    def _row(self, number: int, place: int, wish: Wish) -> HistoryRow:
        side, timing = self.sides[place], self.timings[place]
        question, answer = side.last_turn()
        found = side.figures or {}
        if side.figures is None and side.note:
            answer = side.note
        first = timing["ttft_ms"] if timing else None
        return HistoryRow(number, question, wish.pruner, answer, visual_path(found), first, found.get("new_tokens"))


def visual_path(figures: dict[str, Any]) -> tuple[int, ...]:
    """Visual tokens that enter the encoder, that enter the language model, and that enter its last layer if it drops
    some; empty without a picture.
    """
    if not figures.get("patches"):
        return ()
    language = figures.get("language") or [figures["visual_tokens"]]
    inside = (language[-1],) if language[-1] != figures["visual_tokens"] else ()
    return (figures["patches"], figures["visual_tokens"], *inside)
