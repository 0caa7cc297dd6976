"""How long training took."""

import json

import pytest

from scripts.tables.cells.training import training_run


def test_hours_come_from_the_runs(tmp_path):
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
