"""Runs a program for its result, and shows its output on stderr as it comes."""

from __future__ import annotations

import codecs
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

_KEPT = 100_000  # characters of the end; progress bars of a day would fill the memory
_REASON = re.compile(r"(?:error: |not answered: |[\w.]*(?:Error|Exception|Interrupt)\b)")


class Ended(NamedTuple):
    """How a program ended.

    Attributes:
        status: exit status, 0 for success.
        lines: the last lines of its output, progress bars included.
    """

    status: int
    lines: list[str]

    @property
    def reason(self) -> str:
        """The line that tells best why it failed: the first error, else the last line."""
        told = [line for line in self.lines if _REASON.match(line)]
        last = self.lines[-1] if self.lines else "it said nothing"
        return (told[0] if told else last).removeprefix("error: ")

    @property
    def document(self) -> dict[str, Any]:
        """The JSON document in the last line; empty if there is none."""
        last = self.lines[-1] if self.lines else ""
        return json.loads(last) if last.startswith("{") else {}


def follow(command: Sequence[str]) -> Ended:
    """Run a command to its end. Both of its streams go to stderr, since stdout belongs to the caller."""
    said, decoder = "", codecs.getincrementaldecoder("utf-8")("replace")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        # Pieces as they come: a progress bar has no line ends to wait for.
        while piece := os.read(process.stdout.fileno(), 4096):
            text = decoder.decode(piece)
            sys.stderr.write(text)
            sys.stderr.flush()
            said = (said + text)[-_KEPT:]
    return Ended(process.returncode, [line.strip() for line in re.split(r"[\r\n]+", said) if line.strip()])
