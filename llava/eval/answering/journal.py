"""The answers file as a journal: a run may be killed at any moment and continued without losing or repeating a line.

Every answer is one line, written at once. The settings that determine the answers are next to it in
`<name>.settings.json`; a file made with other settings is not continued. The file is locked while it is written, so
that two programs never write the same one; the lock ends with the process.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from llava.eval.files import drop_half_line, write_atomic
from llava.eval.questions import Problem, Question
from llava.given import home_path

Key = tuple[Any, str]


class Journal:
    """An answers file that is being written.

    settings: the settings that must be equal for answers of one file; JSON values only.
    fresh: discard existing answers.

    Raises ValueError, one line, when the file is no regular one, is written by another process, was begun with other
    settings, or is damaged in its middle; OSError when it cannot be written.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any], fresh: bool = False) -> None:
        self.path = home_path(path)
        self.settings = json.loads(json.dumps(settings))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for file in (self.path, _sidecar(self.path), self.bad_file):
            if os.path.lexists(file) and not file.is_file():
                raise ValueError(f"{file} is not a regular file, and would be overwritten; give another answers file")
        self._file = self.path.open("ab", buffering=0)  # a buffer could be written later, after an error
        try:
            _lock(self._file, self.path)
            if fresh:
                self._file.truncate(0)
            drop_half_line(self.path)
            self._lines = self.path.read_text("utf-8").split("\n")[:-1]
            if self._lines:
                self._check_settings()
            else:
                write_atomic(_sidecar(self.path), json.dumps(self.settings, indent=2) + "\n")
            self._keys = [self._key(number, line) for number, line in enumerate(self._lines, start=1)]
        except BaseException:
            self._file.close()
            raise

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
        return _beside(self.path, "bad.jsonl")

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
                f"{self.path} was written with other settings ({changes}); give another answers file, or --fresh to "
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
                f"{self.path} has {surplus} answers to questions that are not part of this run; ask as many questions "
                f"as before, give another answers file, or --fresh to start over"
            )
        return waiting

    def write(self, line: dict[str, Any]) -> None:
        """Append one answer."""
        text = json.dumps(line)
        rest = memoryview(f"{text}\n".encode())
        while rest:  # on a nearly full disk a part is written; the next start drops it
            rest = rest[self._file.write(rest) or 0 :]
        self._lines.append(text)
        self._keys.append((line["question_id"], line["prompt"]))

    def finish(self, questions: Sequence[Question], problems: Sequence[Problem]) -> None:
        """Close the file, with the answers in the questions' order, and list the problems in `bad_file`."""
        by_key = defaultdict(list)
        for key, line in zip(self._keys, self._lines, strict=True):
            by_key[key].append(line)
        ordered = [by_key[question.key].pop(0) for question in questions if by_key[question.key]]
        if ordered != self._lines:  # a question that failed in an earlier run has been answered since
            write_atomic(self.path, "".join(line + "\n" for line in ordered))
        self.bad_file.unlink(missing_ok=True)
        if problems:
            write_atomic(self.bad_file, "".join(json.dumps(problem._asdict()) + "\n" for problem in problems))
        self.close()

    def close(self) -> None:
        """Close the file as it is, and give the lock back."""
        self._file.close()


def _sidecar(path: Path) -> Path:
    return _beside(path, "settings.json")


def _beside(path: Path, name: str) -> Path:
    """A file next to the answers: a.jsonl has a.settings.json, a.json has a.json-settings.json of its own."""
    return path.with_suffix(f".{name}") if path.suffix == ".jsonl" else path.with_name(f"{path.name}-{name}")


def _lock(file: IO[bytes], path: Path) -> None:
    """Lock an open file for this process. Raises ValueError, one line, where another one has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{path} is being written by another process; wait for it, or give another file") from None
    except OSError:  # a file system without locks
        return
