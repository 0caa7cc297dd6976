"""A hook of mkdocs: the documentation links to the repository, where its address is known; see setup.py."""

from __future__ import annotations

import runpy
import tomllib
from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    address = runpy.run_path("setup.py")["repository"]()
    if address:
        config.repo_url = address
        config.repo_name = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]["name"]
        config.edit_uri = ""
    return config
