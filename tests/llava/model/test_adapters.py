"""Adapters made with PEFT, whatever their targets and names: every tensor is used, and the logits are PEFT's own."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.model.builder import load_pretrained_model, save_llava_checkpoint

peft = pytest.importorskip("peft")
IDS = torch.tensor([[1, 20, -200, 8, 9]])
PIXELS = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def load(folder, base=None, **kwargs):
    return load_pretrained_model(str(folder), base and str(base), "any-name", device="cpu", **kwargs)[1]


def logits(model):
    with torch.no_grad():
        return model(IDS, images=PIXELS).logits


def write_adapter(model, folder, **config):
    """A PEFT adapter with random weights on a model; returns the merged model."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 8, **config}))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in wrapped.parameters():
            if value.requires_grad:
                value.add_(torch.randn(value.shape, generator=draw) * 0.1)
    wrapped.save_pretrained(folder)
    return wrapped.merge_and_unload()


TARGETS = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "output layer": {"target_modules": ["q_proj", "lm_head"]},
    "embeddings": {"target_modules": ["embed_tokens", "k_proj"]},
    "projector": {"target_modules": ["mm_projector.0", "mm_projector.2"]},
    "full names": {"target_modules": ["model.layers.1.self_attn.q_proj", "model.layers.0.mlp.up_proj"]},
    "expression": {"target_modules": r".*layers\.1\..*_proj"},
    "some layers": {"target_modules": ["o_proj"], "layers_to_transform": [1]},
    "other ranks": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"v_proj": 3},
    },
    "whole parts": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "mm_projector"]},
    "magnitudes": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "tower": {"target_modules": ["vision_tower.encoder.layers.0.mlp.fc1", "gate_proj"]},
}


@pytest.mark.parametrize("targets", TARGETS)
def test_the_logits_are_those_of_peft(targets, llava_folder, tmp_path):
    expected = logits(write_adapter(load(llava_folder), tmp_path, **TARGETS[targets]))
    before = logits(load(llava_folder))
    assert not torch.equal(expected, before)
    assert torch.equal(logits(load(tmp_path, llava_folder)), expected)


def test_a_changed_tower_is_saved_with_the_merged_model(make_tiny_llava, llama_folder, tmp_path):
    from llava.model.builder import load_tokenizer

    tokenizer = load_tokenizer(str(llama_folder))
    save_llava_checkpoint(make_tiny_llava(unfreeze=False), tokenizer, tmp_path / "base")
    targets = TARGETS["tower"] | {"target_modules": ["vision_tower.encoder.layers.0.mlp.fc1"]}
    expected = logits(write_adapter(load(tmp_path / "base"), tmp_path / "lora", **targets))
    merged = load(tmp_path / "lora", tmp_path / "base")
    assert torch.equal(logits(merged), expected)
    save_llava_checkpoint(merged, tokenizer, tmp_path / "merged")
    assert torch.equal(logits(load(tmp_path / "merged")), expected)


@pytest.mark.parametrize("hub_names", [True, False])
def test_an_adapter_made_on_transformers_class(llava_folder, tmp_path, hub_names):
    from transformers import LlavaForConditionalGeneration

    from llava.convert import convert

    convert(str(llava_folder), None, "hf", str(tmp_path / "hf"), "float32")
    native = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    targets = ["q_proj", "v_proj", "lm_head", "linear_1"]
    merged = write_adapter(native, tmp_path / "lora", target_modules=targets)
    if hub_names:  # as written by transformers 4
        tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
        renamed = {
            name.replace("model.model.language_model.", "model.language_model.model.")
            .replace("model.lm_head", "model.language_model.lm_head")
            .replace("model.model.multi", "model.multi")
            .replace("model.model.vision", "model.vision"): value
            for name, value in tensors.items()
        }
        assert set(renamed).isdisjoint(tensors)
        save_file(renamed, tmp_path / "lora" / "adapter_model.safetensors")
    merged.save_pretrained(tmp_path / "hf-merged")
    merged.config.save_pretrained(tmp_path / "hf-merged")
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf-merged", dtype=torch.float32).eval()
    ids = torch.tensor([[1, 20, *[theirs.config.image_token_id] * 16, 8, 9]])
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=PIXELS).logits
    found = logits(load(tmp_path / "lora", tmp_path / "hf"))
    torch.testing.assert_close(found, expected[..., : found.shape[-1]], atol=2e-5, rtol=0)


