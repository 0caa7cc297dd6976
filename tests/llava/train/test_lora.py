"""LoRA and QLoRA: what is adapted, what every save holds, resuming, merging, and flags that cannot hold together."""

import json
import shutil

import pytest
import torch
from runs import Killed, kill_at, losses, weights
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from llava.model.builder import load_pretrained_model
from llava.train.llava_trainer import LLaVATrainer
from llava.train.saving import get_peft_state_maybe_zero_3, get_peft_state_non_lora_maybe_zero_3
from llava.train.train import find_all_linear_names, main, prepare, run, train

LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
pytest.importorskip("peft")


@pytest.fixture(scope="module")
def lora_flags(flags, data_folder):
    def make(output, *more: object) -> list[str]:
        shared = ("--version", "v1", "--data_path", data_folder / "dialogues.json", "--lora_enable", True)
        shared += ("--lora_r", 4, "--lora_alpha", 8, "--mm_projector_lr", 2e-3)
        return flags(output, *shared, *more)

    return make


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, lora_flags):
    output = tmp_path_factory.mktemp("lora")
    return output, train(argv=lora_flags(output))


def trainable(model) -> dict[str, nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def layer_names(model) -> set[str]:
    return {name.partition(".lora_")[0] for name in trainable(model) if ".lora_" in name}


def inputs(trainer) -> dict:
    return trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[1], trainer.train_dataset[3]]))


def test_only_the_language_model_is_adapted(adapted, llama_folder, clip_folder):
    _, trainer = adapted
    prefix = "base_model.model.model.layers."
    parts = {f"self_attn.{name}" if name[0] in "qkvo" else f"mlp.{name}" for name in LINEAR}
    assert layer_names(trainer.model) == {f"{prefix}{layer}.{part}" for layer in range(2) for part in parts}
    others = {name for name in trainable(trainer.model) if ".lora_" not in name}
    assert {name.partition("mm_projector")[0] for name in others} == {"base_model.model.model."}
    assert losses(trainer)[-1] < losses(trainer)[0]
    after = {name.replace(".base_layer", ""): value for name, value in weights(trainer).items()}
    for folder, inner in ((llama_folder, ""), (clip_folder, "model.vision_tower.vision_tower.")):
        for name, value in load_file(folder / "model.safetensors").items():
            assert torch.equal(value, after[f"base_model.model.{inner}{name.removeprefix('vision_model.')}"])


def test_a_base_with_a_tower_of_its_own_keeps_it_without_lora(lora_flags, llava_folder, tmp_path):
    more = ("--model_name_or_path", llava_folder, "--max_steps", 1)
    trainer = train(argv=lora_flags(tmp_path, *more))
    assert layer_names(trainer.model)
    assert not [name for name in trainer.model.state_dict() if "lora" in name and "layers" not in name]
    assert not [name for name in trainer.model.state_dict() if "lora" in name and "vision_tower" in name]
    _, model, _, _ = load_pretrained_model(str(tmp_path), str(llava_folder), "x", device="cpu")
    tower = trainer.model.get_vision_tower().state_dict()
    assert all(torch.equal(value, model.get_vision_tower().state_dict()[name]) for name, value in tower.items())


def test_learning_rates(adapted):
    _, trainer = adapted
    groups = trainer.parameter_groups(trainer.model)
    names = {id(value): name for name, value in trainer.model.named_parameters()}
    rates = {names[id(value)]: group["lr"] for group in groups for value in group["params"]}
    assert set(rates) == set(trainable(trainer.model))
    assert all(rate == (2e-3 if "mm_projector" in name else 3e-3) for name, rate in rates.items())


