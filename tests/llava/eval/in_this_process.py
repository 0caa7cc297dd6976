"""Answering programs without new interpreters, so that a whole evaluation takes seconds."""

import importlib
import sys
from contextlib import redirect_stdout
from types import SimpleNamespace

from llava.eval.answering import chunks


class InThisProcess:
    """In place of `subprocess.Popen` for `answering.chunks`: runs `python -m MODULE FLAGS` in this process, at once."""

    started: list[list[str]] = []  # noqa: RUF012

    def __init__(self, command, env, stdout):
        assert command[1] == "-m"
        self.started.append([*command[2:], env.get("CUDA_VISIBLE_DEVICES", "")])
        self.code = 0
        try:
            with redirect_stdout(sys.stderr):  # as chunks asks of the process
                importlib.import_module(command[2]).main(command[3:])
        except SystemExit as stop:
            self.code = stop.code if isinstance(stop.code, int) else 1

    def wait(self):
        return self.code


def answer_in_this_process(monkeypatch):
    """Chunks are answered here from now on. Returns the list of the command lines that would have been started."""
    monkeypatch.setattr(chunks, "subprocess", SimpleNamespace(Popen=InThisProcess))
    InThisProcess.started.clear()
    return InThisProcess.started
