"""What is claimed of the embedded model, held against the committed cells."""

import csv
import json
from pathlib import Path

import pytest

from flowcut.registry import METHODS
from llava.eval.metrics.bootstrap import bootstrap_interval
from llava.eval.provenance import model_fingerprint
from scripts.embedded.rows import BUDGETS, transferred
from scripts.tables import embed, methods, page, readme
from scripts.tables.cells.file_names import cell_name
from scripts.tables.make import table_of

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


def test_the_cells_are_of_the_weights_that_ship(cells):
    shipped = model_fingerprint(ROOT / "playground/embedded")
    assert {cell["identity"]["model_hash"] for cell in cells.values()} == {shipped}


@pytest.mark.parametrize("program", [embed, methods, page, readme])
def test_pages_are_those_of_the_cells(program, monkeypatch):
    monkeypatch.chdir(ROOT)
    program.main(["--check"])


def test_every_method_is_in_the_table_of_every_budget():
    """VTW, which knows no budget in a model of four layers, once; a preset for another model not at all."""
    cells = methods.read_cells(ROOT / "results/embedded")
    for budget in BUDGETS:
        own = {cell["method"] for cell in cells if cell["budget"] == budget and cell["method"] != "none"}
        assert own | {"vtw"} == set(METHODS) - {"flowcut-qwen2-vl-released"}
    assert sum(cell["method"] == "vtw" for cell in cells) == 1


def test_all_cells_are_of_the_same_weights_data_and_settings():
    kept = ("model_hash", "conv_mode", "dtype", "max_new_tokens", "temperature", "batch_size")
    cells = [json.loads(file.read_text()) for file in (ROOT / "results/embedded").glob("*.json")]
    measured = [cell for cell in cells if "identity" in cell]
    assert len(measured) > 100
    assert len({tuple(cell["identity"][name] for name in kept) for cell in measured}) == 1
    by_size = {}
    for cell in measured:
        if not cell["blind"]:
            assert by_size.setdefault(cell["n"], cell["identity"]["data_hash"]) == cell["identity"]["data_hash"]
        assert cell["missing"] == 0
        assert not cell["commit"].endswith("+")


def test_trained_models_are_asked_as_they_were_trained():
    record = json.loads((ROOT / "results/embedded/training.json").read_text())
    for run in record["rows"]:
        folder = run.get("run", f"trained_{run['tokens']}")
        [file] = (ROOT / "results" / folder / "embedded").glob("*.json")
        cell = json.loads(file.read_text())
        assert cell["tokens"]["llm"] == run["tokens"]
        assert cell["budget"] == run["tokens"]


def test_a_table_on_the_embedded_model_says_what_the_cells_say():
    """Table 1 recomputed from scores and types alone, on the questions that its rows share."""
    with (ROOT / "results/embedded/tables/table01.csv").open() as file:
        lines = list(csv.DictReader(file))
    texts = [row.pruner for row in table_of(1).rows]
    cells = {}
    for text, line in zip(texts, lines, strict=True):
        name = cell_name(transferred(text, 576))
        cells[name] = (json.loads((ROOT / f"results/embedded/{name}.json").read_text()), line)
    scores = {
        name: dict(zip(cell["questions"].split(), map(float, cell["scores"].split()), strict=True))
        for name, (cell, _) in cells.items()
    }
    shared = set.intersection(*map(set, scores.values()))
    none = cells["none"][0]
    types = dict(zip(none["questions"].split(), none["types"].split(), strict=True))
    counts = [question for question in shared if types[question] == "count"]
    for name, (_, line) in cells.items():
        mean = sum(scores[name][question] for question in shared) / len(shared)
        assert float(line["all"]) == pytest.approx(100 * mean, abs=0.051)
        counted = sum(scores[name][question] for question in counts) / len(counts)
        assert float(line["count"]) == pytest.approx(100 * counted, abs=0.51)