def edit(folder, change):
    tensors = change(load_file(folder / "adapter_model.safetensors"))
    save_file(tensors, folder / "adapter_model.safetensors")


def write_config(folder, **fields):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: edit(
                folder, lambda all: all | {"base_model.model.model.resampler.lora_A.weight": torch.ones(4, 64)}
            ),
            r"1 of 9 tensors of the adapter in .* do not belong to this LlavaLlamaForCausalLM: .*resampler",
        ),
        (
            lambda folder: edit(folder, lambda all: {k: v for k, v in all.items() if "layers.1" not in k}),
            r"lacks 2 layers that its config names: model\.layers\.1\.self_attn\.q_proj",
        ),
        (
            lambda folder: edit(
                folder, lambda all: {k: v for k, v in all.items() if "layers.1.self_attn.q_proj.lora_B" not in k}
            ),
            r"has no weights for these of its layers: .*layers\.1\.self_attn\.q_proj\.lora_B",
        ),
        (
            lambda folder: edit(folder, lambda all: {k.removeprefix("base_model.model."): v for k, v in all.items()}),
            "8 of 8 tensors of the adapter in .* do not belong to this",
        ),
        (lambda folder: write_config(folder, peft_type="IA3"), "peft_type IA3; this loader reads LORA"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "holds a JSON list, not an object"),
        (
            lambda folder: (folder / "adapter_model.safetensors").write_text(
                "version https://git-lfs.github.com/spec/v1\n"
            ),
            "is a pointer of Git LFS",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(llava_folder, tmp_path, damage, message):
    write_adapter(load(llava_folder), tmp_path, target_modules=["q_proj", "v_proj"])
    edit(tmp_path, lambda all: {name: value for name, value in all.items() if "vision_tower" not in name})
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path, llava_folder)
    assert "\n" not in str(error.value)


def test_merging_says_when_nothing_changes(llava_folder, tmp_path, caplog):
    from scripts import merge_lora_weights

    model = load(llava_folder)
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    assert torch.equal(logits(load(tmp_path / "lora", llava_folder)), logits(load(llava_folder)))
    assert "changes no weight" in caplog.text
    flags = ["--model-path", str(tmp_path / "lora"), "--model-base", str(llava_folder)]
    with pytest.raises(SystemExit, match="would change no weight"):
        merge_lora_weights.main([*flags, "--save-model-path", str(tmp_path / "merged")])


def test_a_folder_without_config_works_in_every_program(llava_folder, tmp_path, capsys):
    """The base's config serves: for answering, merging and converting."""
    from PIL import Image

    from llava.convert import main as convert
    from llava.eval import run_llava
    from llava.serve import cli
    from scripts import merge_lora_weights

    expected = logits(write_adapter(load(llava_folder), tmp_path / "lora", target_modules=["q_proj", "lm_head"]))
    model = ["--model-path", str(tmp_path / "lora"), "--model-base", str(llava_folder)]
    merge_lora_weights.main([*model, "--save-model-path", str(tmp_path / "merged")])
    assert torch.equal(logits(load(tmp_path / "merged")), expected)
    convert(["--to", "llava", *model, "--output", str(tmp_path / "converted")])
    assert torch.equal(logits(load(tmp_path / "converted")), expected)
    Image.new("RGB", (60, 50), "red").save(tmp_path / "red.png")
    asked = ["--query", "how many cats?", "--temperature", "0", "--max_new_tokens", "3", "--device", "cpu"]
    run_llava.main([*model, "--image-file", str(tmp_path / "red.png"), *asked])
    capsys.readouterr()
    run_llava.main(["--model-path", str(tmp_path / "merged"), "--image-file", str(tmp_path / "red.png"), *asked])
    flags = cli.build_parser().parse_args([*model, "--image-file", str(tmp_path / "red.png"), "--device", "cpu"])
    assert cli.load_engine(flags).checkpoint.mode
