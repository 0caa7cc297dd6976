"""The doctor, and the command under which all programs are found."""

import importlib
import json
import sys

import pytest

from llava import __main__ as program
from llava import doctor


def test_a_healthy_installation(capsys):
    with pytest.raises(SystemExit) as stop:
        doctor.main([])
    assert stop.value.code == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["healthy"]
    assert report["packages"]["torch"] == importlib.import_module("importlib.metadata").version("torch")


def test_the_true_reason_is_shown(tmp_path, monkeypatch):
    (tmp_path / "broken_binary.py").write_text("raise OSError('undefined symbol:\\n _ZN2at')")
    monkeypatch.syspath_prepend(tmp_path)
    finding = doctor.examine("torch", "broken_binary", "a test")
    assert finding.error == "OSError: undefined symbol: _ZN2at"
    assert doctor.examine("no-such-package", "x", "a test").version is None


def test_every_command_has_a_main():
    for name, (module, _) in program.COMMANDS.items():
        assert callable(importlib.import_module(module).main), name


def test_commands(capsys, monkeypatch):
    program.main([])
    assert "check-data" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no command 'x'; use one of ask"):
        program.main(["x"])
    monkeypatch.setattr(sys, "argv", ["llava", "convert", "--help"])
    with pytest.raises(SystemExit) as stop:
        program.main()
    assert stop.value.code == 0
    assert "--to {hf,llava}" in capsys.readouterr().out
