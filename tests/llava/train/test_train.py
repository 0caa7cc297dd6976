"""Both stages end to end on tiny models: what changes, what is saved, and that a killed run ends as an unbroken one."""

import json
import math
import re
import shutil
from dataclasses import dataclass, field

import pytest
import torch
import transformers
from runs import kill_at, losses, weights
from safetensors.torch import load_file

from flowcut import detach
from llava.model.builder import load_pretrained_model, load_tokenizer
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.train.llava_trainer import LLaVATrainer
from llava.train.train import main, prepare, run, smart_tokenizer_and_embedding_resize, train
from tests.kills import Killer


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, flags, data_folder):
    output = tmp_path_factory.mktemp("pretrain")
    stage = ("--version", "plain", "--data_path", data_folder / "captions.json", "--tune_mm_mlp_adapter", True)
    return output, stage, train(argv=flags(output, *stage))


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory, flags, data_folder, pretrained):
    output = tmp_path_factory.mktemp("finetune")
    stage = ("--version", "v1", "--data_path", data_folder / "dialogues.json")
    stage += ("--pretrain_mm_mlp_adapter", pretrained[0] / "mm_projector.bin", "--group_by_modality_length", True)
    stage += ("--unfreeze_mm_vision_tower", True, "--mm_vision_tower_lr", 1e-3, "--mm_projector_lr", 2e-3)
    return output, stage, train(argv=flags(output, *stage))


def test_stage_1_trains_the_projector_only(pretrained, llama_folder, clip_folder):
    output, _, trainer = pretrained
    before = load_file(llama_folder / "model.safetensors")
    after = weights(trainer)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    tower = load_file(clip_folder / "model.safetensors")
    prefix = "model.vision_tower.vision_tower."
    assert all(torch.equal(v, after[prefix + k.removeprefix("vision_model.")]) for k, v in tower.items())
    assert losses(trainer)[-1] < losses(trainer)[0]
    trainable = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[1] for name in trainable} == {"mm_projector"}
    saved = torch.load(output / "mm_projector.bin", weights_only=True)
    assert sorted(saved) == sorted(trainable)
    assert all(torch.equal(value, after[name]) for name, value in saved.items())


def test_stage_1_writes_projector_and_what_resuming_needs(pretrained):
    output, _, _ = pretrained
    assert not list(output.glob("*.safetensors"))
    step_3 = {file.name for file in (output / "checkpoint-3").iterdir()}
    assert {"config.json", "mm_projector.bin", "trainer_state.json", "optimizer.pt", "scheduler.pt"} <= step_3
    assert json.loads((output / "config.json").read_text())["mm_projector_type"] == "mlp2x_gelu"


def test_projector_folder_loads_with_its_base(pretrained, llama_folder):
    output, _, trainer = pretrained
    for folder in (output, output / "checkpoint-6"):
        _, model, _, _ = load_pretrained_model(str(folder), str(llama_folder), "llava", device="cpu")
        loaded = model.state_dict()
        assert all(torch.equal(value, loaded[name]) for name, value in weights(trainer).items())
        assert model.config.use_cache


def test_stage_2_trains_tower_projector_and_language_model(finetuned, flags, tmp_path):
    _, stage, trainer = finetuned
    before = weights(prepare(argv=flags(tmp_path, *stage)))
    after = weights(trainer)
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    # the features leave before the tower's last layer; everything else learns
    tower = "model.vision_tower.vision_tower."
    idle = {name for name in before if name.startswith((f"{tower}encoder.layers.1.", f"{tower}post_layernorm"))}
    # a key's bias moves all attention scores of a query alike, so its gradient is zero up to rounding
    assert unchanged - {f"{tower}encoder.layers.0.self_attn.k_proj.bias"} == idle
    assert losses(trainer)[-1] < losses(trainer)[0]


@dataclass
class LlavasArguments(transformers.TrainingArguments):
    """The fields of the class in LLaVA's own train.py that its trainer reads."""

    remove_unused_columns: bool = field(default=False)
    mm_projector_lr: float | None = None
    group_by_modality_length: bool = field(default=True)


