"""Times of a model's rows, on a tiny model."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from scripts.tables.cells import times as times_module
from scripts.tables.cells.times import measure_times, times_of


@pytest.mark.slow
def test_times_are_taken_once_for_all_rows(llava_folder, tmp_path, monkeypatch):
    file = tmp_path / "results/tiny/efficiency.json"
    questions = [{"question_id": n, "image": "p.png", "text": f"Is it {n}?"} for n in range(3)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    Image.new("RGB", (40, 30), "red").save(tmp_path / "p.png")
    arguments = (str(llava_folder), ["fastervlm:budget=5"], file, tmp_path / "questions.jsonl", tmp_path)
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
