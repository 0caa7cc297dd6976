"""Metadata is in pyproject.toml, except what depends on the repository's address: its links, and README.md's.

The address is $REPOSITORY_URL, else the one in a source distribution's own metadata, else that of the git remote
`origin`. Without any, the links of the description stay relative.
"""

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent
PAPER = "https://arxiv.org/abs/2505.19536"
NAMED = "REPOSITORY_URL"


def repository() -> str | None:
    """The repository's web address, such as https://host/owner/name; None where none is known."""
    named = os.environ.get(NAMED)
    if named:
        return named.rstrip("/")
    built = ROOT / "PKG-INFO"  # of an unpacked source distribution
    if built.is_file():
        found = re.search(r"^Project-URL: Repository, (\S+)$", built.read_text("utf-8"), re.MULTILINE)
        return found[1] if found else None
    if not (ROOT / ".git").exists():  # git would find a repository that this folder only lies in
        return None
    command = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return web_address(told.strip())


def web_address(remote: str) -> str | None:
    """A git remote's address for a browser, without user names and passwords; None for a path or another protocol."""
    host, path = r"([\w.-]+\.[a-z]+", r"(.+?)(?:\.git)?/?"
    web = re.fullmatch(rf"https://(?:[^/@]+@)?{host}(?::\d+)?)/{path}", remote)
    found = web or re.fullmatch(rf"(?:ssh://git@|git@){host})[:/]{path}", remote)
    return f"https://{found[1]}/{found[2]}" if found else None


def urls(address: str | None) -> dict[str, str]:
    own = {} if address is None else {"Repository": address, "Changelog": f"{address}/blob/main/CHANGELOG.md"}
    return {"Paper": PAPER, **own}


def description(address: str | None) -> str:
    """README.md, its links and pictures made absolute where the repository's address is known."""
    text = (ROOT / "README.md").read_text("utf-8")
    return text if address is None else absolute(text, address)


def absolute(text: str, address: str) -> str:
    """Markdown with relative targets made absolute: `raw` for pictures, `blob` for other files."""

    def target(found: re.Match) -> str:
        return f"{found[1]}({address}/{'raw' if found[1].startswith('!') else 'blob'}/main/{found[2]})"

    return re.sub(r"(!?\[[^\]]*\])\((?!https?:|#)([^)]+)\)", target, text)


if __name__ == "__main__":
    from setuptools import setup

    ADDRESS = repository()
    setup(
        long_description=description(ADDRESS),
        long_description_content_type="text/markdown",
        project_urls=urls(ADDRESS),
    )