def test_the_arguments_of_llavas_own_program(pretrained, make_tiny_llava, tmp_path):
    _, _, ours = pretrained
    args = LlavasArguments(str(tmp_path), max_steps=1, per_device_train_batch_size=2, use_cpu=True, report_to="none")
    args.tune_mm_mlp_adapter = True  # as LLaVA's train() does
    trainer = LLaVATrainer(
        model=make_tiny_llava(),
        args=args,
        tokenizer=ours.processing_class,
        train_dataset=ours.train_dataset,
        data_collator=ours.data_collator,
    )
    assert trainer.tune_mm_mlp_adapter
    assert not trainer.model_accepts_loss_kwargs  # the mean of each micro-batch
    trainer.train()
    assert (tmp_path / "checkpoint-1" / "mm_projector.bin").is_file()
    assert not (tmp_path / "checkpoint-1" / "model.safetensors").exists()


def test_optimizer_groups(finetuned):
    _, _, trainer = finetuned
    groups = trainer.parameter_groups(trainer.model)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    rates = {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}
    assert set(rates) == {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    for name, rate in rates.items():
        assert rate == (1e-3 if "vision_tower" in name else 2e-3 if "mm_projector" in name else 3e-3)
    assert len(groups) == 6
    trainer.args.weight_decay = 0.1
    decays = {names[id(p)]: g["weight_decay"] for g in trainer.parameter_groups(trainer.model) for p in g["params"]}
    assert decays["model.mm_projector.0.weight"] == 0.1
    assert decays["model.mm_projector.0.bias"] == 0.0
    assert decays["model.norm.weight"] == 0.0


def test_saved_checkpoint_loads_with_its_own_tower(finetuned):
    output, _, trainer = finetuned
    _, model, image_processor, _ = load_pretrained_model(str(output), None, "llava", device="cpu")
    assert image_processor.crop_size["height"] == 56
    loaded = model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in weights(trainer).items())


@pytest.mark.parametrize("stage_fixture", ["pretrained", "finetuned"])
def test_killed_run_resumes_to_the_same_end(stage_fixture, request, flags, tmp_path):
    _, stage, unbroken = request.getfixturevalue(stage_fixture)
    kill_at(4, flags(tmp_path, *stage))
    (tmp_path / "checkpoint-5").mkdir()  # a save that was cut off
    resumed = train(argv=flags(tmp_path, *stage))
    assert losses(resumed) == losses(unbroken)
    after = weights(resumed)
    assert all(torch.equal(value, after[name]) for name, value in weights(unbroken).items())


@pytest.mark.slow
def test_killed_at_random_moments(flags, finetuned, tmp_path):
    """Every time, the run that is started again ends as one that was left alone, to the bit."""
    _, stage, _ = finetuned
    more = (*stage, "--save_steps", 1, "--save_total_limit", 2)
    killer, killed = Killer(main), 0
    killer.run(["--help"])  # which imports everything
    killer.run(flags(tmp_path / "calm", *more))
    expected = load_file(tmp_path / "calm" / "model.safetensors")
    for number, moment in enumerate(killer.moments()):
        folder = tmp_path / f"killed{number}"
        killed += killer.run(flags(folder, *more), until=moment)
        assert not killer.run(flags(folder, *more), until=300)
        after = load_file(folder / "model.safetensors")
        assert after.keys() == expected.keys()
        assert all(torch.equal(value, after[name]) for name, value in expected.items())
        ends = [json.loads((tmp_path / one / "trainer_state.json").read_text()) for one in ("calm", folder.name)]
        calm, own = ([entry["loss"] for entry in end["log_history"] if "loss" in entry] for end in ends)
        assert own == calm
        shutil.rmtree(folder)
    assert killed


def test_gradient_checkpointing_and_workers_change_nothing(finetuned, flags, tmp_path):
    _, stage, plain = finetuned
    other = train(argv=flags(tmp_path, *stage, "--gradient_checkpointing", True, "--dataloader_num_workers", 1))
    assert losses(other) == pytest.approx(losses(plain), rel=1e-4)


def test_bf16_is_autocast_over_float32_weights(pretrained, flags, tmp_path):
    _, stage, exact = pretrained
    trainer = train(argv=flags(tmp_path, *stage, "--bf16", True, "--tf32", True))
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert losses(trainer) != losses(exact)
    assert losses(trainer) == pytest.approx(losses(exact), rel=0.02)


