"""A rendered table: the same lines as Markdown, CSV and HTML."""

from __future__ import annotations

import csv
import html
import io
from dataclasses import dataclass, field
from pathlib import Path

from llava.eval.files import write_atomic

NOTHING = "-"


@dataclass
class Grid:
    """Header and lines, all as text, with footnotes.

    Attributes:
        notes: paragraphs below the footnotes.
        left: number of leading columns with text; the others have numbers.
    """

    title: str
    header: list[str]
    lines: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left: int = 1
    _marks: dict[str, int] = field(default_factory=dict)

    def mark(self, text: str, footnote: str | None) -> str:
        """The text followed by the footnote's number; equal footnotes share a number."""
        if not footnote:
            return text
        return f"{text} [{self._marks.setdefault(footnote, len(self._marks) + 1)}]"

    @property
    def footnotes(self) -> list[str]:
        return [f"[{number}] {words}" for words, number in self._marks.items()]

    def markdown(self) -> str:
        rule = ["---"] * self.left + ["---:"] * (len(self.header) - self.left)
        rows = ["| " + " | ".join(cells) + " |" for cells in (self.header, rule, *self.lines)]
        below = [f"\n{words}" for words in (*self.footnotes, *self.notes)]
        return "\n".join([*rows, *below])

    def csv(self) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self.lines])
        return text.getvalue()

    def html(self) -> str:
        """A self-contained page."""

        def cells(line: list[str], tag: str) -> str:
            kinds = ["l"] * self.left + ["r"] * (len(line) - self.left)
            return "".join(
                f'<{tag} class="{kind}">{html.escape(cell)}</{tag}>' for kind, cell in zip(kinds, line, strict=True)
            )

        rows = [f"<tr>{cells(self.header, 'th')}</tr>", *(f"<tr>{cells(line, 'td')}</tr>" for line in self.lines)]
        below = "".join(f"<p>{html.escape(words)}</p>" for words in (*self.footnotes, *self.notes))
        style = (
            "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}"
            "td,th{border-bottom:1px solid #ccc;padding:.25em .6em}.l{text-align:left}.r{text-align:right}"
        )
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
            f"<style>{style}</style><h1>{html.escape(self.title)}</h1><table>{''.join(rows)}</table>{below}</html>\n"
        )

    def texts(self, stem: Path) -> dict[Path, str]:
        """The contents of <stem>.md, .csv and .html."""
        forms = {".md": f"# {self.title}\n\n{self.markdown()}\n", ".csv": self.csv(), ".html": self.html()}
        return {stem.with_suffix(suffix): text for suffix, text in forms.items()}

    def write(self, stem: Path) -> list[Path]:
        """Write the three files; returns them."""
        texts = self.texts(stem)
        stem.parent.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            write_atomic(file, text)
        return list(texts)
