"""make_delta, apply_delta, consolidate and auto_upgrade, on checkpoints in files."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from llava.model import apply_delta, consolidate, make_delta
from llava.model.builder import load_tokenizer, save_llava_checkpoint
from llava.model.utils import auto_upgrade


@pytest.fixture
def target(make_tiny_llava, llama_folder, tmp_path):
    """A LLaVA whose language model differs from its base."""
    model = make_tiny_llava()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.get_model().layers.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw))
    save_llava_checkpoint(model, load_tokenizer(str(llama_folder)), tmp_path / "target")
    return tmp_path / "target"


def same_weights(one, two, **tolerance):
    one, two = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], **tolerance)


def test_there_and_back(target, llama_folder, tmp_path):
    delta, again = tmp_path / "delta", tmp_path / "again"
    paths = ["--base-model-path", str(llama_folder), "--target-model-path"]
    make_delta.main([*paths, str(target), "--delta-path", str(delta)])
    difference, base = load_file(delta / "model.safetensors"), load_file(llama_folder / "model.safetensors")
    whole = load_file(target / "model.safetensors")
    for name, value in whole.items():
        expected = value - base[name] if name in base else value
        assert torch.equal(difference[name], expected), name
    assert json.loads((delta / "config.json").read_text())["delta_of"] == llama_folder.name

    apply_delta.main([*paths, str(again), "--delta-path", str(delta)])
    same_weights(target, again, atol=1e-6, rtol=1e-6)
    assert "delta_of" not in json.loads((again / "config.json").read_text())


def test_consolidate(tiny_llava, target, tmp_path, capsys):
    shutil.copytree(target, tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    weights = load_file(target / "model.safetensors")
    halves = [dict(list(weights.items())[::2]), dict(list(weights.items())[1::2])]
    index = {}
    for number, half in enumerate(halves):
        torch.save(half, tmp_path / "sharded" / f"pytorch_model-{number}.bin")
        index |= dict.fromkeys(half, f"pytorch_model-{number}.bin")
    (tmp_path / "sharded" / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    capsys.readouterr()
    consolidate.main(["--src", str(tmp_path / "sharded"), "--dst", str(tmp_path / "whole")])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["tensors"] == len(load_file(tmp_path / "whole" / "model.safetensors"))
    assert told["bytes"] == (tmp_path / "whole" / "model.safetensors").stat().st_size
    same_weights(target, tmp_path / "whole", atol=0, rtol=0)


def test_errors_are_one_line(llama_folder, target, tmp_path):
    with pytest.raises(SystemExit, match=r"error: .* is a language model without vision tower"):
        consolidate.main(["--src", str(llama_folder), "--dst", str(tmp_path / "x")])
    paths = ["--base-model-path", "/no/such", "--target-model-path", str(target)]
    with pytest.raises(SystemExit, match="error: /no/such is not a folder"):
        make_delta.main([*paths, "--delta-path", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("answer", "changed"), [("y", True), ("", False)])
def test_auto_upgrade(target, monkeypatch, answer, changed):
    fields = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(fields | {"model_type": "llama", "architectures": ["LlamaModel"]}))
    monkeypatch.setattr("builtins.input", lambda _: answer)
    assert auto_upgrade(str(target)) is changed
    after = json.loads((target / "config.json").read_text())
    assert after["model_type"] == ("llava" if changed else "llama")
    assert not auto_upgrade(str(target)) or not changed