def test_loss_average_per_micro_batch_or_per_token(finetuned, flags, tmp_path):
    _, stage, _ = finetuned
    # two micro-batches of two samples against one batch of four: alike only if tokens are counted over both
    once = ("--learning_rate", 0, "--mm_vision_tower_lr", 0, "--mm_projector_lr", 0, "--max_steps", 1)
    once += ("--group_by_modality_length", False, "--save_strategy", "no")
    halves = ("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2)
    whole = train(argv=flags(tmp_path / "whole", *stage, *once))
    micro = train(argv=flags(tmp_path / "micro", *stage, *once, *halves))
    token = train(argv=flags(tmp_path / "token", *stage, *once, *halves, "--loss_average", "token"))
    assert losses(token) == pytest.approx(losses(whole), rel=1e-4)
    assert losses(micro) != pytest.approx(losses(whole), rel=1e-4)


def test_evaluation_loss(finetuned, flags, data_folder, tmp_path):
    _, stage, _ = finetuned
    more = ("--eval_data_path", data_folder / "dialogues.json", "--evaluation_strategy", "steps", "--eval_steps", 1)
    trainer = train(argv=flags(tmp_path, *stage, *more, "--max_steps", 1))
    assert [entry["eval_loss"] > 0 for entry in trainer.state.log_history if "eval_loss" in entry] == [True]


def test_training_goes_on_from_a_llava_checkpoint(finetuned, flags, data_folder, tmp_path):
    first, _, trainer = finetuned
    # no --vision_tower: the checkpoint's own one, frozen now, yet still not the one it came from
    own = [flag for flag in flags(tmp_path) if flag != "--vision_tower"]
    own.remove(own[own.index("--model_name_or_path") + 2])
    more = ["--model_name_or_path", str(first), "--version", "v1", "--data_path", str(data_folder / "dialogues.json")]
    more += ["--max_steps", "1"]
    second = weights(train(argv=own + more))
    tower = [name for name in second if "vision_tower" in name]
    assert all(torch.equal(second[name], weights(trainer)[name]) for name in tower)
    _, model, _, _ = load_pretrained_model(str(tmp_path), None, "llava", device="cpu")
    assert all(torch.equal(second[name], model.state_dict()[name]) for name in tower)


def test_everything_frozen_is_refused(flags, data_folder, tmp_path):
    more = ("--data_path", data_folder / "captions.json", "--version", "plain", "--tune_mm_mlp_adapter", True)
    with pytest.raises(ValueError, match="freeze every weight"):
        train(argv=flags(tmp_path, *more, "--freeze_mm_mlp_adapter", True))


def test_unusable_input_is_one_line(flags, data_folder, tmp_path, capfd):
    missing = ("--data_path", data_folder / "captions.json", "--vision_tower", tmp_path / "absent")
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps([{"id": "x", "image": "absent.png", "conversations": [{"from": "gpt", "value": "a"}]}]))
    for more, reason in (
        (missing, r"Unknown vision tower: .*absent"),
        (("--data_path", bad, "--pretrain_mm_mlp_adapter", "absent.bin"), r"absent\.bin: no such file"),
        (("--data_path", tmp_path / "absent.json"), r"absent\.json: no such file"),
        (("--data_path", bad, "--dataloader_num_workers", 0), r"sample 0 \(id 'x'\): .*"),
        (("--data_path", bad, "--dataloader_num_workers", 1), r"sample 0 \(id 'x'\): .*"),
        (("--data_path", bad, "--model_name_or_path", tmp_path), r"has no config\.json"),
        (("--pruner", "flowcut:budget=0", "--model_name_or_path", tmp_path / "absent"), r"budget=0 is not"),
        (("--data_path", bad, "--pruner", "flowcut:budget=5"), r"last_layer=-3 is not in this encoder"),
    ):
        with pytest.raises(SystemExit) as exit:
            main(flags(tmp_path / "out", *more, "--version", "v1"))
        message = str(exit.value)
        assert re.match(f"error: .*{reason}", message)
        assert "\n" not in message


