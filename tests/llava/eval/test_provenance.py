"""Fingerprints notice what they should."""

import os
import shutil

import torch

from llava.eval.provenance import environment, fingerprint, model_fingerprint


def test_a_model_is_known_by_its_weights_not_by_its_place(llava_folder, tmp_path):
    copy = shutil.copytree(llava_folder, tmp_path / "copy")
    assert model_fingerprint(copy) == model_fingerprint(llava_folder)
    [weights] = copy.glob("*.safetensors")
    with weights.open("rb+") as file:
        file.seek(-3, os.SEEK_END)
        byte = file.read(1)
        file.seek(-3, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    assert model_fingerprint(copy) != model_fingerprint(llava_folder)


def test_files_are_known_by_name_and_content(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("x")
    b.write_text("x")
    assert fingerprint([a]) != fingerprint([b])
    before = fingerprint([a, b])
    a.write_text("y")
    assert fingerprint([a, b]) != before


def test_the_environment_names_versions_and_hardware():
    found = environment(torch.device("cpu"))
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["hardware"]["cores"] == os.cpu_count()
    assert found["commit"] is None or len(found["commit"].rstrip("+")) == 40