@pytest.mark.parametrize("place", ["", "checkpoint-3", "checkpoint-6"])
def test_every_save_is_complete(adapted, place, llama_folder):
    output, trainer = adapted
    folder = output / place
    adapter = load_file(folder / "adapter_model.safetensors")
    assert len(adapter) == 2 * len(LINEAR) * 2
    assert adapter["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].shape == (4, 64)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == LINEAR
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8, "LORA")
    assert config["base_model_name_or_path"] == str(llama_folder)
    # The fields of peft 0.10, which refuses all others, here with values.
    assert {name for name, value in config.items() if value} == {
        *("base_model_name_or_path", "bias", "inference_mode", "init_lora_weights", "lora_alpha", "lora_dropout"),
        *("megatron_core", "peft_type", "r", "target_modules", "task_type"),
    }
    assert not {"peft_version", "qalora_group_size", "lora_bias", "exclude_modules"} & set(config)
    others = torch.load(folder / "non_lora_trainables.bin", weights_only=True)
    assert set(others) == {
        f"base_model.model.model.mm_projector.{i}.{kind}" for i in "02" for kind in ("weight", "bias")
    }
    fields = json.loads((folder / "config.json").read_text())
    assert fields["architectures"] == ["LlavaLlamaForCausalLM"]
    assert (fields["mm_projector_type"], fields["conv_version"], fields["use_cache"]) == ("mlp2x_gelu", "v1", True)
    if place:
        assert (folder / "trainer_state.json").is_file()
        assert (folder / "optimizer.pt").is_file()
    if place != "checkpoint-3":
        after = weights(trainer)
        assert all(torch.equal(value, after[name]) for name, value in others.items())
        assert all(
            torch.equal(value, after[name.replace(".weight", ".default.weight")]) for name, value in adapter.items()
        )


def test_loaded_and_merged_it_answers_as_in_training(adapted, llama_folder):
    output, trainer = adapted
    batch = inputs(trainer)
    with torch.no_grad():
        wanted = trainer.model.eval()(**batch).logits
        _, merged, _, _ = load_pretrained_model(str(output), str(llama_folder), "llava-lora", device="cpu")
        assert torch.allclose(merged(**batch).logits, wanted, atol=1e-5)
        _, blank, _, _ = load_pretrained_model(str(output / "checkpoint-3"), str(llama_folder), "x", device="cpu")
        assert not torch.allclose(blank(**batch).logits, wanted, atol=1e-3)
    assert not hasattr(merged, "peft_config")


def test_killed_run_resumes_to_the_same_end(adapted, lora_flags, tmp_path):
    _, unbroken = adapted
    kill_at(4, lora_flags(tmp_path))
    resumed = train(argv=lora_flags(tmp_path))
    assert losses(resumed) == losses(unbroken)
    after = weights(resumed)
    assert all(torch.equal(value, after[name]) for name, value in weights(unbroken).items())


def test_a_checkpoint_cut_off_is_never_taken_for_whole(adapted, lora_flags, tmp_path, monkeypatch):
    _, unbroken = adapted

    def cut_off(self, output_dir):
        if self.state.global_step == 6:
            raise Killed
        return whole(self, output_dir)

    whole = LLaVATrainer._save_optimizer_and_scheduler
    with monkeypatch.context() as patch:
        patch.setattr(LLaVATrainer, "_save_optimizer_and_scheduler", cut_off)
        with pytest.raises(Killed):
            train(argv=lora_flags(tmp_path))
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    resumed = train(argv=lora_flags(tmp_path))
    assert losses(resumed) == losses(unbroken)
    assert not (tmp_path / ".unfinished").exists()


def test_starting_from_an_adapter(adapted, lora_flags, tmp_path):
    output, trainer = adapted
    more = ("--lora_weight_path", output, "--learning_rate", 0, "--mm_projector_lr", 0, "--max_steps", 1)
    started = train(argv=lora_flags(tmp_path, *more))
    after = weights(started)
    assert all(torch.equal(value, after[name]) for name, value in weights(trainer).items())


def test_gradient_checkpointing_changes_nothing(adapted, lora_flags, tmp_path):
    _, plain = adapted
    other = train(argv=lora_flags(tmp_path, "--gradient_checkpointing", True, "--freeze_mm_mlp_adapter", True))
    again = train(argv=lora_flags(tmp_path / "2", "--freeze_mm_mlp_adapter", True))
    assert losses(other) == pytest.approx(losses(again), rel=1e-4)
    assert losses(other)[0] == pytest.approx(losses(plain)[0], rel=1e-4)


def test_bf16_keeps_what_is_trained_in_float32(lora_flags, tmp_path, adapted):
    trainer = train(argv=lora_flags(tmp_path, "--bf16", True))
    assert {value.dtype for value in trainable(trainer.model).values()} == {torch.float32}
    frozen = {value.dtype for name, value in trainer.model.named_parameters() if "base_layer" in name}
    assert frozen == {torch.bfloat16}
    assert losses(trainer) == pytest.approx(losses(adapted[1]), rel=0.03)