def test_a_dry_run_lists_everything_at_once(flags, data_folder, tmp_path, capsys):
    more = ("--version", "v9", "--data_path", tmp_path / "absent.json", "--vision_tower", tmp_path / "no-tower")
    more += ("--pretrain_mm_mlp_adapter", "absent.bin", "--image_folder", "/absent", "--resume_from_checkpoint", "gone")
    with pytest.raises(SystemExit) as exit:
        main(flags(tmp_path, *more, "--model_name_or_path", tmp_path, "--dry_run", True))
    lines = str(exit.value).splitlines()
    words = (
        "v9",
        r"has no config\.json",
        "has no tokenizer",
        "Unknown vision tower",
        r"absent\.bin",
        r"absent\.json",
    )
    words += ("--image_folder /absent", "--resume_from_checkpoint gone")
    assert len(lines) == len(words)
    assert all(re.match(f"error: .*{word}", line) for word, line in zip(words, lines, strict=True))
    main(flags(tmp_path / "out", "--version", "v1", "--data_path", data_folder / "dialogues.json", "--dry_run", True))
    assert capsys.readouterr().out.splitlines()[-1] == "dry run: nothing is wrong, and nothing was trained"
    assert not list((tmp_path / "out").iterdir())


def test_a_dry_run_lists_every_wrong_flag(flags, data_folder, tmp_path):
    """Flags that cannot be read, in each way that there is, do not hide what is wrong with the others."""
    more = (
        "--learning_rate",
        "fast",
        "--lora_r=high",
        "--bits",
        5,
        "--no_such_flag",
        3,
        "--pruner",
        "flowcut:budget=0",
    )
    more += ("--image_grid_pinpoints", "[(1,", "--warmup_ratio", 2, "--version", "v9", "--image_folder", "/absent")
    with pytest.raises(SystemExit) as exit:
        main(flags(tmp_path, "--dry_run", True, *more, "--data_path", data_folder / "dialogues.json"))
    lines = str(exit.value).splitlines()
    words = (
        "learning_rate.*fast",
        "lora_r.*high",
        "bits.*5",
        "no_such_flag",
        "budget=0",
        "pinpoints|grids",
        "warmup_ratio",
    )
    words += ("--version v9", "--image_folder /absent")
    assert len(lines) == len(words)
    assert all(re.match(f"error: .*({word})", line) for word, line in zip(words, lines, strict=True))


