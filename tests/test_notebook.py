"""The notebook of the documentation is run, and prints what is stored in it."""

import json
from pathlib import Path

import pytest

from scripts.notebook import NOTEBOOK, run_all

ROOT = Path(__file__).parents[1]


@pytest.mark.embedded
def test_the_notebook_prints_what_is_stored_in_it(monkeypatch):
    monkeypatch.chdir(ROOT)
    book = json.loads((ROOT / NOTEBOOK).read_text("utf-8"))
    stored = [cell["outputs"] for cell in book["cells"] if cell["cell_type"] == "code"]
    assert sum(map(len, stored)) >= 8
    for own, expected in zip(run_all(book), stored, strict=True):
        assert [one.get("text") for one in own] == [one.get("text") for one in expected]
        assert [list(one.get("data", ())) for one in own] == [list(one.get("data", ())) for one in expected]
