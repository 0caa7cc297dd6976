"""What a distribution contains, and the links that it shows, as far as both are known without building one."""

import re
import runpy
import subprocess
import tomllib
from pathlib import Path

import pytest

from flowcut.version import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
README = (ROOT / "README.md").read_text("utf-8")
PACKAGES = ("flowcut", "llava")


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """setup.py as it stands in a folder of its own, with nothing in the environment that names a repository."""
    monkeypatch.delenv("REPOSITORY_URL", raising=False)
    for name in ("setup.py", "README.md"):
        (tmp_path / name).write_text((ROOT / name).read_text("utf-8"), "utf-8")
    return runpy.run_path(str(tmp_path / "setup.py"))


def test_links_are_relative_where_no_address_is_known(setup):
    assert setup["repository"]() is None
    assert setup["description"](None) == README
    assert setup["urls"](None) == {"Paper": "https://arxiv.org/abs/2505.19536"}


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("https://host.org/own/name.git", "https://host.org/own/name"),
        ("https://user:secret@host.org/own/name", "https://host.org/own/name"),
        ("https://host.org:8443/own/name/", "https://host.org:8443/own/name"),
        ("git@host.org:own/name.git", "https://host.org/own/name"),
        ("ssh://git@host.org/own/name.git", "https://host.org/own/name"),
        ("/srv/name.git", None),
        ("http://localhost:3000/own/name", None),
        ("file:///srv/name", None),
    ],
)
def test_the_address_is_that_of_the_git_remote_without_passwords(setup, tmp_path, remote, address):
    for command in (["init", "-q"], ["remote", "add", "origin", remote]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    assert setup["repository"]() == address


def test_the_environment_wins_and_a_source_distribution_remembers(setup, tmp_path, monkeypatch):
    """Its folder may lie in another repository, whose remote says nothing about this project."""
    (tmp_path / "PKG-INFO").write_text("Name: x\nProject-URL: Repository, https://host.org/own/name\n\ntext\n")
    assert setup["repository"]() == "https://host.org/own/name"
    (tmp_path / "PKG-INFO").write_text("Name: x\n\nProject-URL\n")
    assert setup["repository"]() is None
    monkeypatch.setenv("REPOSITORY_URL", "https://other.org/own/name/")
    assert setup["repository"]() == "https://other.org/own/name"


def test_links_and_pictures_are_absolute_where_an_address_is_known(setup):
    text = setup["absolute"]("![a](b/c.png) [d](e.md#f) [g](#h) [i](https://j)", "https://host/own")
    assert (
        text == "![a](https://host/own/raw/main/b/c.png) [d](https://host/own/blob/main/e.md#f) [g](#h) [i](https://j)"
    )
    assert not re.findall(r"\]\((?!https:|#)", setup["description"]("https://host/own"))
    assert setup["urls"]("https://host/own")["Repository"] == "https://host/own"


def test_every_file_of_the_packages_is_packed():
    """Python files with their folder, all others by a pattern."""
    command = ["git", "-C", str(ROOT), "ls-files", *PACKAGES]
    files = [Path(line) for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines()]
    if not files:
        pytest.skip("not a checkout")
    data = PROJECT["tool"]["setuptools"]["package-data"]
    packed = {path.relative_to(ROOT) for package, patterns in data.items() for pattern in patterns
              for path in ROOT.joinpath(*package.split(".")).glob(pattern)}  # fmt: skip
    assert {file for file in files if file.suffix != ".py"} == packed
    assert PROJECT["tool"]["setuptools"]["packages"]["find"].get("namespaces", True)  # flowcut/hooks has no __init__.py
    assert {Path(package) / "py.typed" for package in PACKAGES} <= packed


def test_what_an_index_shows():
    project = PROJECT["project"]
    assert (project["version"], project["license"]) == (__version__, "Apache-2.0")
    assert all(author["name"] for author in project["authors"])
    assert {"Typing :: Typed", "Intended Audience :: Science/Research"} <= set(project["classifiers"])
    assert not any(line.startswith("License ::") for line in project["classifiers"])  # not beside an expression
    named = {line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r"Python :: 3\.", line)}
    least, most = re.findall(r"3\.(\d+)", project["requires-python"])
    assert named == {f"3.{minor}" for minor in range(int(least), int(most))}
    for command in project["scripts"].values():
        assert (ROOT / f"{command.partition(':')[0].replace('.', '/')}.py").is_file()
