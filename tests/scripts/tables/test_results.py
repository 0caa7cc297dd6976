"""What is claimed of the embedded model, held against the committed cells."""

import subprocess
import sys
from pathlib import Path

import pytest

from llava.eval.confidence import bootstrap_interval
from llava.eval.provenance import model_fingerprint
from scripts.tables import embed, methods

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def cells():
    return embed.read_cells(ROOT / "results/embedded")


def _difference(one, other):
    """95 % interval of the accuracy difference, question by question on the same questions."""
    assert one["scenes"] == other["scenes"]
    scores = [[float(value) for value in cell["scores"].split()] for cell in (one, other)]
    return bootstrap_interval([a - b for a, b in zip(*scores, strict=True)], one["scenes"].split())


def test_the_model_sees(cells):
    assert cells["none"]["n"] >= 1000
    assert cells["none"]["accuracy"] - cells["blind"]["accuracy"] >= 0.25
    assert sum(part["accuracy"] >= 0.85 for part in cells["none"]["categories"].values()) >= 3


def test_tokens_matter(cells):
    assert cells["none"]["accuracy"] - cells["random_64"]["accuracy"] >= 0.05


@pytest.mark.parametrize("row", embed.ROWS[2:])
def test_no_pruned_row_beats_vanilla_beyond_noise(cells, row):
    """It would mean that the model never learnt to read 576 tokens, and that pruning looks better than it is."""
    assert _difference(cells[row], cells["none"]).low <= 0


@pytest.mark.parametrize("row", embed.ROWS)
def test_a_cell_knows_where_it_comes_from(cells, row):
    cell = cells[row]
    scores = [float(value) for value in cell["scores"].split()]
    assert cell["accuracy"] == pytest.approx(sum(scores) / len(scores), abs=1e-4)
    assert cell["missing"] == 0
    assert cell["tokens"]["llm"] == cell["budget"]
    for key in ("command", "date", "identity"):
        assert cell[key]


def test_tables_in_the_documentation_are_those_of_the_cells():
    command = [sys.executable, "-m", "scripts.tables.embed", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_cells_are_of_the_weights_that_ship(cells):
    shipped = model_fingerprint(ROOT / "playground/embedded")
    assert {cell["identity"]["model_hash"] for cell in cells.values()} == {shipped}


def test_the_page_of_all_methods_is_that_of_the_cells():
    command = [sys.executable, "-m", "scripts.tables.methods", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_differences_are_paired(cells):
    one, other = cells["random_64"], cells["flowcut_64"]
    mean, low, high = methods.difference(one, other)
    assert mean == pytest.approx(100 * (one["accuracy"] - other["accuracy"]), abs=0.02)
    assert low < mean < high
    assert methods.difference(one, one | {"scenes": "0 1"}) is None
