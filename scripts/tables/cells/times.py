"""Times of a model's rows, all of one run of `llava.eval.efficiency`, kept in <results>/<model>/efficiency.json."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.files import write_atomic

EFFICIENCY = "efficiency.json"


def times_of(file: Path) -> dict[str, dict[str, float]]:
    """Medians at batch size 1, by text form of the pruner; empty where there is no such file.

    Each holds encode (with projector), prefill, ttft and total in ms a question, speed-ups against the unpruned model,
    TFLOPs a question, and the number of questions.
    """
    if not file.is_file():
        return {}
    found: dict[str, dict[str, float]] = {}
    for row in json.loads(file.read_text("utf-8"))["rows"]:
        if row["batch"] == 1 and row["pruner"] not in found:
            ms = {stage: spread["median"] for stage, spread in row["ms"].items()}
            found[row["pruner"]] = {
                **ms,
                "encode": ms["encode"] + ms["projector"],
                "total_speedup": row["speed_up"]["total"]["ratio"],
                "ttft_speedup": row["speed_up"]["ttft"]["ratio"],
                "tflops": row["gflops"]["total"] / 1000,
                "questions": row["questions"],
            }
    return found


def how_taken(file: Path) -> str:
    """A sentence about how the times in a file were taken."""
    if not file.is_file():
        return "Times were not measured."
    run = json.loads(file.read_text("utf-8"))
    return (
        f"Times: medians over {run['questions']} questions, rows in turn, {run['dtype']}, batch 1, "
        f"{run['threads']} thread(s) of an {run['device']}, pixels to the end of the answer; encode "
        f"includes the projector. `{file.name}` has quartiles."
    )


def measure_times(
    model: str,
    pruners: Sequence[str],
    file: Path,
    question_file: Path,
    images: Path,
    flags: Sequence[str] = (),
) -> None:
    """Time the pruners and the unpruned model on the same questions, unless the file has all of them.

    flags: further flags of `python -m llava.eval.efficiency`.

    Raises:
        ValueError: the run failed; it has then said why.
    """
    wanted = dict.fromkeys(("none", *pruners))
    if set(wanted) <= set(times_of(file)):
        return
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "times.json"
        command = [sys.executable, "-m", "llava.eval.efficiency", "--model-path", model, "--out", str(whole)]
        command += ["--question-file", str(question_file), "--image-folder", str(images), *flags]
        for text in wanted:
            command += ["--pruner", text] if text != "none" else []
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            raise ValueError(f"the times of {model} could not be taken; see above")
        run: dict[str, Any] = json.loads(whole.read_text("utf-8"))
    for row in run["rows"]:
        del row["raw"]  # every turn's times; quartiles stay
    run["command"] = run["command"].split(" --out ")[0] + " ..."
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(run, indent=1) + "\n")
