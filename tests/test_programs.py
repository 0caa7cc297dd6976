"""No program needs an optional package to say what it does, and none ends with a traceback."""

import json
import subprocess
import sys

import pytest

from tests.programs import programs


@pytest.fixture(scope="module")
def asked():
    """What tests/programs.py prints: one process for all programs."""
    done = subprocess.run([sys.executable, "-m", "tests.programs"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", programs())
def test_help_and_unknown_flags(asked, name):
    """Help is a text and status 0, an unknown flag one line after the usage. Two names only point to other programs."""
    shown, wrong = asked[name]["--help"], asked[name]["--no-such-flag"]
    assert "Traceback" not in json.dumps(asked[name])
    if str(shown["status"]).startswith("error: not part of this project; "):
        assert "\n" not in shown["status"]
        return
    assert shown["status"] == 0
    assert len(shown["out"].strip().splitlines()) > 1
    assert wrong["status"] != 0
    said = wrong["err"] if wrong["status"] == 2 else wrong["status"]
    assert said.strip()


def test_a_missing_package_is_one_line(asked):
    for name in ("demo", "controller", "model_worker", "sglang_worker", "gradio_web_server", "test_message"):
        said = asked[f"llava.serve.{name}"]["--no-such-flag"]["status"]
        assert said.startswith("error: this program needs the package ")
        assert said.endswith("; pip install 'llava-flowcut[serve]'")
