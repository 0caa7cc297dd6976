"""File lists inside a checkpoint are data: nothing outside its folder is moved or read, and reading never writes."""

import json

import pytest

from llava.eval.models.load import fits_llava_classes
from llava.model.checkpoint import finish_save, read_config, read_weights


@pytest.mark.parametrize("name", ["../out.txt", "logs/out.txt", "/tmp/out.txt", "a/../../out.txt", "", 3, "b\0c", None])
def test_a_list_of_files_that_leads_elsewhere_moves_nothing(tmp_path, name):
    folder, elsewhere = tmp_path / "checkpoint", tmp_path / "elsewhere"
    (folder / ".complete/logs").mkdir(parents=True)
    elsewhere.mkdir()
    (folder / "logs").symlink_to(elsewhere)
    (folder / ".complete/logs/out.txt").write_text("in")
    (folder / ".complete/config.json").write_text("{}")
    (folder / ".complete/.files.json").write_text(json.dumps(["config.json", name]))
    before = sorted(tmp_path.rglob("*"))
    for read in (finish_save, read_config, fits_llava_classes):
        with pytest.raises(ValueError, match=r"which is not a file inside|interrupted at its last step"):
            read(folder)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.bin", "a/b.bin", 3])
def test_shards_are_files_of_the_folder(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="from names to files of this folder"):
        list(read_weights(tmp_path))
