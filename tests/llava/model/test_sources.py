"""Checkpoints that stand on a base: LoRA adapters, projectors, deltas; and weights that are quantised while loading."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.model.builder import load_pretrained_model, save_llava_checkpoint

IDS = torch.tensor([[1, 20, -200, 8, 9]])
PIXELS = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA = 4, 8


def load(folder, base=None, name="any-name", **kwargs):
    return load_pretrained_model(str(folder), base and str(base), name, device="cpu", **kwargs)


def logits(model):
    with torch.no_grad():
        return model(IDS, images=PIXELS).logits


def edit(file, **fields):
    merged = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in merged.items() if value is not None}))


def write_lora(folder, model, base, binary=True):
    """A LoRA folder as LLaVA's trainer writes it, and the weights that it means, computed here."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(3)
    adapter, merged = {}, {name: value.clone() for name, value in model.state_dict().items()}
    for name, value in model.state_dict().items():
        if name.startswith("model.layers.") and name.split(".")[-2] in NAMES:
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            down = torch.randn(RANK, value.shape[1], generator=draw)
            up = torch.randn(len(value), RANK, generator=draw) * 0.1
            adapter[f"{stem}.lora_A.weight"], adapter[f"{stem}.lora_B.weight"] = down, up
            merged[name] += up @ down * (ALPHA / RANK)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.05,
        "bias": "none",
        "target_modules": NAMES,
        "base_model_name_or_path": str(base),
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    if binary:
        torch.save(adapter, folder / "adapter_model.bin")
    else:
        save_file(adapter, folder / "adapter_model.safetensors")
    others = {f"base_model.model.{name}": value for name, value in merged.items() if "mm_projector" in name}
    torch.save(others, folder / "non_lora_trainables.bin")
    model.config.architectures = ["LlavaLlamaForCausalLM"]
    model.config.save_pretrained(folder)
    edit(folder / "config.json", model_type="llava")
    return merged


@pytest.fixture
def plain(make_tiny_llava):
    """A LLaVA whose tower is not in its checkpoints."""
    return make_tiny_llava(unfreeze=False)


@pytest.mark.parametrize("binary", [True, False])
def test_lora_on_a_language_model(plain, llama_folder, tmp_path, binary):
    merged = write_lora(tmp_path / "lora", plain, llama_folder, binary)
    loaded = load(tmp_path / "lora", llama_folder)[1]
    assert type(loaded).__name__ == "LlavaLlamaForCausalLM"
    assert not any("lora" in name for name in loaded.state_dict())
    plain.load_state_dict(merged)
    torch.testing.assert_close(logits(loaded), logits(plain), atol=1e-5, rtol=1e-5)


def test_lora_finds_its_base(plain, llama_folder, tmp_path, caplog):
    merged = write_lora(tmp_path / "lora", plain, llama_folder)
    with caplog.at_level(logging.WARNING):
        loaded = load(tmp_path / "lora")[1]
    assert "which its config names" in caplog.text
    plain.load_state_dict(merged)
    torch.testing.assert_close(logits(loaded), logits(plain), atol=1e-5, rtol=1e-5)


def test_lora_on_a_llava_with_its_own_tower(tiny_llava, llava_folder, tmp_path):
    """The tower's projections bear the targets' names, and must stay as they are."""
    merged = write_lora(tmp_path / "lora", tiny_llava, llava_folder)
    edit(tmp_path / "lora" / "config.json", unfreeze_mm_vision_tower=True)
    loaded = load(tmp_path / "lora", llava_folder)[1]
    tiny_llava.load_state_dict(merged)
    torch.testing.assert_close(logits(loaded), logits(tiny_llava), atol=1e-5, rtol=1e-5)


def test_half_way_checkpoint_of_llava(tiny_llava, llava_folder, tmp_path):
    """LLaVA's checkpoints in mid-training have no config and no other weights; a LLaVA as base has both."""
    merged = write_lora(tmp_path / "lora", tiny_llava, llava_folder)
    (tmp_path / "lora" / "config.json").unlink()
    (tmp_path / "lora" / "non_lora_trainables.bin").unlink()
    loaded = load(tmp_path / "lora", llava_folder)[1]
    tiny_llava.load_state_dict(merged)
    torch.testing.assert_close(logits(loaded), logits(tiny_llava), atol=1e-5, rtol=1e-5)