def test_a_projector_that_does_not_fit_is_one_line(flags, data_folder, tmp_path):
    stage = ("--version", "v1", "--data_path", data_folder / "dialogues.json")
    stage += ("--pretrain_mm_mlp_adapter", tmp_path / "mm_projector.bin")
    layers = {"0.weight": (64, 32), "0.bias": (64,), "2.weight": (64, 64), "2.bias": (64,)}
    for shapes, reason in (
        ({"weight": (64, 32), "bias": (64,)}, "is of a projector of another type or size"),
        (layers | {"0.weight": (64, 48)}, "is of a projector of another type or size"),
    ):
        torch.save({f"model.mm_projector.{k}": torch.ones(v) for k, v in shapes.items()}, tmp_path / "mm_projector.bin")
        with pytest.raises(SystemExit, match=reason) as exit:
            main(flags(tmp_path / "out", *stage))
        assert "\n" not in str(exit.value)
    for content, reason in ((b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"), (b"x", "damaged")):
        (tmp_path / "mm_projector.bin").write_bytes(content)
        with pytest.raises(SystemExit, match=reason) as exit:
            main(flags(tmp_path / "out", *stage))
        assert "\n" not in str(exit.value)


def test_image_marks_are_learned_and_saved_in_stage_1(pretrained, flags, tmp_path, data_folder):
    _, stage, _ = pretrained
    trainer = train(argv=flags(tmp_path / "1", *stage, "--mm_use_im_start_end", True))
    saved = torch.load(tmp_path / "1" / "mm_projector.bin", weights_only=True)
    assert saved["model.embed_tokens.weight"].shape == (522, 64)
    adapter = ("--pretrain_mm_mlp_adapter", tmp_path / "1" / "mm_projector.bin", "--mm_use_im_start_end", True)
    second = prepare(
        argv=flags(tmp_path / "2", "--version", "v1", "--data_path", data_folder / "dialogues.json", *adapter)
    )
    rows = second.model.get_input_embeddings().weight[-2:]
    assert torch.equal(rows, trainer.model.get_input_embeddings().weight[-2:])
    assert (second.train_dataset[1]["input_ids"] >= 520).sum() == 2


def test_frozen_backbone_leaves_projector_and_output_layer(flags, data_folder, tmp_path):
    more = ("--version", "v1", "--data_path", data_folder / "dialogues.json", "--freeze_backbone", True)
    model = prepare(argv=flags(tmp_path, *more)).model
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trainable if "mm_projector" not in name} == {"lm_head.weight"}
    assert len(trainable) == 5


def test_added_tokens_start_as_the_mean(llama_folder):
    tokenizer = load_tokenizer(str(llama_folder))
    model = LlavaLlamaForCausalLM.from_pretrained(llama_folder)
    before = [table.weight.clone() for table in (model.get_input_embeddings(), model.get_output_embeddings())]
    smart_tokenizer_and_embedding_resize({"additional_special_tokens": ["<a>", "<b>"]}, tokenizer, model)
    for old, table in zip(before, (model.get_input_embeddings(), model.get_output_embeddings()), strict=True):
        assert torch.equal(table.weight[:-2], old)
        assert torch.allclose(table.weight[-2:], old.mean(dim=0).expand(2, -1))


def test_attention_flag_reaches_both_models(finetuned, flags, tmp_path):
    _, stage, fused = finetuned
    trainer = train(argv=flags(tmp_path, *stage, "--attn_implementation", "eager"))
    assert trainer.model.config._attn_implementation == "eager"
    assert trainer.model.get_vision_tower().config._attn_implementation == "eager"
    assert losses(trainer) == pytest.approx(losses(fused), rel=1e-3)


PRUNER = "flowcut:budget=5,last_layer=-2"
FIELD = {"method": "flowcut", "budget": 5, "last_layer": -2}


def remembered(folder):
    return json.loads((folder / "config.json").read_text()).get("flowcut")


def seen_tokens(trainer) -> set[int]:
    """Runs the trainer; how many visual tokens the language model got for a picture, in training and evaluation."""
    counts = set()

    def look(module, args, kwargs):
        for row in kwargs["image_index"]:
            counts.update(row[row >= 0].unique(return_counts=True)[1].tolist())

    with trainer.model.get_model().register_forward_pre_hook(look, with_kwargs=True):
        run(trainer)
    return counts


@pytest.fixture(scope="module")
def pruned(tmp_path_factory, flags, data_folder, finetuned):
    """Stage 2 with five visual tokens, evaluating once."""
    output = tmp_path_factory.mktemp("pruned")
    stage = (*finetuned[1], "--eval_data_path", data_folder / "dialogues.json", "--eval_strategy", "epoch")
    trainer = prepare(argv=flags(output, *stage, "--pruner", PRUNER))
    return output, stage, trainer, seen_tokens(trainer)


def test_training_with_pruned_tokens(pruned, finetuned):
    output, _, trainer, seen = pruned
    assert seen == {5}
    assert all(math.isfinite(loss) for loss in losses(trainer))
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert losses(trainer) != losses(finetuned[2])
    assert any("eval_loss" in entry for entry in trainer.state.log_history)
    assert [remembered(folder) for folder in (output, output / "checkpoint-3", output / "checkpoint-6")] == [FIELD] * 3


def test_a_pruned_checkpoint_loads_with_its_pruner(pruned):
    output, _, trainer, _ = pruned
    _, model, _, _ = load_pretrained_model(str(output), None, "llava", device="cpu")
    loaded = model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in weights(trainer).items())
    pixels = torch.zeros(1, 3, 56, 56)
    assert model.encode_images(pixels).shape[1] == 5
    detach(model)
    assert model.encode_images(pixels).shape[1] == 16


def test_gradient_checkpointing_changes_nothing_in_a_pruned_run(pruned, flags, tmp_path):
    _, stage, plain, _ = pruned
    trainer = prepare(argv=flags(tmp_path, *stage, "--pruner", PRUNER, "--gradient_checkpointing", True))
    assert seen_tokens(trainer) == {5}
    assert losses(trainer) == pytest.approx(losses(plain), rel=1e-4)


