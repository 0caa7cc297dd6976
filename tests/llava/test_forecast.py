"""Sizes and durations as they are printed, and which models would be downloaded."""

import pytest

from llava.forecast import duration, from_environment, missing_weights, size, total


def test_what_is_not_known_is_said_to_be_unknown():
    assert [size(one) for one in (None, 13.6, 20, 0.14, 0.0001)] == [
        "size unknown", "about 13.6 GB", "about 20 GB", "about 140 MB", "about 1 MB",
    ]  # fmt: skip
    assert total([1.4, None, 20, None]) == "about 21.4 GB and 2 of unknown size"
    assert total([None]) == "1 of unknown size"
    assert total([]) == "nothing"
    assert (duration(5), duration(5400), duration(3000)) == ("about 1 minutes", "about 1.5 hours", "about 50 minutes")


def test_numbers_of_the_environment(monkeypatch):
    monkeypatch.delenv("SPEED", raising=False)
    assert from_environment("SPEED") is None
    monkeypatch.setenv("SPEED", "2.5")
    assert from_environment("SPEED") == 2.5
    for wrong in ("fast", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("SPEED", wrong)
        with pytest.raises(ValueError, match=f"SPEED={wrong} is not a number above 0"):
            from_environment("SPEED")


def test_a_folder_with_weights_is_here_and_a_name_that_was_never_loaded_is_not(tmp_path):
    whole, empty = tmp_path / "whole", tmp_path / "empty"
    whole.mkdir()
    empty.mkdir()
    (whole / "model.safetensors").touch()
    names = [str(whole), str(empty), "lmsys/vicuna-7b-v1.5", "nobody/nothing", None]
    found = missing_weights(names, cache_dir=str(tmp_path / "cache"))
    assert found == {str(empty): None, "lmsys/vicuna-7b-v1.5": 13.5, "nobody/nothing": None}