def test_merged_and_saved(plain, llama_folder, tmp_path):
    write_lora(tmp_path / "lora", plain, llama_folder)
    tokenizer, loaded, image_processor, _ = load(tmp_path / "lora", llama_folder)
    save_llava_checkpoint(loaded, tokenizer, tmp_path / "merged", image_processor)
    assert torch.equal(logits(load(tmp_path / "merged")[1]), logits(loaded))


def test_lora_on_a_plain_language_model(plain, llama_folder, tmp_path):
    merged = write_lora(tmp_path / "lora", plain, llama_folder)
    for name in ("config.json", "non_lora_trainables.bin"):
        (tmp_path / "lora" / name).unlink()
    _, loaded, image_processor, _ = load(tmp_path / "lora", llama_folder)
    assert image_processor is None
    assert all(torch.allclose(value, merged[name], atol=1e-5) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_lora_stays_beside_the_weights(plain, llama_folder, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    merged = write_lora(tmp_path / "lora", plain, llama_folder)
    loaded = load(tmp_path / "lora", llama_folder, **{f"load_{bits}bit": True})[1]
    assert any("lora_A" in name for name in loaded.state_dict())
    plain.load_state_dict(merged)
    exact, rough = logits(plain), logits(loaded).float()
    assert torch.cosine_similarity(exact.flatten(), rough.flatten(), dim=0) > 0.97


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised(tiny_llava, llava_folder, bits):
    pytest.importorskip("bitsandbytes")
    model = load(llava_folder, **{f"load_{bits}bit": True})[1]
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    assert kinds["model.layers.0.self_attn.q_proj"] == {4: "Linear4bit", 8: "Linear8bitLt"}[bits]
    assert kinds["model.mm_projector.0"] == kinds["lm_head"] == "Linear"
    assert {kind for name, kind in kinds.items() if "vision_tower" in name and name.endswith("q_proj")} == {"Linear"}
    exact, rough = logits(tiny_llava), logits(model).float()
    assert torch.cosine_similarity(exact.flatten(), rough.flatten(), dim=0) > 0.97
    assert model.generate(IDS, images=PIXELS, max_new_tokens=3, do_sample=False).shape == (1, 3)


def write_projector(folder, model, **config):
    model.config.architectures = ["LlavaLlamaForCausalLM"]
    for name, value in config.items():
        setattr(model.config, name, value)
    model.config.save_pretrained(folder)
    wanted = ("mm_projector", "image_newline")
    weights = {name: value for name, value in model.state_dict().items() if any(part in name for part in wanted)}
    torch.save(weights, folder / "mm_projector.bin")


def test_projector_with_new_rows(make_tiny_llava, llama_folder, tmp_path):
    """Trained with image marks: their rows of the embeddings come with the projector."""
    model = make_tiny_llava(unfreeze=False, mm_use_im_start_end=True)
    write_projector(tmp_path, model)
    rows = torch.randn(2, 64)
    weights = torch.load(tmp_path / "mm_projector.bin", weights_only=True)
    torch.save(weights | {"model.embed_tokens.weight": rows}, tmp_path / "mm_projector.bin")
    tokenizer, loaded, _, _ = load(tmp_path, llama_folder)
    assert tokenizer.convert_tokens_to_ids("<im_start>") == 520
    assert torch.equal(loaded.get_input_embeddings().weight[520:], rows)


def test_projector_with_row_ends(make_tiny_llava, llama_folder, tmp_path):
    grids = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[56, 112], [112, 112]]}
    model = make_tiny_llava(unfreeze=False, merge="spatial_unpad")
    write_projector(tmp_path, model, **grids)
    loaded = load(tmp_path, llama_folder)[1]
    assert torch.equal(loaded.get_model().image_newline, model.get_model().image_newline)


def write_delta(folder, model, base_folder):
    weights = {name: value.clone() for name, value in model.state_dict().items() if "vision_tower" not in name}
    for name, value in load_file(base_folder / "model.safetensors").items():
        weights[name][: len(value)] -= value
    model.config.architectures = ["LlavaLlamaForCausalLM"]
    model.config.save_pretrained(folder)
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(base_folder / name, folder / name)


@pytest.mark.parametrize("marked", [True, False])
def test_delta(plain, llama_folder, tmp_path, marked):
    folder = tmp_path / ("marked" if marked else "llava-7b-delta-v0")
    with torch.no_grad():
        plain.get_model().layers[0].self_attn.q_proj.weight.add_(torch.randn(64, 64))
    write_delta(folder, plain, llama_folder)
    if marked:
        edit(folder / "config.json", delta_of="vicuna")
    loaded = load(folder, llama_folder)[1]
    torch.testing.assert_close(logits(loaded), logits(plain), atol=1e-5, rtol=1e-5)
    assert not hasattr(loaded.config, "delta_of")


