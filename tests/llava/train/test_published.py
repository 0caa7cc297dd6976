"""What a dry run says of LLaVA's own recipe: every missing part of the data with its source, and the hours."""

import json
from pathlib import Path

import pytest

from llava.train.published import FOLDERS, LISTS, hours
from llava.train.train import main

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", LISTS)
def test_every_missing_part_is_named_with_its_source(flags, tmp_path, capsys, name):
    own = ("--version", "v1", "--data_path", tmp_path / name, "--image_folder", tmp_path / "pictures")
    with pytest.raises(SystemExit) as stopped:
        main(flags(tmp_path / "out", *own, "--dry_run", True))
    lines = str(stopped.value).splitlines()
    assert len(lines) == 1 + len(FOLDERS[name])
    assert str(LISTS[name]) in lines[0]
    for line, (folder, source) in zip(lines[1:], FOLDERS[name].items(), strict=True):
        assert line.startswith(f"error: {tmp_path / 'pictures' / folder}: no such folder; get it from {source.address}")
    assert "estimate: hours unknown" in capsys.readouterr().out  # of a tiny model


def test_folders_that_samples_name(flags, data_folder, tmp_path):
    samples = [{**one, "image": f"lost/{number}/x.png"} for number, one in enumerate(_samples(data_folder))]
    (tmp_path / "own.json").write_text(json.dumps(samples))
    own = ("--version", "v1", "--data_path", tmp_path / "own.json", "--dry_run", True)
    with pytest.raises(SystemExit) as stopped:
        main(flags(tmp_path / "out", *own))
    assert str(stopped.value) == (
        f"error: --image_folder {data_folder} lacks folders that samples name: lost/0, lost/1, lost/10 and 9 more"
    )


def _samples(data_folder):
    return json.loads((data_folder / "captions.json").read_text())


def test_the_hours_are_those_of_llavas_readme(monkeypatch, flags, data_folder, tmp_path, capsys):
    """By this machine's speed where it is given: 12 samples, two epochs, at 0.004 a second."""
    captions, dialogues = LISTS
    assert (hours(f"data/{captions}", "lmsys/vicuna-7b-v1.5"), hours(captions, "lmsys/vicuna-13b-v1.5")) == (3.5, 5.5)
    assert (hours(dialogues, "lmsys/vicuna-7b-v1.5"), hours(dialogues, "liuhaotian/llava-v1.5-13b")) == (10, 20)
    assert hours(dialogues, "Qwen/Qwen2.5-7B") is hours("own.json", "lmsys/vicuna-7b-v1.5") is None
    monkeypatch.setenv("SAMPLES_PER_SECOND", "0.004")
    own = ("--version", "v1", "--data_path", data_folder / "dialogues.json", "--num_train_epochs", 2, "--max_steps", -1)
    main(flags(tmp_path / "out", *own, "--dry_run", True))
    assert "estimate: about 1.7 hours at 0.004 samples a second" in capsys.readouterr().out


@pytest.mark.parametrize("name", LISTS)
def test_the_documentation_has_every_part(name):
    page = (ROOT / "docs/training.md").read_text("utf-8")
    assert all(f"`{part}" in page for part in (*FOLDERS[name], name) if part and "/" in part)
    assert name in page
