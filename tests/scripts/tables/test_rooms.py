"""Imports between the rooms of scripts/tables run one way."""

import ast
from pathlib import Path

import pytest

TABLES = Path(__file__).parents[3] / "scripts" / "tables"
ORDER = ("paper", "cells", "render")


def imported_from(file):
    """The rooms that a file imports from, anywhere in it; "programs" for files in the folder itself."""
    names = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    parts = [name.split(".")[2] for name in names if name.startswith("scripts.tables.")]
    return {part if part in ORDER else "programs" for part in parts}


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_from_rooms_before_it(room):
    files = sorted((TABLES / room).glob("*.py"))
    assert files
    allowed = set(ORDER[: ORDER.index(room) + 1])
    for file in files:
        assert imported_from(file) <= allowed, file.name


def test_the_folder_itself_holds_programs():
    for file in TABLES.glob("*.py"):
        assert file.stem == "__init__" or 'if __name__ == "__main__":' in file.read_text("utf-8"), file.name
