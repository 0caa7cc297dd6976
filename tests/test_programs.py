"""No program needs torch or an optional package to say what it does, and none ends with a traceback."""

import json
import subprocess
import sys

import pytest

from flowcut.version import __version__
from tests.programs import SERVING, TRAINING, TREES, commands, programs

COMMANDS = [*TREES, *(words for tree, module in TREES.items() for words in commands(tree, module.COMMANDS))]


@pytest.fixture(scope="module")
def asked():
    """What tests/programs.py prints: one process for all programs, in which torch cannot be imported."""
    done = subprocess.run([sys.executable, "-m", "tests.programs"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", programs())
def test_help_and_unknown_flags(asked, name):
    """Help is a text and status 0 that shows what was typed, an unknown flag status 2 and a line after the usage.

    Two names only point to other programs.
    """
    shown, wrong = asked["modules"][name]["--help"], asked["modules"][name]["--no-such-flag"]
    assert "Traceback" not in json.dumps(asked["modules"][name])
    assert wrong["status"] == 2
    assert wrong["err"].strip()
    if shown["err"].startswith("error: not part of this project; "):
        assert len(shown["err"].splitlines()) == 1
        return
    assert shown["status"] == 0
    assert len(shown["out"].strip().splitlines()) > 1
    if name not in TRAINING:
        assert shown["out"].startswith(f"usage: python -m {name} ")


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_show_what_was_typed(asked, words):
    """An unknown flag of a group of programs is an unknown command; that of `llava train` is the training program's."""
    shown, wrong = asked["commands"][words]["--help"], asked["commands"][words]["--no-such-flag"]
    assert "Traceback" not in json.dumps(shown)
    assert shown["status"] == 0
    assert shown["out"].startswith(f"usage: {words} ")
    if words != "llava train":
        assert "Traceback" not in json.dumps(wrong)
        assert wrong["status"] == 2
        assert words in wrong["err"]


@pytest.mark.parametrize("tree", TREES)
def test_trees_say_their_version(asked, tree):
    assert asked["commands"][tree]["--version"]["out"] == f"llava-flowcut {__version__}\n"


def test_a_missing_package_is_one_line(asked):
    for name in SERVING:
        said = asked["modules"][f"llava.serve.{name}"]["run"]
        assert said["status"] == 2
        assert said["err"].startswith("error: this program needs the package ")
        wanted = "llava-flowcut" if "package torch" in said["err"] else "'llava-flowcut[serve]'"
        assert said["err"].endswith(f"; pip install {wanted}\n")
