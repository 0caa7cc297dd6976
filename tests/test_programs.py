"""No program needs torch or an optional package to say what it does, and none ends with a traceback."""

import ast
import json
import subprocess
import sys

import pytest

from flowcut.version import __version__
from tests.programs import ROOT, SERVING, TRAINING, TREES, commands, programs

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


THROUGH = {
    "llava.eval.model_vqa": "llava.eval.answering.program",
    "llava.eval.model_vqa_loader": "llava.eval.answering.program",
    "llava.eval.model_vqa_mmbench": "llava.eval.answering.program",
    "llava.eval.model_vqa_science": "llava.eval.answering.program",
    "llava.eval.eval_gpt_review_visual": "llava.eval.eval_gpt_review_bench",
    "llava.train.train_mem": "llava.train.train",
    "llava.train.train_xformers": "llava.train.train",
    "scripts.convert_gqa_for_eval": "llava.eval.benchmarks.convert",
    "scripts.convert_mmvet_for_eval": "llava.eval.benchmarks.convert",
}
"""Programs whose result another module of this project prints."""
SERVICES = {f"llava.serve.{name}" for name in (*SERVING, "vllm_worker")}
WITHOUT = {
    **dict.fromkeys(("flowcut", "llava"), "a tree of commands"),
    **dict.fromkeys(SERVICES, "serves until it is stopped, or shows an answer as it comes"),
    **dict.fromkeys(("llava.serve.cli", "llava.eval.run_llava"), "the answer is the output"),
    "llava.integrations.vlmevalkit": "the kit prints its own results",
    "flowcut.commands.listing": "a list to read; flowcut/methods.json has it as data",
    "scripts.convert_sqa_to_llava": "only names another program",
    "scripts.embedded.rows": "prints flags for a command line",
    "scripts.tables.tflops": "the table is the output, as Markdown or CSV",
    **dict.fromkeys(
        (
            *("scripts.architecture", "scripts.families", "scripts.gpu.report", "scripts.methods", "scripts.notebook"),
            *("scripts.real.coverage_page", "scripts.serve_examples", "scripts.serve_screenshot"),
            *(f"scripts.tables.{name}" for name in ("curves", "embed", "flowcut_plus", "methods", "page", "readme")),
            "scripts.tables.refresh",
        ),
        "writes pages or pictures of this repository",
    ),
}
"""Programs that print no JSON object, and why."""


def source_of(name):
    file = ROOT.joinpath(*name.split("."))
    return (file / "__main__.py" if file.is_dir() else file.with_suffix(".py")).read_text("utf-8")


def prints_json(name):
    """Whether the module prints a JSON object somewhere."""
    calls = [node for node in ast.walk(ast.parse(source_of(name))) if isinstance(node, ast.Call)]
    named = [(ast.unparse(call.func), ast.unparse(call)) for call in calls]
    return any(name == "print_result" or (name == "print" and "json.dumps(" in text) for name, text in named)


@pytest.mark.parametrize("name", programs())
def test_every_program_that_makes_a_number_prints_it_as_json(name):
    if name in WITHOUT:
        assert not prints_json(name), "it prints one; take it out of WITHOUT"
        return
    through = THROUGH.get(name, name)
    assert prints_json(through)
    assert through == name or through.rpartition(".")[2] in source_of(name)


def test_the_lists_name_programs():
    assert {*THROUGH, *WITHOUT} <= set(programs())
