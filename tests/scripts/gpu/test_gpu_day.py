"""The GPU day on a CPU: what a part leaves when it ends well, fails or hangs, and what the page says of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flowcut.bench.__main__ import main as bench
from scripts.gpu import correctness, day, report, speed
from scripts.gpu.day import PARTS, Part, run
from tests.ending import ending

ROOT = Path(__file__).resolve().parents[3]


def code(text, seconds=20):
    """A part that runs `python -m timeit`'s setup, the shortest way to a few lines of Python behind -m."""
    words = ("timeit", "-n", "1", "-r", "1", "-s", text, "pass")
    return Part("part", seconds, words, words)


def test_all_parts_together_stay_below_eight_minutes():
    assert sum(part.seconds for part in PARTS) <= 8 * 60
    assert {part.name for part in PARTS} == set(report.TITLES)


def test_a_part_leaves_its_last_json_line_and_its_log(tmp_path):
    told = run(code("print('{\"a\": 1}'); import sys; print('noise', file=sys.stderr)"), tmp_path, tiny=True)
    assert told == json.loads((tmp_path / "part.json").read_text())
    assert (told["status"], told["timed_out"], told["result"]) == (0, False, {"a": 1})
    assert "noise" in (tmp_path / "part.log").read_text()


def test_a_part_that_hangs_is_ended_and_what_it_had_is_kept(tmp_path):
    told = run(code("print('[1]', flush=True); import time; time.sleep(60)", seconds=2), tmp_path, tiny=True)
    assert told["timed_out"]
    assert told["result"] == [1]
    assert told["seconds"] < 50


def test_a_part_that_fails_does_not_stop_the_next(tmp_path, capsys):
    broken = Part("broken", 20, ("no_such_module",), ("no_such_module",))
    assert day.main([str(tmp_path), "--tiny"], parts=[broken, code("print('{}')")]) == 1
    assert json.loads((tmp_path / "part.json").read_text())["result"] == {}
    said = capsys.readouterr()
    assert "broken: status 1" in said.out
    assert said.err.startswith("failed: broken; ")


def test_the_script_runs_from_elsewhere(tmp_path):
    command = ["bash", str(ROOT / "scripts/gpu/day.sh"), "out", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}, text=True,
                          capture_output=True, check=True)  # fmt: skip
    assert "--tiny" in done.stdout
    assert (tmp_path / "out").is_dir()


def result_of(capsys, main, *words):
    assert main(list(words)) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture
def told(capsys):
    """Parts as a GPU would leave them, here from tiny models on a CPU."""
    quick = ["--geometry", "tiny", "--repeats", "1", "--warmup", "0", "--threads", "1"]
    results = {
        "correctness": result_of(capsys, correctness.main, "--tiny"),
        "ops_1": result_of(capsys, bench, "ops", *quick),
        "speed_llava_1_5": result_of(capsys, speed.main, "tiny", "--tiny"),
    }
    common = {"limit_s": 9, "seconds": 3.0, "timed_out": False, "status": 0, "tiny": False}
    return {name: {**common, "part": name, "result": result} for name, result in results.items()}


@pytest.mark.slow
def test_page(told):
    made = report.page(told)
    checks = told["correctness"]["result"]["checks"]
    assert f"{len(checks)} of {len(checks)} checks passed" in made
    assert "| train_192 | not run yet | | 47 |" in made
    speeds = told["speed_llava_1_5"]["result"]["batches"]
    assert set(speeds) == {"1"}
    assert {"vanilla", "flowcut", "flowcut, calibrated", "visionzip", "fastv", "tome"} <= set(speeds["1"]["generate"])
    for batch in speeds.values():
        for command in speed.COMMANDS:
            flowcut = batch[command]["flowcut"]
            assert flowcut["speedup"] == pytest.approx(batch[command]["vanilla"]["s"] / flowcut["s"])
            assert f"({flowcut['speedup']:.2f}x)" in made
    assert "Not run yet." in made.split("## A training step with 192")[1]


def test_a_page_of_nothing_says_so(tmp_path):
    file = tmp_path / "page.md"
    assert report.main([str(tmp_path / "missing"), "--page", str(file)]) == 0
    assert file.read_text().count("ot run yet") == 2 * len(PARTS)


def test_tiny_results_are_refused(tmp_path, capsys):
    (tmp_path / "ops_1.json").write_text(json.dumps({"tiny": True, "result": None}))
    assert ending(report.main, [str(tmp_path), "--page", str(tmp_path / "page.md")]) == 2
    assert "--tiny" in capsys.readouterr().err


def test_the_committed_page_is_rendered():
    """Until a GPU was there, it says that nothing was run."""
    assert report.PAGE.read_text().startswith(report.HEAD)
