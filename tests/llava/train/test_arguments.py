"""The flags: old spellings, devices that lack a feature, and what is not supported."""

import pytest
import torch
from transformers import HfArgumentParser

from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments, zero_stage
from llava.train.train import parse as train_flags


def parse(*flags: str, tmp="out"):
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    return parser.parse_args_into_dataclasses(["--output_dir", tmp, *flags], look_for_args_file=False)


def test_old_spellings_reach_the_new_names():
    flags = "--evaluation_strategy epoch --warmup_ratio 0.03 --no_cuda True --group_by_length True"
    arguments = parse(*flags.split())[2]
    assert arguments.eval_strategy == "epoch"
    assert arguments.get_warmup_steps(1000) == 30
    assert arguments.use_cpu
    assert arguments.train_sampling_strategy == "group_by_length"


def test_steps_win_over_ratio():
    assert parse("--warmup_ratio", "0.5", "--warmup_steps", "7")[2].get_warmup_steps(1000) == 7


def test_llava_defaults():
    model, data, training = parse()
    assert (model.mm_vision_select_layer, model.mm_use_im_patch_token, model.version) == (-1, True, "v0")
    assert (data.image_aspect_ratio, data.is_multimodal) == ("square", False)
    assert (training.model_max_length, training.optim, training.remove_unused_columns) == (512, "adamw_torch", False)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="about machines without an accelerator")
def test_bf16_and_tf32_on_a_cpu():
    arguments = parse("--bf16", "True", "--tf32", "True")[2]
    assert arguments.use_cpu
    assert arguments.bf16
    assert not arguments.tf32


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--image_grid_pinpoints [(336,)]", "pairs of whole numbers"),
        ("--save_safetensors False", "safetensors"),
        ("--remove_unused_columns True", "drop the images"),
        ("--warmup_ratio 1.5", "share of all steps"),
        ('--deepspeed {"zero_optimization":{"stage":3}}', "a checkpoint would hold no weights"),
        ('--deepspeed {"optimizer":{}} --mm_projector_lr 1', "remove the section"),
        ("--deepspeed absent.json", "absent.json: no such file"),
        ("--deepspeed {", "is not JSON"),
        ("--pruner flowcat:budget=5", "unknown pruner 'flowcat:budget=5'"),
        ("--pruner flowcut", "has no budget"),
        ("--pruner flowcut:budget=0", "budget=0 is not a whole number"),
        ("--unfreeze_mm_vision_tower True --tune_mm_mlp_adapter True", "exclude each other"),
    ],
)
def test_unsupported_is_an_error_and_not_ignored(flags, reason):
    with pytest.raises(ValueError, match=reason):
        parse(*flags.split())


def test_a_flag_that_does_not_exist_is_wrong_use(capsys):
    with pytest.raises(SystemExit) as end:
        train_flags(["--sharpness", "2", "--nonsense", "1", "--output_dir", "out"])
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith("error: --sharpness, --nonsense: there is no such flag; --help lists all\n")


def test_zero_stage_of_every_form(tmp_path):
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 2}}')
    assert zero_stage(str(tmp_path / "zero.json")) == 2
    assert zero_stage('{"zero_optimization": {"stage": 3}}') == 3
    assert zero_stage({}) == 0
    assert zero_stage(None) == 0
