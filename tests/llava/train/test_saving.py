"""What can be saved, and how."""

import json

import pytest
import torch
from transformers import GenerationConfig

from llava.model.builder import load_tokenizer
from llava.train.language_model import drop_unusable_sampling
from llava.train.saving import get_mm_adapter_state_maybe_zero_3, try_saving
from llava.train.train import train


def test_sampling_values_without_sampling_are_dropped(tmp_path):
    vicuna = {"temperature": 0.9, "top_p": 0.6, "max_length": 4096, "pad_token_id": 0}
    mended = GenerationConfig(**vicuna)
    with pytest.raises(ValueError, match="temperature"):
        mended.validate(strict=True)
    drop_unusable_sampling(mended)
    mended.validate(strict=True)
    mended.save_pretrained(tmp_path)
    kept = json.loads((tmp_path / "generation_config.json").read_text())
    assert (kept["max_length"], kept.get("temperature"), kept.get("top_p")) == (4096, None, None)
    sampling = GenerationConfig(do_sample=True, temperature=0.9, top_p=0.6)
    drop_unusable_sampling(sampling)
    assert (sampling.temperature, sampling.top_p) == (0.9, 0.6)


def test_what_cannot_be_saved_is_known_before_the_first_step(tiny_llava, llama_folder, tmp_path):
    tokenizer = load_tokenizer(str(llama_folder))
    try_saving(tiny_llava, tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="a checkpoint could not be saved there") as error:
        try_saving(tiny_llava, tokenizer, tmp_path / "file")
    assert "\n" not in str(error.value)
    tiny_llava.config.odd = object()
    with pytest.raises(ValueError, match="a checkpoint could not be saved there"):
        try_saving(tiny_llava, tokenizer, tmp_path)


def test_adapter_state_by_name(tiny_llava):
    found = get_mm_adapter_state_maybe_zero_3(tiny_llava.named_parameters(), ["mm_projector"])
    parameters = dict(tiny_llava.named_parameters())
    assert set(found) == {name for name in parameters if "mm_projector" in name}
    assert all(torch.equal(value, parameters[name]) for name, value in found.items())


@pytest.mark.parametrize("more", [(), ("--tune_mm_mlp_adapter", True)], ids=["whole", "projector"])
def test_the_best_checkpoint_is_kept_and_loaded_at_the_end(more, flags, data_folder, tmp_path):
    stage = ("--version", "plain", "--data_path", data_folder / "captions.json", *more)
    stage += ("--eval_data_path", data_folder / "captions.json", "--eval_strategy", "steps", "--eval_steps", 2)
    stage += ("--load_best_model_at_end", True, "--save_steps", 2, "--save_total_limit", 2)
    stage += ("--greater_is_better", True)  # the loss falls, so that an earlier checkpoint is the best
    trainer = train(argv=flags(tmp_path, *stage))
    evaluated = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    best = max(evaluated, key=evaluated.__getitem__)
    assert best != 6  # or the last one would be right without looking
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert {folder.name for folder in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{best}", "checkpoint-6"}
    saved = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    assert saved["best_model_checkpoint"] == trainer.state.best_model_checkpoint
    assert trainer.evaluate()["eval_loss"] == pytest.approx(evaluated[best], rel=1e-6)


def test_attention_patches_of_old_choose_sdpa(caplog):
    from llava.train.llama_flash_attn_monkey_patch import replace_llama_attn_with_flash_attn
    from llava.train.llama_xformers_attn_monkey_patch import replace_llama_attn_with_xformers_attn

    for replace in (replace_llama_attn_with_flash_attn, replace_llama_attn_with_xformers_attn):
        assert replace() == "sdpa"
    assert sum("sdpa" in record.message for record in caplog.records) == 2


def test_train_xformers_trains_with_sdpa(flags, data_folder, tmp_path, capsys):
    from llava.train.train_xformers import main

    stage = ("--version", "plain", "--data_path", data_folder / "captions.json", "--tune_mm_mlp_adapter", True)
    main(flags(tmp_path, *stage, "--max_steps", 1))
    assert (tmp_path / "mm_projector.bin").is_file()
    lines = capsys.readouterr().out.splitlines()
    assert any("training 6,272 of 191,680 parameters on 12 samples for 1 steps of 4 samples" in line for line in lines)
    told = json.loads(lines[-1])
    assert (told["output_dir"], told["steps"]) == (str(tmp_path), 1)
    assert (
        told["train_loss"] == json.loads((tmp_path / "trainer_state.json").read_text())["log_history"][-1]["train_loss"]
    )
