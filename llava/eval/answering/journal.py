"""The answers file as a journal: a run may be killed at any moment and continued without losing or repeating a line.

Every answer is one line, written and flushed at once. The settings that determine the answers are next to it in
`<name>.settings.json`; a file made with other settings is not continued.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.files import drop_half_line, write_atomic
from llava.eval.questions import Problem, Question

Key = tuple[Any, str]


class Journal:
    """An answers file that is being written.

    settings: the settings that must be equal for answers of one file; JSON values only.
    fresh: discard existing answers.

    Raises ValueError when the file was begun with other settings, or is damaged in its middle.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any], fresh: bool = False) -> None:
        self.path = Path(path).expanduser()
        self.settings = json.loads(json.dumps(settings))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            self.path.unlink(missing_ok=True)
        drop_half_line(self.path)
        self._lines = self.path.read_text("utf-8").split("\n")[:-1] if self.path.exists() else []
        if self._lines:
            self._check_settings()
        else:
            write_atomic(_sidecar(self.path), json.dumps(self.settings, indent=2) + "\n")
        self._keys = [self._key(number, line) for number, line in enumerate(self._lines, start=1)]
        self._file = self.path.open("a", encoding="utf-8")

    def __len__(self) -> int:
        return len(self._lines)

    @staticmethod
    def fits(path: Path, settings: dict[str, Any]) -> bool:
        """Whether the file may be continued with these settings."""
        sidecar = _sidecar(path)
        return sidecar.is_file() and json.loads(sidecar.read_text("utf-8")) == json.loads(json.dumps(settings))

    @property
    def bad_file(self) -> Path:
        """The file in which `finish` lists unanswered questions."""
        return self.path.with_suffix(".bad.jsonl")

    def _check_settings(self) -> None:
        if not _sidecar(self.path).is_file():
            raise ValueError(
                f"{self.path} has answers, but their settings file {_sidecar(self.path).name} is missing; give another "
                f"answers file, or --fresh to start over"
            )
        old = json.loads(_sidecar(self.path).read_text("utf-8"))
        differing = sorted(name for name in {*old, *self.settings} if old.get(name) != self.settings.get(name))
        if differing:
            changes = ", ".join(f"{name} {old.get(name)!r} -> {self.settings.get(name)!r}" for name in differing)
            raise ValueError(
                f"{self.path} was begun with other settings ({changes}); give another answers file, or --fresh to "
                f"start over"
            )

    def _key(self, number: int, line: str) -> Key:
        try:
            row = json.loads(line)
            return row["question_id"], row["prompt"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} line {number} is not an answer; correct it, or give --fresh to start over"
            ) from error

    def pending(self, questions: Sequence[Question]) -> list[Question]:
        """The questions without an answer here. Raises ValueError when the file has answers to other questions."""
        answered: dict[Key, int] = defaultdict(int)
        for key in self._keys:
            answered[key] += 1
        waiting = []
        for question in questions:
            if answered[question.key]:
                answered[question.key] -= 1
            else:
                waiting.append(question)
        if surplus := sum(answered.values()):
            raise ValueError(
                f"{self.path} holds {surplus} answers to questions that are not asked now; ask as many questions as "
                f"before, give another answers file, or --fresh to start over"
            )
        return waiting

    def write(self, line: dict[str, Any]) -> None:
        """Append one answer."""
        text = json.dumps(line)
        self._file.write(text + "\n")
        self._file.flush()
        self._lines.append(text)
        self._keys.append((line["question_id"], line["prompt"]))

    def finish(self, questions: Sequence[Question], problems: Sequence[Problem]) -> None:
        """Close the file, with the answers in the questions' order, and list the problems in `bad_file`."""
        self._file.close()
        by_key = defaultdict(list)
        for key, line in zip(self._keys, self._lines, strict=True):
            by_key[key].append(line)
        ordered = [by_key[question.key].pop(0) for question in questions if by_key[question.key]]
        if ordered != self._lines:  # a question that failed in an earlier run has been answered since
            write_atomic(self.path, "".join(line + "\n" for line in ordered))
        self.bad_file.unlink(missing_ok=True)
        if problems:
            write_atomic(self.bad_file, "".join(json.dumps(problem._asdict()) + "\n" for problem in problems))


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".settings.json")
