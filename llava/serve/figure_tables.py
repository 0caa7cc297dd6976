"""The page's tables, as HTML: what each side's answer cost, and the history. Everything shown is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from llava.serve.side_by_side import HistoryRow, SideBySide, visual_path

NOT_TIMED = "No times were measured for these answers."
LONGEST = 80  # characters of a question or an answer in the history


def figure_table(both: SideBySide, methods: Sequence[str]) -> str:
    """The last answers' figures in a column for each of the methods; a line below tells how times were measured."""
    sides = both.sides[: len(methods)]
    notes = [f"<p>{escape(side.note)}</p>" for side in sides if side.note and side.figures is None]
    found = [side.figures or {} for side in sides]
    if not any(found):
        return "".join(notes)
    if not any(one.get("patches") for one in found):
        notes.append("<p>There was no picture, so nothing was pruned.</p>")
    times = both.timings[: len(methods)]
    rows = [
        ("visual tokens", [_path(visual_path(one)) for one in found]),
        *_inside(found),
        ("text tokens", [_number(one.get("text_tokens")) for one in found]),
        ("answer tokens", [_number(one.get("new_tokens")) for one in found]),
    ]
    if any(times):
        rows += [
            ("encoder, ms", [_ms(one, "encode_ms") for one in times]),
            ("prefill, ms", [_ms(one, "prefill_ms") for one in times]),
            ("first token, ms", [_first(one) for one in times]),
        ]
    head = ["", *(escape(method) for method in methods)]
    return _table(head, rows) + "".join(notes) + f"<p>{_how(both)}</p>"


def _how(both: SideBySide) -> str:
    if both.problem:
        return f"The times could not be measured: {escape(both.problem)}"
    if not both.rounds:
        return NOT_TIMED
    measured = [time for time in both.timings if time]
    turns = ", the methods in turns," if len({time["pruner"] for time in measured}) > 1 else ""
    said = (
        f"Times are medians of {both.rounds} runs{turns} after one run to warm up; in brackets the fastest and slowest."
    )
    if not turns:
        return said
    left, right = measured
    (low, high), (other_low, other_high) = left["ttft_range_ms"], right["ttft_range_ms"]
    if low <= other_high and other_low <= high:
        return said + " The first token's times overlap, so they show no difference."
    fast, slow = sorted(measured, key=lambda time: time["ttft_ms"])
    ratio = slow["ttft_ms"] / fast["ttft_ms"]
    return f"{said} <b>{escape(fast['pruner'])} gives its first token {ratio:.2f} times as fast.</b>"


def history_table(rows: Sequence[HistoryRow]) -> str:
    """All answers, the newest first."""
    if not rows:
        return "<p>Each answer gets a line here.</p>"
    head = ["", "question", "method", "answer", "visual tokens", "first token, ms", "answer tokens"]
    lines = [
        (
            str(row.number),
            [
                _short(row.question),
                escape(row.method),
                _short(row.answer),
                _path(row.tokens),
                "-" if row.ttft_ms is None else f"{row.ttft_ms:.1f}",
                _number(row.new_tokens),
            ],
        )
        for row in sorted(rows, key=lambda row: -row.number)
    ]
    return _table(head, lines)


def _table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """head and cells are HTML."""
    top = "".join(f"<th scope='col'>{cell}</th>" for cell in head)
    lines = [
        f"<tr><th scope='row'>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, cells in rows
    ]
    return f"<div class='wide'><table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _path(tokens: Sequence[int]) -> str:
    return " → ".join(map(str, tokens)) or "-"


def _inside(found: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """A row for methods that drop tokens inside the language model, whose budget is met on average over its layers."""
    if not any(len(visual_path(one)) > 2 for one in found):
        return []
    layers = [one.get("language") or [one.get("visual_tokens", 0)] for one in found]
    return [("mean over LLM layers", [f"{sum(tokens) / len(tokens):.1f}" for tokens in layers])]


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _ms(timing: dict[str, Any] | None, name: str) -> str:
    return "-" if timing is None else f"{timing[name]:.1f}"


def _first(timing: dict[str, Any] | None) -> str:
    if timing is None:
        return "-"
    low, high = timing["ttft_range_ms"]
    return f"{timing['ttft_ms']:.1f} <small>({low:.1f} - {high:.1f})</small>"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return escape(line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…")
