"""The training scripts and DeepSpeed files: every flag exists, and the values are LLaVA-1.5's."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from transformers import HfArgumentParser

from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments

ROOT = Path(__file__).parents[2]


def flags_of(script: str, **environment: str) -> list[str]:
    """What the script would start, with `echo` for a launcher that prints one argument per line."""
    result = subprocess.run(
        ["bash", str(ROOT / "scripts" / script)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LAUNCHER": r"printf %s\n", **environment},
    )
    program, *flags = result.stdout.splitlines()
    assert program == "llava/train/train_mem.py"
    return flags


def parse(flags: list[str]):
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    return parser.parse_args(flags)


def test_pretrain_flags():
    parsed = parse(flags_of("v1_5/pretrain.sh"))
    assert parsed.tune_mm_mlp_adapter is True
    assert (parsed.version, parsed.mm_projector_type, parsed.mm_vision_select_layer) == ("plain", "mlp2x_gelu", -2)
    assert (parsed.per_device_train_batch_size, parsed.learning_rate, parsed.save_steps) == (32, 1e-3, 24000)
    assert parsed.deepspeed == "./scripts/zero2.json"


def test_finetune_flags():
    parsed = parse(flags_of("v1_5/finetune.sh"))
    assert parsed.tune_mm_mlp_adapter is False
    assert (parsed.version, parsed.image_aspect_ratio, parsed.group_by_modality_length) == ("v1", "pad", True)
    assert (parsed.per_device_train_batch_size, parsed.learning_rate, parsed.save_steps) == (16, 2e-5, 50000)
    assert parsed.pretrain_mm_mlp_adapter == "./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin"


@pytest.mark.parametrize("script", ["v1_5/pretrain.sh", "v1_5/finetune.sh"])
def test_environment_overrides(script):
    parsed = parse(flags_of(script, MODEL="a b", OUTPUT_DIR="there", DEEPSPEED_CONFIG="", BATCH_SIZE="3"))
    assert (parsed.model_name_or_path, parsed.output_dir, parsed.deepspeed) == ("a b", "there", None)
    assert parsed.per_device_train_batch_size == 3


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3), ("zero3_offload", 3)])
def test_deepspeed_files(name, stage):
    config = json.loads((ROOT / "scripts" / f"{name}.json").read_text())
    zero = config["zero_optimization"]
    assert zero["stage"] == stage
    # an optimizer or scheduler here would overrule --mm_projector_lr and --lr_scheduler_type
    assert not {"optimizer", "scheduler"} & set(config)
    assert zero.get("stage3_gather_16bit_weights_on_model_save", False) is (stage == 3)
