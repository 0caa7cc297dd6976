"""A hook of mkdocs: the documentation links to the repository that pyproject.toml names, if it names one."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    address = project.get("urls", {}).get("Repository")
    if address:
        config.repo_url = address
        config.repo_name = project["name"]
        config.edit_uri = ""
    return config
