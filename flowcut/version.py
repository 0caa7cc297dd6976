"""Which version of this package runs."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "llava-flowcut"


def find_version() -> str:
    """The installed distribution's version; in a checkout that is not installed that of its pyproject.toml, marked."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        pass
    try:
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
        return f"{project['version']}+checkout" if project["name"] == DISTRIBUTION else "0+unknown"
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return "0+unknown"


__version__ = find_version()
