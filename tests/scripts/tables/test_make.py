"""Tables from command to files, on miniature data and a tiny model."""

import csv
import json
import shutil
from types import SimpleNamespace

import pytest

from scripts.tables import make
from scripts.tables.cells import produce
from scripts.tables.cells import times as times_module
from scripts.tables.cells.times import measure_times, times_of
from scripts.tables.cells.training import training_run
from tests.llava.eval.data_tree import make_data_tree
from tests.scripts.tables.cells.made_here import FLAGS, answered_here, nothing_may_run


@pytest.fixture(scope="module")
def root(tmp_path_factory, llava_folder):
    folder = tmp_path_factory.mktemp("tables")
    shutil.copytree(llava_folder, folder / "tiny")
    make_data_tree(folder / "eval", ("pope",))
    return folder


def ask(root, *more, number="9"):
    make.main(
        [
            *(number, "--model", str(root / "tiny"), "--results", str(root / "results"), "--data", str(root / "eval")),
            *(*more, *FLAGS),
        ]
    )


def lines_of(root, number=9):
    with (root / f"results/tiny/tables/table{number:02d}.csv").open() as file:
        return {(line["method"], line[""].split(" [")[0]): line for line in csv.DictReader(file)}


def test_a_table_is_made_once_and_read_ever_after(root, monkeypatch, capsys):
    monkeypatch.setattr(produce, "follow", answered_here)
    ask(root, "--methods", "FasterVLM", "--columns", "POPE", "TFLOPs")
    lines = lines_of(root)
    cells = {file.stem: json.loads(file.read_text()) for file in (root / "results/tiny/pope").glob("*.json")}
    assert set(cells) == {"none", "fastervlm_64"}
    for method, cell in (("Vanilla", "none"), ("FasterVLM", "fastervlm_64")):
        paper, ours = (float(lines[method, kind]["POPE"].split(" [")[0]) for kind in ("paper", "ours"))
        assert ours == pytest.approx(cells[cell]["value"], abs=0.05)
        assert float(lines[method, "difference"]["POPE"]) == pytest.approx(cells[cell]["value"] - paper, abs=0.051)
        assert int(lines[method, "n"]["POPE"]) == cells[cell]["n"] > 0
    assert lines["RCom", "ours"]["POPE"] == "-"  # not asked for
    assert lines["ST3", "paper"]["POPE"] == "85.2"
    gigaflops = cells["fastervlm_64"]["gflops"]["total"]
    assert float(lines["FasterVLM", "ours"]["TFLOPs"]) == pytest.approx(gigaflops / 1000, abs=0.005)
    # three questions are not the published 8,910, which has to be said
    assert "published 8910" in (root / "results/tiny/tables/table09.md").read_text()

    monkeypatch.setattr(produce, "follow", nothing_may_run)
    before = (root / "results/tiny/tables/table09.csv").read_text()
    ask(root, "--methods", "FasterVLM", "--columns", "POPE", "TFLOPs")
    assert (root / "results/tiny/tables/table09.csv").read_text() == before
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [file.rsplit(".")[-1] for file in said["files"]] == ["md", "csv", "html"]
    ask(root, "--render")
    assert lines_of(root)["FasterVLM", "ours"] == lines["FasterVLM", "ours"]


def test_a_benchmark_without_files_is_named_and_the_rest_is_made(root, monkeypatch, capsys):
    monkeypatch.setattr(produce, "follow", answered_here)
    with pytest.raises(SystemExit) as stopped:
        ask(root, "--columns", "POPE", "TextVQA", "--methods", "FasterVLM")
    assert stopped.value.code == 1
    assert "warning: textvqa is left out" in capsys.readouterr().err
    lines = lines_of(root)
    assert lines["FasterVLM", "ours"]["TextVQA"] == "-"
    assert float(lines["FasterVLM", "ours"]["POPE"].split(" [")[0]) >= 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--columns", "GQA"), "--columns GQA: table 9 has AI2D, MMB"),
        (("--methods", "FastV"), "--methods FastV: table 9 has FasterVLM, FlowCut"),
    ],
)
def test_names_that_a_table_does_not_have_are_refused(root, flags, said):
    with pytest.raises(SystemExit, match=said):
        ask(root, *flags)


@pytest.mark.parametrize("flags", [("--columns", "POPE"), ("--methods", "FlowCut"), ("--judge-model", "x")])
def test_flags_that_the_embedded_model_would_not_heed_are_refused(flags):
    with pytest.raises(SystemExit, match=f"{flags[0]}.*: not with the embedded model, which takes --limit"):
        make.main(["1", "--model", "embedded", "--render", *flags])


def test_hours_come_from_the_runs(root, tmp_path):
    def trained(name, steps, seconds, per_second):
        end = {"train_runtime": seconds, "train_steps_per_second": per_second}
        (tmp_path / name).mkdir()
        state = {"global_step": steps, "log_history": [{"loss": 1.0}, end]}
        (tmp_path / name / "trainer_state.json").write_text(json.dumps(state))
        return tmp_path / name

    assert training_run(trained("whole", 100, 200.0, 0.5)) == (100, 200.0)
    with pytest.raises(ValueError, match="was interrupted"):
        training_run(trained("resumed", 100, 100.0, 0.5))
    with pytest.raises(ValueError, match="does not exist; train into"):
        training_run(tmp_path / "nothing")
    (tmp_path / "whole" / "trainer_state.json").write_text(json.dumps({"global_step": 5, "log_history": []}))
    with pytest.raises(ValueError, match="not trained to its end"):
        training_run(tmp_path / "whole")


@pytest.mark.slow
def test_times_are_taken_once_for_all_rows(root, monkeypatch):
    file = root / "results/tiny/efficiency.json"
    questions = [{"question_id": n, "image": "p.png", "text": f"Is it {n}?"} for n in range(3)]
    (root / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    shutil.copy(next((root / "eval").rglob("*.jpg")), root / "p.png")
    arguments = (str(root / "tiny"), ["fastervlm:budget=5"], file, root / "questions.jsonl", root)
    flags = ("--questions", "3", "--warm-up", "1", "--max-new-tokens", "2", "--device", "cpu")
    measure_times(*arguments, flags)
    times = times_of(file)
    assert set(times) == {"none", "fastervlm:budget=5"}
    assert times["none"]["total_speedup"] == 1
    assert times["none"]["tflops"] > times["fastervlm:budget=5"]["tflops"] > 0
    for own in times.values():
        assert own["total"] >= own["ttft"] >= own["prefill"] > 0
    stamp = file.stat().st_mtime_ns
    measure_times(*arguments, ("--no-such-flag",))
    assert file.stat().st_mtime_ns == stamp
    monkeypatch.setattr(times_module.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1))
    with pytest.raises(ValueError, match="could not be taken"):
        measure_times(arguments[0], ["random:budget=5"], *arguments[2:])
    assert times_of(file) == times  # a failed run takes nothing away