def test_new_tokens_are_learned_and_saved(lora_flags, llama_folder, tmp_path):
    trainer = train(argv=lora_flags(tmp_path, "--mm_use_im_start_end", True))
    others = torch.load(tmp_path / "non_lora_trainables.bin", weights_only=True)
    assert others["base_model.model.model.embed_tokens.weight"].shape == (522, 64)
    batch = inputs(trainer)
    with torch.no_grad():
        wanted = trainer.model.eval()(**batch).logits
        _, merged, _, _ = load_pretrained_model(str(tmp_path), str(llama_folder), "x", device="cpu")
        assert torch.allclose(merged(**batch).logits, wanted, atol=1e-5)


def test_with_biases(lora_flags, llama_folder, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(llama_folder, base)
    config = LlamaConfig.from_pretrained(llama_folder, attention_bias=True)
    LlamaForCausalLM(config).save_pretrained(base)
    trainer = train(argv=lora_flags(tmp_path / "out", "--model_name_or_path", base, "--lora_bias", "all"))
    assert sum(name.endswith("base_layer.bias") for name in trainable(trainer.model)) == 2 * 4
    assert not [name for name in trainable(trainer.model) if "vision_tower" in name]
    batch = inputs(trainer)
    with torch.no_grad():
        wanted = trainer.model.eval()(**batch).logits
        _, merged, _, _ = load_pretrained_model(str(tmp_path / "out"), str(base), "x", device="cpu")
        assert torch.allclose(merged(**batch).logits, wanted, atol=1e-5)


def test_a_pruned_run_remembers_its_pruner(lora_flags, tmp_path):
    pruner = "flowcut:budget=5,last_layer=-2"
    prepared = prepare(argv=lora_flags(tmp_path, "--pruner", pruner, "--max_steps", 3))
    run(prepared)
    field = {"method": "flowcut", "budget": 5, "last_layer": -2}
    for folder in (tmp_path, tmp_path / "checkpoint-3"):
        assert json.loads((folder / "config.json").read_text())["flowcut"] == field


def test_biases():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_layer, self.lora_A, self.other = nn.Linear(2, 2), nn.Linear(2, 1, bias=False), nn.Linear(2, 2)

    model = nn.ModuleDict({"one": Layer()})
    named = list(model.named_parameters())
    weight = "one.lora_A.weight"
    assert set(get_peft_state_maybe_zero_3(named, "none")) == {weight}
    assert set(get_peft_state_maybe_zero_3(named, "lora_only")) == {weight, "one.base_layer.bias"}
    assert set(get_peft_state_maybe_zero_3(named, "all")) == {weight, "one.base_layer.bias", "one.other.bias"}
    with pytest.raises(ValueError, match="use none, all or lora_only"):
        get_peft_state_maybe_zero_3(named, "some")
    model["one"].other.requires_grad_(False)
    left = get_peft_state_non_lora_maybe_zero_3(named)
    assert set(left) == {"one.base_layer.bias", "one.base_layer.weight"}
    left["one.base_layer.bias"].zero_()
    assert model["one"].base_layer.bias.any()


def test_names_of_linear_layers(tiny_llava):
    assert set(find_all_linear_names(tiny_llava)) == LINEAR


def test_only_the_language_model_of_a_llava_is_quantised(lora_flags, llava_folder, tmp_path):
    pytest.importorskip("bitsandbytes")
    own = ("--model_name_or_path", llava_folder, "--vision_tower", "vision_tower", "--bits", 4)
    model = prepare(argv=lora_flags(tmp_path, *own)).model
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    linear = {name: kind for name, kind in kinds.items() if kind in ("Linear", "Linear4bit")}
    apart = ("mm_projector", "vision_tower", "lm_head", "lora_")
    assert {kind for name, kind in linear.items() if any(part in name for part in apart)} == {"Linear"}
    assert {kind for name, kind in linear.items() if name.endswith("base_layer")} == {"Linear4bit"}


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised(bits, lora_flags, tmp_path):
    """bitsandbytes on a CPU: LoRA over quantised layers learns, resumes alike, and is saved as ever."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    quantised = {4: bitsandbytes.nn.Linear4bit, 8: bitsandbytes.nn.Linear8bitLt}[bits]
    more = ("--bits", bits, "--bf16", True, "--gradient_checkpointing", True)
    trainer = train(argv=lora_flags(tmp_path / "whole", *more))
    model = trainer.model
    held = {name.rpartition(".base_layer")[0] for name, part in model.named_modules() if isinstance(part, quantised)}
    assert held == layer_names(model)
    types = {name: value.dtype for name, value in model.named_parameters()}
    assert {dtype for name, dtype in types.items() if "lora_" in name} == {torch.bfloat16}
    assert {dtype for name, dtype in types.items() if "norm" in name or "projector" in name} == {torch.float32}
    assert losses(trainer)[-1] < losses(trainer)[0]
    adapter = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    assert len(adapter) == 2 * len(LINEAR) * 2
    assert "quantization_config" not in json.loads((tmp_path / "whole" / "config.json").read_text())

    kill_at(4, lora_flags(tmp_path / "killed", *more))
    assert losses(train(argv=lora_flags(tmp_path / "killed", *more))) == losses(trainer)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--tune_mm_mlp_adapter", True), "--lora_enable and --tune_mm_mlp_adapter exclude each other"),
        (("--unfreeze_mm_vision_tower", True), "--lora_enable and --unfreeze_mm_vision_tower exclude each other"),
        (("--freeze_backbone", True), "--lora_enable and --freeze_backbone exclude each other"),
        (("--lora_enable", False, "--bits", 4), "--bits 4: quantised weights cannot be trained themselves"),
        (("--lora_enable", False, "--lora_weight_path", "x"), "--lora_weight_path has no effect without"),
        (("--lora_r", 0), "--lora_r 0: give a rank of at least 1"),
        (("--bits", 4, "--deepspeed", "scripts/zero3.json"), "--bits 4 and ZeRO stage 3 exclude each other"),
        (("--deepspeed", "scripts/zero2.json"), "--deepspeed needs a launcher"),
        (("--lora_weight_path", "absent"), "absent has no LoRA adapter"),
        (("--report_to", "wandb"), "--report_to wandb needs the wandb package"),
        (("--version", "v9"), "--version v9 is not a conversation template; use one of default, v0"),
    ],
)
def test_contradictions_are_one_line(more, reason, lora_flags, tmp_path, monkeypatch):
    monkeypatch.setattr("llava.train.flags.REPORTERS", {"wandb": lambda: False})
    with pytest.raises(SystemExit) as exit:
        main(lora_flags(tmp_path / "out", *more))
    unset_hf_deepspeed_config()  # what the flag of one case has switched on for the process
    assert str(exit.value).startswith(f"error: {reason}")
    assert "\n" not in str(exit.value)


@pytest.mark.parametrize(
    ("more", "fields", "reason"),
    [
        (("--lora_r", 8), {}, r"has r 4, but --lora_r is 8; give the adapter's"),
        (("--lora_bias", "all"), {}, r"has bias none, but --lora_bias is all"),
        ((), {"base_model_name_or_path": "/x/other-7b"}, r"was trained on /x/other-7b, not on --model_name_or_path"),
        (("--mm_use_im_start_end", True), {}, r"lacks 1 weights that are being trained, such as .*embed_tokens"),
    ],
)
def test_resuming_what_does_not_fit_is_one_line(adapted, lora_flags, tmp_path, more, fields, reason):
    folder = tmp_path / "checkpoint-3"
    shutil.copytree(adapted[0] / "checkpoint-3", folder)
    config = json.loads((folder / "adapter_config.json").read_text()) | fields
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=reason) as error:
        train(argv=lora_flags(tmp_path, *more))
    assert "\n" not in str(error.value)


def test_a_lora_checkpoint_is_not_resumed_without_lora(adapted, flags, data_folder):
    more = ("--version", "v1", "--data_path", data_folder / "dialogues.json")
    with pytest.raises(ValueError, match=r"checkpoint-6 was trained with LoRA; add --lora_enable True"):
        train(argv=flags(adapted[0], *more))


def test_an_adapter_of_a_base_of_other_sizes_is_one_line(adapted, lora_flags, tmp_path):
    folder = tmp_path / "wide"
    shutil.copytree(adapted[0], folder)
    adapter = load_file(folder / "adapter_model.safetensors")
    wide = {name: torch.zeros(value.shape[0] * 2, value.shape[1] * 2) for name, value in adapter.items()}
    save_file(wide, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="was trained on a base of other sizes") as error:
        train(argv=lora_flags(tmp_path / "out", "--lora_weight_path", folder))
    assert "\n" not in str(error.value)
