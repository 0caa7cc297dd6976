"""extract_mm_projector.py and merge_lora_weights.py on every kind of file."""

import pytest
import torch
from safetensors.torch import load_file

from llava.convert import convert
from scripts import extract_mm_projector, merge_lora_weights


@pytest.mark.parametrize("layout", ["safetensors", "bin", "transformers"])
def test_extract(llava_folder, tmp_path, layout):
    source = llava_folder
    weights = load_file(llava_folder / "model.safetensors")
    if layout == "bin":
        source = tmp_path / "bin"
        source.mkdir()
        torch.save(weights, source / "pytorch_model.bin")
    elif layout == "transformers":
        source = tmp_path / "hf"
        convert(str(llava_folder), None, "hf", str(source))
    output = tmp_path / "out" / "mm_projector.bin"
    extract_mm_projector.main(["--model-path", str(source), "--output", str(output)])
    found = torch.load(output, weights_only=True)
    assert set(found) == {name for name in weights if "mm_projector" in name}
    assert all(torch.equal(value, weights[name]) for name, value in found.items())


def test_nothing_to_extract(llama_folder, tmp_path):
    with pytest.raises(SystemExit, match="holds no projector"):
        extract_mm_projector.main(["--model-path", str(llama_folder), "--output", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()


def test_merge_says_what_is_wrong(llama_folder, tmp_path):
    with pytest.raises(SystemExit, match="has no LoRA adapter"):
        merge_lora_weights.main(["--model-path", str(llama_folder), "--save-model-path", str(tmp_path / "x")])
