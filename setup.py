"""All metadata is in pyproject.toml, except the description for a package index: README.md with absolute links."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent


def description() -> str:
    """README.md; its relative links and pictures lead to the repository that pyproject.toml names, if it does."""
    text = (ROOT / "README.md").read_text("utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    repository = project.get("urls", {}).get("Repository")
    return text if repository is None else absolute(text, repository.rstrip("/"))


def absolute(text: str, repository: str) -> str:
    """Markdown with relative targets made absolute: `raw` for pictures, `blob` for other files."""

    def target(found: re.Match) -> str:
        return f"{found[1]}({repository}/{'raw' if found[1].startswith('!') else 'blob'}/main/{found[2]})"

    return re.sub(r"(!?\[[^\]]*\])\((?!https?:|#)([^)]+)\)", target, text)


if __name__ == "__main__":
    from setuptools import setup

    setup(long_description=description(), long_description_content_type="text/markdown")
