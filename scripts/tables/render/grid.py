"""A rendered table: the same lines as Markdown, CSV, HTML and LaTeX."""

from __future__ import annotations

import csv
import html
import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from llava.eval.files import write_atomic

NOTHING = "-"
STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #1d2330; background: #fff }
.wide { overflow-x: auto } table { border-collapse: collapse }
td, th { border-bottom: 1px solid #d8dbe0; padding: .25em .6em; white-space: nowrap }
thead th { vertical-align: bottom }
.l { text-align: left } .r { text-align: right } tr.group th { text-align: left; padding-top: 1em; background: #f4f5f7 }
"""
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


@dataclass
class Grid:
    """Header and lines, all as text, with footnotes.

    Attributes:
        notes: paragraphs below the footnotes.
        left: number of leading columns with text; the others have numbers.
        groups: the heading above each line; empty for a table without groups.
        better: for columns by their index, 1 where larger is better and -1 where smaller is. The best of each group is
            bold.
        unranked: indices of lines that are never the best: the unpruned model, and numbers that were not measured here.
    """

    title: str
    header: list[str]
    lines: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left: int = 1
    groups: list[str] = field(default_factory=list)
    better: dict[int, int] = field(default_factory=dict)
    unranked: set[int] = field(default_factory=set)
    _marks: dict[str, int] = field(default_factory=dict)

    def mark(self, text: str, footnote: str | None) -> str:
        """The text followed by the footnote's number; equal footnotes share a number."""
        if not footnote:
            return text
        return f"{text} [{self._marks.setdefault(footnote, len(self._marks) + 1)}]"

    @property
    def footnotes(self) -> list[str]:
        return [f"[{number}] {words}" for words, number in self._marks.items()]

    def grouped(self) -> Iterator[tuple[str, list[int]]]:
        """Each group's heading, and the indices of its lines."""
        names = self.groups or [""] * len(self.lines)
        for name, members in itertools.groupby(range(len(self.lines)), key=names.__getitem__):
            yield name, list(members)

    def best(self) -> set[tuple[int, int]]:
        """Line and column of the best numbers of each group, equal ones included, unless all numbers are equal."""
        found = set()
        for _, members in self.grouped():
            for column, sign in self.better.items():
                ranked = [(_number(self.lines[line][column]), line) for line in members if line not in self.unranked]
                values = {line: sign * value for value, line in ranked if value is not None}
                if len(set(values.values())) > 1:
                    found |= {(line, column) for line, value in values.items() if value == max(values.values())}
        return found

    def markdown(self) -> str:
        best = self.best()
        rule = ["---"] * self.left + ["---:"] * (len(self.header) - self.left)
        lines = [
            [f"**{cell}**" if (row, column) in best else cell for column, cell in enumerate(line)]
            for row, line in enumerate(self.lines)
        ]
        rows = ["| " + " | ".join(cells) + " |" for cells in (self.header, rule, *lines)]
        below = [f"\n{words}" for words in (*self.footnotes, *self.notes)]
        return "\n".join([*rows, *below])

    def csv(self) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self.lines])
        return text.getvalue()

    def html(self) -> str:
        """A self-contained page."""
        best = self.best()

        def cells(line: list[str], tag: str, row: int = -1) -> str:
            parts = []
            for column, cell in enumerate(line):
                text = html.escape(cell)
                bold = f"<b>{text}</b>" if (row, column) in best else text
                parts.append(f'<{tag} class="{"l" if column < self.left else "r"}">{bold}</{tag}>')
            return "".join(parts)

        rows = []
        for name, members in self.grouped():
            if name:
                rows.append(f'<tr class="group"><th colspan="{len(self.header)}">{html.escape(name)}</th></tr>')
            rows += [f"<tr>{cells(self.lines[row], 'td', row)}</tr>" for row in members]
        below = "".join(f"<p>{html.escape(words)}</p>" for words in (*self.footnotes, *self.notes))
        title = html.escape(self.title)
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
            f'<h1>{title}</h1><div class="wide"><table><thead><tr>{cells(self.header, "th")}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>{below}</html>\n"
        )

    def latex(self) -> str:
        """A `table` environment; needs the package booktabs."""
        best, width = self.best(), len(self.header)

        def cells(line: list[str], row: int = -1) -> str:
            texts = map(latex_text, line)
            parts = (rf"\textbf{{{text}}}" if (row, at) in best else text for at, text in enumerate(texts))
            return " & ".join(parts) + r" \\"

        lines = [r"\begin{table}", r"\centering", rf"\caption{{{latex_text(self.title)}}}"]
        lines += [
            rf"\begin{{tabular}}{{{'l' * self.left}{'r' * (width - self.left)}}}",
            r"\toprule",
            cells(self.header),
        ]
        for name, members in self.grouped():
            lines.append(r"\midrule")
            if name:
                lines.append(rf"\multicolumn{{{width}}}{{l}}{{\emph{{{latex_text(name)}}}}} \\")
            lines += [cells(self.lines[row], row) for row in members]
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par {latex_text(words)}" for words in (*self.footnotes, *self.notes)]
        return "\n".join([*lines, r"\end{table}", ""])

    def texts(self, stem: Path) -> dict[Path, str]:
        """The contents of <stem>.md, .csv and .html."""
        forms = {".md": f"# {self.title}\n\n{self.markdown()}\n", ".csv": self.csv(), ".html": self.html()}
        return {stem.with_suffix(suffix): text for suffix, text in forms.items()}

    def write(self, stem: Path, latex: bool = False) -> list[Path]:
        """Write the three files, and <stem>.tex if asked for; returns them."""
        texts = self.texts(stem) | ({stem.with_suffix(".tex"): self.latex()} if latex else {})
        stem.parent.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            write_atomic(file, text)
        return list(texts)


def _number(cell: str) -> float | None:
    """The number that a cell begins with, if any."""
    found = re.match(r"[+-]?\d+(\.\d+)?", cell)
    return float(found[0]) if found else None


def latex_text(text: str) -> str:
    """Text with LaTeX's special characters written out."""
    return re.sub(r"[\\~^&%$#_{}]", lambda found: LATEX.get(found[0], "\\" + found[0]), text)
