"""How long training took, from the state that transformers' Trainer saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple


class TrainingRun(NamedTuple):
    """Optimizer steps of a training run, and the seconds that they took."""

    steps: int
    seconds: float


def training_run(folder: Path) -> TrainingRun:
    """The run whose checkpoint lies in a folder.

    Raises:
        ValueError: the run is not finished, or was resumed and tells only the time since then.
    """
    file = folder / "trainer_state.json"
    if not file.is_file():
        raise ValueError(f"{file} does not exist; train into {folder} first")
    state = json.loads(file.read_text("utf-8"))
    end = state["log_history"][-1] if state["log_history"] else {}
    if "train_runtime" not in end:
        raise ValueError(f"{folder} is not trained to its end; start its script again")
    steps, seconds = state["global_step"], end["train_runtime"]
    if abs(end["train_steps_per_second"] * seconds - steps) > 0.5 + 0.01 * steps:
        raise ValueError(f"{folder} was interrupted, so its time is unknown; train it in one go to have it")
    return TrainingRun(steps, seconds)
