"""Checkpoints in every layout: what is saved comes back with equal logits, and what is broken says so in one line."""

import contextlib
import json
import os
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.conversation import conversation_mode
from llava.model.builder import load_pretrained_model, load_tokenizer, save_llava_checkpoint
from llava.model.checkpoint import finish_save

IDS = torch.tensor([[1, 20, -200, 8, 9]])
PIXELS = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
LEGACY_TOWER = "model.vision_tower.vision_tower.vision_model."


def load(folder, base=None, **kwargs):
    return load_pretrained_model(str(folder), base and str(base), "any-name", device="cpu", **kwargs)


def logits(model):
    with torch.no_grad():
        return model(IDS, images=PIXELS).logits


def edit_config(folder, **fields):
    file = folder / "config.json"
    merged = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in merged.items() if value is not None}))


@pytest.fixture
def inside(llava_folder, tmp_path):
    """A copy of the checkpoint with the tower inside."""
    return shutil.copytree(llava_folder, tmp_path / "inside")


def test_tower_in_the_checkpoint(make_tiny_llava, inside, clip_folder):
    tokenizer, model, image_processor, context_length = load(inside)
    assert torch.equal(logits(model), logits(make_tiny_llava()))
    assert tokenizer("hello").input_ids[0] == 1
    assert image_processor.crop_size["height"] == 56
    assert context_length == 2048
    assert not model.training
    assert model.config.mm_vision_tower == "vision_tower"

    names = {file.relative_to(inside).as_posix() for file in inside.rglob("*") if file.is_file()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.model", "preprocessor_config.json"}
    assert names >= {"vision_tower/config.json", "vision_tower/preprocessor_config.json"}
    stored = load_file(inside / "model.safetensors")
    assert sum(name.startswith(LEGACY_TOWER) for name in stored) == sum("vision_tower" in name for name in stored) == 39


def test_a_trained_tower_wins_over_its_source(make_tiny_llava, llama_folder, tmp_path):
    model = make_tiny_llava()
    with torch.no_grad():
        model.get_vision_tower().vision_tower.embeddings.position_embedding.weight.add_(0.5)
    save_llava_checkpoint(model, load_tokenizer(str(llama_folder)), tmp_path)
    again = load(tmp_path)[1]
    assert torch.equal(logits(again), logits(model))
    assert not torch.equal(logits(again), logits(make_tiny_llava()))


def test_external_tower(make_tiny_llava, llama_folder, tmp_path):
    model = make_tiny_llava(unfreeze=False)
    save_llava_checkpoint(model, load_tokenizer(str(llama_folder)), tmp_path)
    assert not any("vision_tower" in name for name in load_file(tmp_path / "model.safetensors"))
    again = load(tmp_path)[1]
    assert torch.equal(logits(again), logits(model))
    assert not any(parameter.requires_grad for parameter in again.get_vision_tower().parameters())


def test_a_frozen_tower_in_the_checkpoint_is_not_read(make_tiny_llava, inside, clip_folder):
    weights = load_file(inside / "model.safetensors")
    spoilt = {name: value + 1 if "vision_tower" in name else value for name, value in weights.items()}
    save_file(spoilt, inside / "model.safetensors", metadata={"format": "pt"})
    edit_config(inside, unfreeze_mm_vision_tower=False, mm_vision_tower=str(clip_folder))
    assert torch.equal(logits(load(inside)[1]), logits(make_tiny_llava()))


def test_a_promised_tower_that_is_absent_comes_from_its_source(make_tiny_llava, inside, clip_folder):
    weights = load_file(inside / "model.safetensors")
    rest = {name: value for name, value in weights.items() if "vision_tower" not in name}
    save_file(rest, inside / "model.safetensors", metadata={"format": "pt"})
    edit_config(inside, mm_vision_tower=str(clip_folder))
    assert torch.equal(logits(load(inside)[1]), logits(make_tiny_llava()))


@pytest.mark.parametrize("layout", ["sharded", "bin", "sharded bin", "flat tower names", "published config"])
def test_other_layouts_of_the_same_weights(tiny_llava, inside, layout):
    weights = load_file(inside / "model.safetensors")
    if layout == "flat tower names":
        renamed = {name.replace("vision_model.", ""): value for name, value in weights.items()}
        save_file(renamed, inside / "model.safetensors", metadata={"format": "pt"})
    elif layout == "sharded":
        (inside / "model.safetensors").unlink()
        tiny_llava.save_pretrained(inside, max_shard_size="200KB")
        edit_config(inside, mm_vision_tower="vision_tower")
        assert len(list(inside.glob("model-*.safetensors"))) > 1
    elif layout == "published config":
        # As in llava-v1.5: transformers' own model type, rope fields of before 5, rotary buffers among the weights.
        edit_config(inside, model_type="llava", rope_parameters=None, rope_scaling=None, dtype=None, pretraining_tp=1)
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
        save_file(weights, inside / "model.safetensors", metadata={"format": "pt"})
    else:
        (inside / "model.safetensors").unlink()
        names = sorted(weights)
        parts = [names] if layout == "bin" else [names[::2], names[1::2]]
        files = [f"pytorch_model-{i + 1:05}-of-{len(parts):05}.bin" for i in range(len(parts))]
        files = ["pytorch_model.bin"] if layout == "bin" else files
        for file, part in zip(files, parts, strict=True):
            torch.save({name: weights[name] for name in part}, inside / file)
        if layout == "sharded bin":
            index = {name: file for file, part in zip(files, parts, strict=True) for name in part}
            (inside / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert torch.equal(logits(load(inside)[1]), logits(tiny_llava))


def test_projector_on_a_base(make_tiny_llava, llama_folder, clip_folder, tmp_path):
    model = make_tiny_llava(unfreeze=False)
    model.config.architectures = ["LlavaLlamaForCausalLM"]
    model.config.save_pretrained(tmp_path)
    projector = {name: value for name, value in model.state_dict().items() if "mm_projector" in name}
    torch.save(projector, tmp_path / "mm_projector.bin")
    assert torch.equal(logits(load(tmp_path, base=llama_folder)[1]), logits(model))
    (tmp_path / "mm_projector.bin").unlink()
    with pytest.raises(ValueError, match=r"holds no mm_projector\.bin"):
        load(tmp_path, base=llama_folder)


def test_half_precision_storage_and_legacy_fields(make_tiny_llava, llama_folder, tmp_path):
    model = make_tiny_llava(rope_parameters={"rope_type": "default", "rope_theta": 1e6}, conv_version="v1")
    save_llava_checkpoint(model, load_tokenizer(str(llama_folder)), tmp_path, dtype=torch.float16)
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    fields = json.loads((tmp_path / "config.json").read_text())
    assert (fields["rope_theta"], fields["torch_dtype"], fields["dtype"]) == (1e6, "float16", "float16")
    assert model.dtype == torch.float32
    again = load(tmp_path)[1]
    assert again.dtype == again.get_vision_tower().dtype == torch.float32
    assert again.config.rope_parameters["rope_theta"] == 1e6
    torch.testing.assert_close(logits(again), logits(model), atol=0.05, rtol=0)
    assert conversation_mode("any", again.config.conv_version) == "v1"
    # A reader of the 4.x kind leaves only rope_theta; it must mean the same.
    edit_config(tmp_path, rope_parameters=None)
    assert torch.equal(logits(load(tmp_path)[1]), logits(again))


def test_dtype_is_taken(inside):
    model = load(inside, dtype=torch.bfloat16)[1]
    assert model.dtype == model.get_vision_tower().dtype == torch.bfloat16
    assert logits(model).dtype == torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_the_default_device_falls_back(inside):
    _, model, _, _ = load_pretrained_model(str(inside), None, "llava")
    assert model.dtype == torch.float32
    assert model.device.type in ("cpu", "mps")


def test_saving_twice_leaves_no_old_shards(tiny_llava, llama_folder, tmp_path):
    tiny_llava.save_pretrained(tmp_path, max_shard_size="200KB")
    (tmp_path / "optimizer.pt").write_text("kept")
    save_llava_checkpoint(tiny_llava, load_tokenizer(str(llama_folder)), tmp_path)
    assert [file.name for file in tmp_path.glob("model*")] == ["model.safetensors"]
    assert (tmp_path / "optimizer.pt").exists()
    assert not (tmp_path / ".partial").exists()
    assert torch.equal(logits(load(tmp_path)[1]), logits(tiny_llava))


def test_an_interrupted_save_leaves_the_old_checkpoint(tiny_llava, inside, monkeypatch):
    before = logits(load(inside)[1])
    with torch.no_grad():
        tiny_llava.lm_head.weight.add_(1)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("llava.model.checkpoint.save_llama_tokenizer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_llava_checkpoint(tiny_llava, object(), inside)
    assert torch.equal(logits(load(inside)[1]), before)


@pytest.mark.parametrize("moves", range(9))
def test_a_save_killed_while_files_move_is_whole(tiny_llava, inside, llama_folder, monkeypatch, moves):
    """Whatever the moment, a reader finds all of the old checkpoint or none, and the next writer the new one."""
    before = logits(load(inside)[1])
    tiny_llava.config.architectures = ["LlavaLlamaForCausalLM"]
    tiny_llava.save_pretrained(inside, max_shard_size="200KB")  # several old shards, one new file
    edit_config(inside, mm_vision_tower="vision_tower")
    with torch.no_grad():
        tiny_llava.lm_head.weight.add_(1)
    done, real = [], os.replace

    def replace(source, target):
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(target)
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("llava.model.checkpoint.os.replace", replace)
        with contextlib.suppress(KeyboardInterrupt):
            save_llava_checkpoint(tiny_llava, load_tokenizer(str(llama_folder)), inside)
    if (inside / ".complete").exists():
        there = sorted(inside.rglob("*"))
        with pytest.raises(ValueError, match="a save that was interrupted at its last step"):
            load(inside)
        assert sorted(inside.rglob("*")) == there, "reading must not write"
        finish_save(inside)
    after = logits(load(inside)[1])
    assert torch.equal(after, before if moves == 0 else logits(tiny_llava))
    assert not (inside / ".complete").exists()


def test_plain_language_model_has_no_image_processor(llama_folder):
    tokenizer, model, image_processor, _ = load(llama_folder)
    assert image_processor is None
    assert type(model).__name__ == "LlamaForCausalLM"
    assert tokenizer("hello").input_ids


def break_projector(folder):
    weights = load_file(folder / "model.safetensors")
    rest = {name: value for name, value in weights.items() if "mm_projector" not in name}
    save_file(rest, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(folder, file="model.safetensors", sharded=False):
    weights = load_file(folder / "model.safetensors")
    if file.endswith(".bin"):
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / file)
    if sharded:
        renamed = (folder / file).rename(folder / f"{(folder / file).stem}-00001-of-00001{(folder / file).suffix}")
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, renamed.name)}
        (folder / f"{file}.index.json").write_text(json.dumps(index))
        file = renamed.name
    (folder / file).write_bytes((folder / file).read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not readable JSON"),
        (lambda folder: (folder / "tokenizer.model").unlink(), "has no tokenizer"),
        (lambda folder: edit_config(folder, architectures=["LlavaMptForCausalLM"]), "is a LlavaMptForCausalLM"),
        (lambda folder: edit_config(folder, text_config={}, model_type="vipllava"), "reads llava and llava_next"),
        (
            lambda folder: edit_config(folder, unfreeze_mm_vision_tower=False, mm_vision_tower="/no/such/tower"),
            "Unknown vision tower: /no/such/tower",
        ),
        (break_projector, r"lacks 4 weights .* such as model\.mm_projector\.0\.bias"),
        (truncate, r"model\.safetensors is damaged"),
        (partial(truncate, sharded=True), "the weights in .* cannot be loaded"),
        (partial(truncate, file="pytorch_model.bin"), r"pytorch_model\.bin is damaged"),
        (partial(truncate, file="pytorch_model.bin", sharded=True), "the weights in .* cannot be loaded"),
    ],
)
def test_what_is_missing_is_said_in_one_line(inside, damage, message):
    damage(inside)
    with pytest.raises(ValueError, match=message) as error:
        load(inside)
    assert "\n" not in str(error.value)


def test_a_good_checkpoint_loads_without_a_word(inside, capfd, caplog):
    load(inside)
    assert not caplog.records
    said = [line for line in capfd.readouterr().err.splitlines() if line.strip() and "Loading weights" not in line]
    assert said == []


def test_no_such_model():
    with pytest.raises(ValueError, match="is not a folder"):
        load("/no/such/model")