def test_a_marked_delta_needs_its_base(plain, llama_folder, tmp_path):
    write_delta(tmp_path, plain, llama_folder)
    edit(tmp_path / "config.json", delta_of="vicuna")
    with pytest.raises(ValueError, match="a difference from a base; give model_base"):
        load(tmp_path)


def test_a_name_that_says_something_else_is_a_warning(llava_folder, caplog):
    with caplog.at_level(logging.WARNING):
        load(llava_folder, name="llava-lora")
    assert "the name of" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load(llava_folder, name="llava-v1.5-7b-delta-v0")
    assert "contains delta" in caplog.text


def other_base(llama_folder, folder, **config):
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(llama_folder, folder)
    settings = LlamaConfig.from_pretrained(llama_folder)
    for name, value in config.items():
        setattr(settings, name, value)
    LlamaForCausalLM(settings).save_pretrained(folder)
    return folder


def cut(file):
    file.write_bytes(file.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda lora: (lora / "adapter_model.bin").unlink(),
            r"has no adapter_model\.safetensors or adapter_model\.bin",
        ),
        (lambda lora: cut(lora / "adapter_model.bin"), r"adapter_model\.bin is damaged"),
        (lambda lora: cut(lora / "non_lora_trainables.bin"), r"non_lora_trainables\.bin is damaged"),
        (lambda lora: (lora / "non_lora_trainables.bin").unlink(), r"lacks 4 weights .*non_lora_trainables\.bin has"),
        (lambda lora: (lora / "adapter_config.json").write_text("{"), r"adapter_config\.json is not readable JSON"),
        (lambda lora: edit(lora / "config.json", hidden_size=128), "trained on a model with hidden_size 128, but"),
        (lambda lora: edit(lora / "adapter_config.json", r=8), "the adapter in .* cannot be put on this model"),
        (lambda lora: torch.save({"base_model.model.x": torch.zeros(1)}, lora / "non_lora_trainables.bin"), "lacks 4"),
    ],
)
def test_a_broken_lora_says_so_in_one_line(plain, llama_folder, tmp_path, damage, message):
    write_lora(tmp_path / "lora", plain, llama_folder)
    damage(tmp_path / "lora")
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path / "lora", llama_folder)
    assert "\n" not in str(error.value)


def test_wrong_base(plain, llama_folder, tmp_path, caplog):
    write_lora(tmp_path / "lora", plain, llama_folder)
    deeper = other_base(llama_folder, tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"num_hidden_layers 2, but the base .*deeper has 3"):
        load(tmp_path / "lora", deeper)
    twin = shutil.copytree(llama_folder, tmp_path / "twin")
    with caplog.at_level(logging.WARNING):
        load(tmp_path / "lora", twin)
    assert "make sure that they are the same" in caplog.text


def test_a_base_that_does_not_exist(plain, tmp_path):
    write_lora(tmp_path / "lora", plain, "/no/such/base")
    with pytest.raises(ValueError, match="/no/such/base is not a folder"):
        load(tmp_path / "lora")


def test_wrong_base_of_a_delta(plain, llama_folder, tmp_path):
    write_delta(tmp_path / "delta", plain, llama_folder)
    bigger = other_base(llama_folder, tmp_path / "bigger", vocab_size=600)
    with pytest.raises(ValueError, match=r"is another base: its .* has shape \(600, 64\)"):
        load(tmp_path / "delta", bigger)


def test_a_delta_is_not_added_to_quantised_weights(plain, llama_folder, tmp_path):
    pytest.importorskip("bitsandbytes")
    write_delta(tmp_path / "delta", plain, llama_folder)
    with pytest.raises(ValueError, match="is a delta, which cannot be added in 4 or 8 bit"):
        load(tmp_path / "delta", llama_folder, load_4bit=True)


def test_a_truncated_language_model_says_so(llama_folder, tmp_path):
    folder = shutil.copytree(llama_folder, tmp_path / "cut")
    cut(folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged|cannot be loaded") as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_attention_code_holds_for_the_tower(llava_folder):
    model = load(llava_folder, attn_implementation="eager")[1]
    assert model.config._attn_implementation == "eager"
    assert model.get_vision_tower().vision_tower.config._attn_implementation == "eager"
