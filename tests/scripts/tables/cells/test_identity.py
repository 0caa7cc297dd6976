"""Whether a cell that is there is up to date, and what becomes of answers that are not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from scripts.tables.cells import produce
from scripts.tables.cells.document import read_document
from scripts.tables.cells.produce import make_cell
from tests.scripts.tables.cells.made_here import FLAGS, made_here


def change_question(cell):
    text = cell.evaluation.question_file.read_text("utf-8")
    cell.evaluation.question_file.write_text(text.replace("kite", "boat", 1), "utf-8")


def change_label(cell):
    file = cell.evaluation.folder / "coco" / "coco_pope_random.json"
    file.write_text(file.read_text("utf-8").replace('"yes"', '"no"', 1), "utf-8")


def change_weights(cell):
    [file] = Path(cell.model).glob("model*.safetensors")
    save_file({name: value + 1 for name, value in load_file(file).items()}, file, {"format": "pt"})


@pytest.mark.parametrize("change", [change_question, change_label, change_weights])
def test_stale_after_a_change(copied, change):
    change(copied)
    assert read_document(copied) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pruner", "FasterVLM(budget=6)"),
        ("split", "other"),
        ("limit", 3),
        ("model", "other"),
        ("model_hash", "0" * 16),
        ("data_hash", "0" * 16),
        ("temperature", 0.2),
        ("max_new_tokens", 128),
    ],
)
def test_stale_when_its_identity_is_another(copied, name, value):
    document = json.loads(copied.file.read_text("utf-8"))
    assert document["identity"][name] != value
    document["identity"][name] = value
    copied.file.write_text(json.dumps(document), "utf-8")
    assert read_document(copied) is None


def test_stale_while_a_question_is_unanswered_or_a_flag_is_another(copied):
    for flags in (("--temperature", "0.2"), ("--conv-mode", "llava_v1"), ("--dtype", "float16"), ("--seed", "1")):
        assert read_document(replace(copied, flags=(*FLAGS, *flags))) is None
    assert read_document(replace(copied, flags=(*FLAGS, "--batch-size", "4", "--workers", "1"))) is not None
    document = json.loads(copied.file.read_text("utf-8"))
    copied.file.write_text(json.dumps(document | {"missing": 1}), "utf-8")
    assert read_document(copied) is None


def test_a_cell_from_elsewhere_is_believed_where_nothing_contradicts_it(copied):
    shutil.rmtree(copied.data)
    shutil.rmtree(copied.model)
    assert read_document(copied)["n"] == 12


def test_a_label_is_scored_anew_and_not_answered(copied):
    change_label(copied)
    before = (copied.evaluation.answers_folder / "1_0.jsonl").read_bytes()
    old = json.loads(copied.file.read_text("utf-8"))
    made = made_here(copied)
    assert (copied.evaluation.answers_folder / "1_0.jsonl").read_bytes() == before
    assert made["parts"] != old["parts"]
    assert read_document(copied) == made


def test_answers_of_other_weights_are_put_aside(copied, monkeypatch, caplog):
    before = (copied.evaluation.answers_folder / "merge.jsonl").read_bytes()
    old = copied.file.read_bytes()
    change_weights(copied)

    def no_space_left(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(produce, "evaluate", no_space_left)
        with pytest.raises(ValueError, match=r"No space left on device; to continue: MODEL=") as failed:
            make_cell(copied)
    assert "\n" not in str(failed.value)
    folder = copied.evaluation.answers_folder
    aside = folder.with_name(folder.name + ".1")
    assert (aside / "merge.jsonl").read_bytes() == before
    assert copied.file.read_bytes() == old  # until there is a new one
    assert "put aside" in caplog.text
    made = made_here(copied)
    assert made["identity"]["model_hash"] != json.loads(old)["identity"]["model_hash"]
    assert read_document(copied) == made
