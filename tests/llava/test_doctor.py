"""The doctor, and the command under which all programs are found."""

import importlib
import json
import subprocess
import sys

import pytest

from flowcut import compat
from flowcut.hooks import cache_notes, decoder, decoder_forward, prompt
from llava import __main__ as program
from llava import doctor, selftest


def test_a_healthy_installation(capsys):
    with pytest.raises(SystemExit) as stop:
        doctor.main([])
    assert stop.value.code == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["healthy"]
    assert report["generates"]
    assert report["packages"]["torch"] == importlib.import_module("importlib.metadata").version("torch")


def test_the_true_reason_is_shown(tmp_path, monkeypatch):
    (tmp_path / "broken_binary.py").write_text("raise OSError('undefined symbol:\\n _ZN2at')")
    monkeypatch.syspath_prepend(tmp_path)
    finding = doctor.examine("torch", "broken_binary", "a test")
    assert finding.error == "OSError: undefined symbol: _ZN2at"
    assert doctor.examine("no-such-package", "x", "a test").version is None


def test_commands(capsys, monkeypatch):
    """Those that had another place are found there too."""
    assert program.main([]) == 2
    assert "  doctor  report " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="has no command x; use one of ask"):
        program.main(["x"])
    monkeypatch.setattr(sys, "argv", ["llava", "convert", "--help"])
    with pytest.raises(SystemExit) as stop:
        program.main()
    assert stop.value.code == 0
    assert "--to {hf,llava}" in capsys.readouterr().out


def installed(folder, name, files):
    """A distribution as pip leaves it, with these files."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


@pytest.mark.parametrize("beside_ours", [False, True])
def test_another_distribution_that_owns_our_files_is_named(tmp_path, beside_ours):
    """The authors' package `flowcut`: it hides ours, or lies over ours in the same folder."""
    files = ["flowcut/__init__.py", "flowcut/utils.py"]
    installed(tmp_path, "flowcut", files)
    if beside_ours:
        installed(tmp_path, "llava-flowcut", [*files, "flowcut/attach.py"])
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from llava.doctor import ownership\n"
    code += "for line in ownership('flowcut'): print(line)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert (
        "the distribution flowcut owns flowcut/__init__.py, flowcut/utils.py; run `pip uninstall flowcut`, then install"
        in shown
    )
    assert "False" in shown
    assert ("from flowcut, llava-flowcut" in shown or "from llava-flowcut, flowcut" in shown) == beside_ours


def test_the_owner_of_an_editable_installation():
    lines = list(doctor.ownership("flowcut"))
    assert all(well for _, well in lines)
    assert "llava-flowcut" in lines[0][0]


def test_a_cache_that_the_model_does_not_read_is_found(monkeypatch):
    """What transformers 5.24 did to code that knew the old name alone: hooks filled a cache of their own."""
    wrong = next(name for name in compat.CACHE_NAMES if name != compat.CACHE)
    for module in (cache_notes, decoder, decoder_forward, prompt):
        monkeypatch.setattr(module, "CACHE", wrong)
    for module in (decoder, prompt):
        monkeypatch.setattr(module, "rename_cache", lambda call: None)
    errors = {(outcome.model, outcome.pruner): outcome.error for outcome in selftest.check_generation()}
    assert errors["LLaVA of transformers", "none"] is None
    assert errors["LLaVA of transformers", "flowcut:budget=8"] is not None
    assert errors["LLaVA of this project", "vtw:budget=18"] is not None


def test_a_model_that_cannot_be_built_is_told_and_the_others_are_tried(monkeypatch):
    def broken():
        raise AttributeError("no\nsuch config")

    monkeypatch.setattr(selftest, "TINY_MODELS", {"Broken": broken, "Qwen2-VL": selftest.qwen2_vl})
    outcomes = selftest.check_generation()
    assert outcomes[0] == ("Broken", "none", "AttributeError: no such config")
    assert len(outcomes) == 4
    assert not any(outcome.error for outcome in outcomes[1:])


def test_what_an_interrupted_installation_left_does_not_stop_the_doctor(tmp_path, monkeypatch):
    (tmp_path / "flowcut_left-1.0.dist-info").mkdir()
    (tmp_path / "flowcut_left-1.0.dist-info" / "RECORD").write_text("flowcut/__init__.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert all(well for _, well in doctor.ownership("flowcut"))
