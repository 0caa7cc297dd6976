"""The training scripts: the values are those that LLaVA published, and each of them trains, on tiny models."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from PIL import Image
from transformers import HfArgumentParser

from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments
from llava.train.train import train

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    str(path.relative_to(ROOT / "scripts"))
    for pattern in ("pretrain*.sh", "finetune*.sh", "v1_5/*.sh", "v1_6/*.sh")
    for path in (ROOT / "scripts").glob(pattern)
)


def run_script(script: str, *more: str, **environment: str) -> str:
    """Its standard output, with a launcher that prints one argument per line unless another is given."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    result = subprocess.run(
        ["bash", str(ROOT / "scripts" / script), *more],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**kept, "LAUNCHER": r"printf %s\n", **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def flags_of(script: str, *more: str, **environment: str) -> list[str]:
    """The flags of the training program that the script would start."""
    program, *flags = run_script(script, *more, **environment).splitlines()
    assert program == ("llava/train/train_xformers.py" if "xformers" in script else "llava/train/train_mem.py")
    assert (ROOT / program).is_file()
    return flags


def parse(flags: list[str]):
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    return parser.parse_args(flags)


DATA = "./playground/data"
VICUNA, TOWER = "lmsys/vicuna-13b-v1.5", "openai/clip-vit-large-patch14-336"
STAGE_1 = {"version": "plain", "tune_mm_mlp_adapter": True, "save_steps": 24000, "pretrain_mm_mlp_adapter": None}
STAGE_2 = {
    "version": "v1",
    "tune_mm_mlp_adapter": False,
    "data_path": f"{DATA}/llava_v1_5_mix665k.json",
    "image_folder": DATA,
    "image_aspect_ratio": "pad",
    "group_by_modality_length": True,
    "per_device_train_batch_size": 16,
    "learning_rate": 2e-5,
    "save_steps": 50000,
    "deepspeed": "./scripts/zero3.json",
    "model_name_or_path": VICUNA,
    "pretrain_mm_mlp_adapter": "./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin",
    "lora_enable": False,
}
LORA = {"lora_enable": True, "lora_r": 128, "lora_alpha": 256, "mm_projector_lr": 2e-5, "learning_rate": 2e-4}
TASK = {"model_name_or_path": "liuhaotian/llava-v1.5-13b", "pretrain_mm_mlp_adapter": None}
FIRST = {
    "vision_tower": "openai/clip-vit-large-patch14",
    "mm_projector_type": "linear",
    "model_name_or_path": "./checkpoints/vicuna-v1-3-7b",
    "deepspeed": "./scripts/zero2.json",
    "image_aspect_ratio": "square",
    "group_by_modality_length": False,
    "per_device_train_batch_size": 16,
}
FIRST_2 = {**FIRST, "version": "v1", "learning_rate": 2e-5, "save_steps": 50000, "num_train_epochs": 1}
TILES = {
    **STAGE_2,
    "model_name_or_path": "lmsys/vicuna-7b-v1.5",
    "pretrain_mm_mlp_adapter": "./checkpoints/llava-v1.6-vicuna-7b-pretrain/mm_projector.bin",
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": "[(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]",
    "mm_patch_merge_type": "spatial_unpad",
    "unfreeze_mm_vision_tower": True,
    "mm_vision_tower_lr": 2e-6,
    "learning_rate": 1e-5,
    "model_max_length": 4096,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "output_dir": "./checkpoints/llava-v1.6-vicuna-7b",
}
FLOWCUT = {"model_name_or_path": "lmsys/vicuna-7b-v1.5", "pruner": "flowcut:budget=192"}
OUT = "./checkpoints/llava-v1.5-13b"
# all values of the published tables, and what this project adds
VALUES = {
    "v1_5/pretrain.sh": {
        **STAGE_1,
        "model_name_or_path": VICUNA,
        "data_path": f"{DATA}/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json",
        "image_folder": f"{DATA}/LLaVA-Pretrain/images",
        "image_aspect_ratio": "square",
        "group_by_modality_length": False,
        "per_device_train_batch_size": 32,
        "learning_rate": 1e-3,
        "deepspeed": "./scripts/zero2.json",
        "output_dir": f"{OUT}-pretrain",
    },
    "v1_5/finetune.sh": {**STAGE_2, "output_dir": OUT, "pruner": None},
    "v1_5/finetune_lora.sh": {**STAGE_2, **LORA, "output_dir": f"{OUT}-lora", "bits": 16},
    "v1_5/finetune_qlora.sh": {
        **STAGE_2,
        **LORA,
        "bits": 4,
        "deepspeed": "./scripts/zero2.json",
        "output_dir": f"{OUT}-qlora",
    },
    "v1_5/finetune_task.sh": {**STAGE_2, **TASK, "output_dir": f"{OUT}-task"},
    "v1_5/finetune_task_lora.sh": {**STAGE_2, **LORA, **TASK, "output_dir": f"{OUT}-task-lora"},
    "v1_5/pretrain_flowcut.sh": {
        **STAGE_1,
        **FLOWCUT,
        "learning_rate": 1e-3,
        "output_dir": "./checkpoints/llava-v1.5-7b-pretrain-flowcut192",
    },
    "v1_5/finetune_flowcut.sh": {
        **STAGE_2,
        **FLOWCUT,
        "pretrain_mm_mlp_adapter": "./checkpoints/llava-v1.5-7b-pretrain-flowcut192/mm_projector.bin",
        "output_dir": "./checkpoints/llava-v1.5-7b-flowcut192",
    },
    "v1_6/pretrain.sh": {
        **STAGE_1,
        "model_name_or_path": "lmsys/vicuna-7b-v1.5",
        "learning_rate": 1e-3,
        "image_aspect_ratio": "square",
        "output_dir": "./checkpoints/llava-v1.6-vicuna-7b-pretrain",
    },
    "v1_6/finetune.sh": TILES,
    "v1_6/finetune_lora.sh": {
        **TILES,
        **LORA,
        "unfreeze_mm_vision_tower": False,
        "output_dir": "./checkpoints/llava-v1.6-vicuna-7b-lora",
    },
    "v1_6/finetune_task.sh": {
        **TILES,
        "model_name_or_path": "liuhaotian/llava-v1.6-vicuna-7b",
        "pretrain_mm_mlp_adapter": None,
        "output_dir": "./checkpoints/llava-v1.6-vicuna-7b-task",
    },
    "pretrain.sh": {**FIRST, **STAGE_1, "learning_rate": 2e-3, "bf16": True},
    "pretrain_xformers.sh": {
        **FIRST,
        **STAGE_1,
        "learning_rate": 2e-3,
        "bf16": False,
        "tf32": False,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
    },
    "finetune.sh": {**FIRST_2, "data_path": f"{DATA}/llava_instruct_80k.json"},
    "finetune_lora.sh": {**FIRST_2, "lora_enable": True, "lora_r": 64, "lora_alpha": 16, "bits": 16},
    "finetune_qlora.sh": {**FIRST_2, "lora_enable": True, "bits": 4},
    "finetune_full_schedule.sh": {
        **FIRST_2,
        "data_path": f"{DATA}/llava_instruct_158k.json",
        "num_train_epochs": 3,
    },
    "finetune_sqa.sh": {**FIRST_2, "model_name_or_path": "lmsys/vicuna-13b-v1.3", "num_train_epochs": 12},
}
COMMON = {
    "mm_vision_select_layer": -2,
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "num_train_epochs": 1,
    "per_device_eval_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "evaluation_strategy": "no",
    "save_strategy": "steps",
    "save_total_limit": 1,
    "weight_decay": 0.0,
    "warmup_ratio": 0.03,
    "lr_scheduler_type": "cosine",
    "logging_steps": 1,
    "model_max_length": 2048,
    "gradient_checkpointing": True,
    "dataloader_num_workers": 4,
    "lazy_preprocess": True,
    "report_to": "none",
}
NEWER = {"vision_tower": TOWER, "mm_projector_type": "mlp2x_gelu", "bf16": True, "tf32": True}


def test_no_script_is_left_out():
    assert set(SCRIPTS) == set(VALUES)
    assert all(os.access(ROOT / "scripts" / script, os.X_OK) for script in SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_values(script):
    parsed = vars(parse(flags_of(script)))
    expected = {**COMMON, **(NEWER if "/" in script else {}), **VALUES[script]}
    assert {name: parsed[name] for name in expected} == expected


@pytest.mark.parametrize("script", SCRIPTS)
def test_environment_and_further_flags_win(script):
    settings = {"MODEL": "a b", "OUTPUT_DIR": "there", "DEEPSPEED_CONFIG": "", "PRUNER": "random:budget=7"}
    parsed = parse(flags_of(script, "--seed", "5", "--report_to", "none", BATCH_SIZE="3", **settings))
    assert (parsed.model_name_or_path, parsed.output_dir, parsed.deepspeed) == ("a b", "there", None)
    assert (parsed.per_device_train_batch_size, parsed.pruner) == (3, "random:budget=7")
    assert (parsed.seed, parsed.report_to) == (5, "none")


def test_budget_of_table_6():
    first, second = (parse(flags_of(f"v1_5/{stage}_flowcut.sh", BUDGET="128")) for stage in ("pretrain", "finetune"))
    assert first.pruner == second.pruner == "flowcut:budget=128"
    assert second.pretrain_mm_mlp_adapter == f"{first.output_dir}/mm_projector.bin"
    assert first.output_dir.endswith("flowcut128")
    assert second.output_dir.endswith("flowcut128")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """data.json, usable in both stages, and its picture."""
    folder = tmp_path_factory.mktemp("data")
    Image.new("RGB", (60, 50), "red").save(folder / "red.png")
    turns = [{"from": "human", "value": "<image>\nwhat is this?"}, {"from": "gpt", "value": "red image"}]
    (folder / "data.json").write_text(json.dumps([{"id": "1", "image": "red.png", "conversations": turns}] * 4))
    return folder


@pytest.fixture(scope="module")
def settings(data, llama_folder, clip_folder, llava_folder):
    """The environment under which a script trains a tiny model; a function of script and output folder."""

    def make(script: str, output: Path) -> dict[str, str]:
        return {
            "DEEPSPEED_CONFIG": "",
            "MODEL": str(llava_folder if "task" in script else llama_folder),
            "VISION_TOWER": str(clip_folder),
            "PROJECTOR": "",
            "DATA_PATH": str(data / "data.json"),
            "IMAGE_FOLDER": str(data),
            "OUTPUT_DIR": str(output),
            "GRIDS": "[(56, 112), (112, 56)]",
            "BATCH_SIZE": "2",
            "WORKERS": "0",
            "REPORT_TO": "none",
            # the tiny tower has too few layers for the default
            **({"PRUNER": "flowcut:budget=5,last_layer=-2"} if "flowcut" in script else {}),
        }

    return make


@pytest.fixture(scope="module")
def projector(settings, tmp_path_factory):
    """What a script of the first stage makes in one step; a function of the script, which is run once."""

    @cache
    def make(script: str) -> Path:
        output = tmp_path_factory.mktemp("stage_1")
        train(argv=flags_of(script, "--max_steps", "1", **settings(script, output)))
        return output / "mm_projector.bin"

    return make


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_trains(script, settings, projector, tmp_path):
    if "qlora" in script and importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(ValueError, match="--bits 4 needs the bitsandbytes package"):
            train(argv=flags_of(script, "--max_steps", "1", **settings(script, tmp_path)))
        return
    environment = settings(script, tmp_path)
    if "pretrain" not in script and "task" not in script:
        environment["PROJECTOR"] = str(projector(script.replace(Path(script).name, "pretrain.sh")))
    trainer = train(argv=flags_of(script, "--max_steps", "1", **environment))
    assert [math.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry] == [True]
    saved = {file.name for file in tmp_path.iterdir()}
    wanted = (
        "mm_projector.bin"
        if "pretrain" in script
        else "adapter_config.json"
        if "lora" in script
        else "model.safetensors"
    )
    assert {wanted, "config.json"} <= saved


@pytest.mark.slow
def test_a_script_is_run_for_real(settings, tmp_path):
    environment = settings("v1_5/pretrain.sh", tmp_path)
    run_script("v1_5/pretrain.sh", "--max_steps", "1", "--use_cpu", "True", **environment, LAUNCHER=sys.executable)
    assert (tmp_path / "mm_projector.bin").is_file()


def test_slurm_starts_one_torchrun_a_node(tmp_path):
    (tmp_path / "scontrol").write_text('#!/bin/bash\n[ "$3" = "n[4-5]" ] && printf "n4\\nn5\\n"\n')
    (tmp_path / "srun").write_text('#!/bin/bash\nexec "$@"\n')
    (tmp_path / "torchrun").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    for program in tmp_path.iterdir():
        program.chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "n[4-5]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "77"}
    output = run_script(
        "slurm.sh", "scripts/v1_5/finetune.sh", "--seed", "3", PATH=f"{tmp_path}:{os.environ['PATH']}", **job
    )
    given = output.splitlines()
    at = given.index("llava/train/train_mem.py")
    shown = "--nnodes 2 --nproc_per_node 4 --rdzv_backend c10d --rdzv_id 77 --rdzv_endpoint n4:29500"
    assert " ".join(given[:at]) == shown
    assert parse(given[at + 1 :]).seed == 3


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3), ("zero3_offload", 3)])
def test_deepspeed_files(name, stage):
    config = json.loads((ROOT / "scripts" / f"{name}.json").read_text())
    zero = config["zero_optimization"]
    assert zero["stage"] == stage
    # an optimizer or scheduler here would overrule --mm_projector_lr and --lr_scheduler_type
    assert not {"optimizer", "scheduler"} & set(config)
    assert zero.get("stage3_gather_16bit_weights_on_model_save", False) is (stage == 3)
