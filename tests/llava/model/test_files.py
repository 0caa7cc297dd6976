"""Ill-fitting and incomplete checkpoints: loading and training refuse them alike, each in one line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.model.builder import load_pretrained_model
from llava.train.train import prepare

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
NEXT = {"image_aspect_ratio": "anyres"}


@pytest.fixture
def folder(llava_folder, tmp_path):
    """A copy of the checkpoint with the tower inside."""
    return shutil.copytree(llava_folder, tmp_path / "inside")


def config(folder, **fields):
    file = folder / "config.json"
    merged = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in merged.items() if value is not ...}))


def weights(folder, change):
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def index(folder, names):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def projector_only(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"model.mm_projector.0.weight": torch.zeros(64, 32)}, folder / "mm_projector.bin")


def llama_3(folder):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    (folder / "tokenizer.model").unlink()
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def nan(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    return tensors


CASES = {
    "no object": (lambda f: (f / "config.json").write_text("[]"), "holds a JSON list, not an object"),
    "deep": (lambda f: (f / "config.json").write_text("[" * 99999), "is not readable JSON"),
    "aspect": (
        lambda f: config(f, image_aspect_ratio="anyres_max_9"),
        "anyres_max_9; it has to be absent or square or",
    ),
    "merge": (lambda f: config(f, mm_patch_merge_type="spatial_maxpool2x2"), "maxpool2x2; it has to be absent or flat"),
    "resampler": (lambda f: config(f, mm_resampler_type="perceiver"), "mm_resampler_type .* perceiver"),
    "s2": (lambda f: config(f, s2=True), r"s2 in the config\.json of .* is True; it has to be absent or false"),
    "pinpoints": (
        lambda f: config(f, **NEXT, image_grid_pinpoints="(1x1),...,(6x6)"),
        "is not a list of pairs; give a list",
    ),
    "no pinpoints": (lambda f: config(f, **NEXT), "image_grid_pinpoints .* None is not a list of pairs"),
    "feature": (lambda f: config(f, mm_vision_select_feature="cls"), "cls; it has to be absent or patch or cls_patch"),
    "layer": (lambda f: config(f, mm_vision_select_layer=-9), r"mm_vision_select_layer -9 is not in the vision tower"),
    "text": (lambda f: config(f, hidden_size="64"), "hidden_size .* is 64; it has to be a whole number above 0"),
    "boolean": (lambda f: config(f, mm_use_im_start_end="False"), "it has to be true or false"),
    "list": (lambda f: config(f, mm_vision_tower=["a"]), "mm_vision_tower .* it has to be text"),
    "architectures": (lambda f: config(f, architectures="Llama"), "architectures .* a list of class names"),
    "heads": (lambda f: config(f, num_attention_heads=3), r"has shape \(64, 64\), its config\.json says \(64, 48\)"),
    "rope": (lambda f: config(f, rope_parameters="x"), "is not a model's|cannot be loaded"),
    "activation": (lambda f: config(f, hidden_act="nothing"), "is not a model's|cannot be loaded"),
    "million": (lambda f: config(f, num_hidden_layers=10**6), "1000000; it has to be at most 1000"),
    "layers": (lambda f: config(f, num_hidden_layers=1), "has the weights of 2 layers, but num_hidden_layers is 1"),
    "deep projector": (
        lambda f: config(f, mm_projector_type="mlp99999999x_gelu"),
        "Unknown projector type: mlp99999999x",
    ),
    "projector": (lambda f: config(f, mm_projector_type="linear"), "lacks 2 weights of LlavaLlamaForCausalLM"),
    "rows": (lambda f: config(f, vocab_size=600), r"has shape \(520, 64\), its config\.json says \(600, 64\)"),
    "hidden width": (lambda f: config(f, mm_hidden_size=48), r"mm_projector\.0\.weight .* says \(64, 48\)"),
    "no width": (lambda f: config(f, mm_hidden_size=...), "mm_hidden_size .* is absent; it has to be the width"),
    "no tower": (lambda f: config(f, mm_vision_tower=...), "has no mm_vision_tower; add it"),
    "quantised": (lambda f: config(f, quantization_config={"quant_method": "awq"}), "are quantised by awq"),
    "gptq": (lambda f: weights(f, lambda all: all | {"model.layers.0.a.qweight": torch.ones(1)}), "AWQ or GPTQ"),
    "pointer": (lambda f: (f / "model.safetensors").write_text(POINTER), "is a pointer of Git LFS"),
    "config pointer": (lambda f: (f / "config.json").write_text(POINTER), "is a pointer of Git LFS"),
    "tokenizer pointer": (lambda f: (f / "tokenizer.model").write_text(POINTER), "is a pointer of Git LFS"),
    "llama 3": (llama_3, "the tokenizer"),
    "shard": (
        lambda f: index(f, {"a": "model-00002-of-00002.safetensors"}),
        "lacks 1 of the 1 files that .* names: model-",
    ),
    "index list": (lambda f: index(f, ["a"]), 'has no "weight_map" from names to files'),
    "index path": (lambda f: index(f, {"a": "../x.safetensors"}), 'has no "weight_map" from names to files'),
    "directory": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "pytorch_model.bin").mkdir()),
        "has no weights",
    ),
    "no dictionary": (
        lambda f: ((f / "model.safetensors").unlink(), torch.save([1], f / "pytorch_model.bin")),
        "has no tensors by name",
    ),
    "projector folder": (projector_only, r"projector( only)? .*\bbase"),
    "not a number": (lambda f: weights(f, nan), r"layers\.1\.mlp\.up_proj\.weight of .* infinite or no numbers"),
}


@pytest.mark.parametrize("case", CASES)
def test_loading_and_training_refuse_in_one_line(case, folder, tmp_path):
    damage, message = CASES[case]
    damage(folder)
    with pytest.raises(ValueError, match=message) as error:
        load_pretrained_model(str(folder), None, "llava", device="cpu")
    assert "\n" not in str(error.value)
    (tmp_path / "data.json").write_text(json.dumps([{"conversations": [{"from": "human", "value": "a"}] * 2}]))
    flags = {"model_name_or_path": folder, "data_path": tmp_path / "data.json", "version": "v1"}
    flags |= {"output_dir": tmp_path / "out", "report_to": "none", "mm_use_im_patch_token": False}
    flags |= {"mm_vision_select_layer": -9 if case == "layer" else -2}
    argv = [str(text) for name, value in flags.items() for text in (f"--{name}", value)]
    with pytest.raises(ValueError, match=message) as error:
        prepare(argv=argv)
    assert "\n" not in str(error.value)


def test_architectures_may_be_absent(folder):
    config(folder, architectures=..., model_type="llava")
    assert load_pretrained_model(str(folder), None, "x", device="cpu")[1].config.num_hidden_layers == 2


def test_a_stale_index_beside_whole_weights_is_not_read(folder, caplog):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    load_pretrained_model(str(folder), None, "x", device="cpu")
    assert "remove the outdated one" in caplog.text
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"or remove model\.safetensors\.index\.json if pytorch_model\.bin is whole"):
        load_pretrained_model(str(folder), None, "x", device="cpu")