def test_a_pruned_run_is_resumed_as_it_began(pruned, flags, tmp_path, capsys):
    _, stage, unbroken, _ = pruned
    kill_at(4, flags(tmp_path, *stage, "--pruner", PRUNER))
    capsys.readouterr()
    resumed = prepare(argv=flags(tmp_path, *stage))  # the flag was forgotten
    assert f"training with {PRUNER}, as {tmp_path / 'checkpoint-3'} was; --pruner none" in capsys.readouterr().out
    assert seen_tokens(resumed) == {5}
    assert losses(resumed) == losses(unbroken)
    after = weights(resumed)
    assert all(torch.equal(value, after[name]) for name, value in weights(unbroken).items())
    assert remembered(tmp_path) == FIELD


@pytest.mark.parametrize(
    ("more", "tokens", "field", "line"),
    [
        ((), 5, FIELD, "training with {pruner}, as {folder} was; --pruner none turns that off"),
        (("--pruner", "none"), 16, None, "training with all visual tokens"),
        (("--pruner", "random:budget=7"), 7, {"method": "random", "budget": 7}, "training with random:budget=7"),
    ],
)
def test_fine_tuning_a_checkpoint_that_remembers(
    pruned, flags, data_folder, tmp_path, capsys, more, tokens, field, line
):
    start = ("--model_name_or_path", pruned[0], "--version", "v1", "--data_path", data_folder / "dialogues.json")
    trainer = prepare(argv=flags(tmp_path, *start, "--max_steps", 1, "--save_steps", 1, *more))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == line.format(pruner=PRUNER, folder=pruned[0])
    assert sum("pruner" in line or "visual tokens" in line for line in lines) <= 1
    assert seen_tokens(trainer) == {tokens}
    assert remembered(tmp_path) == remembered(tmp_path / "checkpoint-1") == field


def test_a_projector_of_a_pruned_stage_1_hands_its_pruner_on(pretrained, flags, llama_folder, data_folder, tmp_path):
    first = tmp_path / "1"
    trainer = prepare(argv=flags(first, *pretrained[1], "--pruner", PRUNER, "--max_steps", 2, "--save_steps", 1))
    assert seen_tokens(trainer) == {5}
    assert remembered(first) == remembered(first / "checkpoint-1") == FIELD
    _, model, _, _ = load_pretrained_model(str(first), str(llama_folder), "llava", device="cpu")
    assert model.encode_images(torch.zeros(1, 3, 56, 56)).shape[1] == 5

    stage = ("--version", "v1", "--data_path", data_folder / "dialogues.json", "--max_steps", 1)
    stage += ("--pretrain_mm_mlp_adapter", first / "mm_projector.bin")
    assert seen_tokens(prepare(argv=flags(tmp_path / "2", *stage))) == {5}
    assert remembered(tmp_path / "2") == FIELD
    assert not hasattr(prepare(argv=flags(tmp_path / "3", *stage, "--pruner", "none")).model.config, "flowcut")


def test_samples_may_be_as_long_as_their_pruned_images_allow(flags, data_folder, tmp_path):
    stage = ("--version", "v1", "--data_path", data_folder / "dialogues.json")
    for text, counted in (
        ("none", 16),
        (PRUNER, 5),
        ("fastervlm:budget=99", 16),
        ("fastv:budget=5,layer=1", 16),  # cuts inside the language model, which still reads all of them
    ):
        more = ("--pruner", text)
        assert prepare(argv=flags(tmp_path, *stage, *more)).train_dataset.data_args.image_tokens == counted


def test_a_remembered_field_that_cannot_be_read_is_one_line(pruned, flags, data_folder, tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    fields = json.loads((pruned[0] / "config.json").read_text()) | {"flowcut": {"budget": 5, "colour": "red"}}
    (start / "config.json").write_text(json.dumps(fields))
    more = ("--model_name_or_path", start, "--version", "v1", "--data_path", data_folder / "dialogues.json")
    with pytest.raises(SystemExit, match=r"error: field 'flowcut' in the config\.json of .*start: 'colour' is no"):
        main(flags(tmp_path / "out", *more))


def test_a_pruner_without_a_tower_is_refused(flags, data_folder, tmp_path):
    blind = [flag for flag in flags(tmp_path) if flag != "--vision_tower"]
    blind.remove(blind[blind.index("--model_name_or_path") + 2])
    with pytest.raises(ValueError, match="no vision tower, so fastervlm:budget=5 has nothing to drop"):
        prepare(argv=[*blind, "--data_path", str(data_folder / "dialogues.json"), "--pruner", "fastervlm:budget=5"])
