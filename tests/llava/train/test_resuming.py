"""Damaged checkpoints: a run goes on from the older one, and ends as the unbroken one; nothing is a traceback."""

import json
import shutil

import pytest
import torch
from runs import losses, weights
from safetensors.torch import load_file, save_file

from llava.train.resuming import chosen_checkpoint
from llava.train.train import main, train


@pytest.fixture(scope="module", params=["projector", "whole", "lora"])
def unbroken(request, tmp_path_factory, flags, data_folder):
    stage = ["--version", "v1", "--data_path", data_folder / "dialogues.json", "--max_steps", 3, "--save_steps", 1]
    more = {"projector": "--tune_mm_mlp_adapter", "whole": None, "lora": "--lora_enable"}[request.param]
    stage += [more, True] if more else []
    output = tmp_path_factory.mktemp(request.param)
    return output, stage, train(argv=flags(output, *stage))


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


def state(folder, **fields):
    file = folder / "trainer_state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def cut_weights(folder):
    names = ("adapter_model.safetensors", "mm_projector.bin", "model.safetensors")
    cut(next(folder / name for name in names if (folder / name).is_file()))


DAMAGE = {
    "weights": cut_weights,
    "optimizer": lambda folder: cut(folder / "optimizer.pt"),
    "no optimizer": lambda folder: (folder / "optimizer.pt").unlink(),
    "one bit": lambda folder: flip(folder / "optimizer.pt"),
    "scheduler": lambda folder: (folder / "scheduler.pt").write_text(""),
    "random numbers": lambda folder: cut(folder / "rng_state.pth"),
    "step of another kind": lambda folder: state(folder, global_step="3"),
    "another step": lambda folder: state(folder, global_step=300),
    "unknown field": lambda folder: state(folder, colour="red"),
    "no object": lambda folder: (folder / "trainer_state.json").write_text("[]"),
    "no state": lambda folder: (folder / "trainer_state.json").unlink(),
    "pointer": lambda folder: (folder / "optimizer.pt").write_text("version https://git-lfs.github.com/spec/v1"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_older_checkpoint_is_chosen_with_a_line(unbroken, tmp_path, damage, caplog):
    for step in (1, 2):
        shutil.copytree(unbroken[0] / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    newest = tmp_path / "checkpoint-2"
    assert chosen_checkpoint(None, str(tmp_path), False) == str(newest)
    DAMAGE[damage](newest)
    assert chosen_checkpoint(None, str(tmp_path), False) == str(tmp_path / "checkpoint-1")
    assert "checkpoint-2 is skipped: " in caplog.text
    with pytest.raises(ValueError, match="checkpoint-2") as error:
        chosen_checkpoint(str(newest), str(tmp_path), False)
    assert "\n" not in str(error.value)


def test_a_run_goes_on_from_it_to_the_same_end(unbroken, flags, tmp_path):
    output, stage, whole = unbroken
    for step in (1, 2):
        shutil.copytree(output / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    cut_weights(tmp_path / "checkpoint-2")
    resumed = train(argv=flags(tmp_path, *stage))
    assert losses(resumed) == losses(whole)
    after = weights(resumed)
    assert all(torch.equal(value, after[name]) for name, value in weights(whole).items())


def test_states_that_do_not_fit_are_one_line(unbroken, flags, tmp_path):
    output, stage, _ = unbroken
    for file, content in (("optimizer.pt", {"state": {}}), ("scheduler.pt", [1]), ("rng_state.pth", {})):
        folder = shutil.copytree(output / "checkpoint-1", tmp_path / file / "checkpoint-1")
        torch.save(content, folder / file)
        with pytest.raises(SystemExit, match=r"error: the state of .* cannot be loaded") as exit:
            main(flags(tmp_path / file, *stage))
        assert "\n" not in str(exit.value)


def test_weights_that_the_run_does_not_have_are_refused(unbroken, flags, tmp_path):
    output, stage, _ = unbroken
    folder = shutil.copytree(output / "checkpoint-1", tmp_path / "checkpoint-1")
    if (folder / "mm_projector.bin").is_file():
        more = torch.load(folder / "mm_projector.bin", weights_only=True) | {"model.mm_projector.4.bias": torch.ones(1)}
        torch.save(more, folder / "mm_projector.bin")
    else:
        (file,) = (
            folder / name for name in ("adapter_model.safetensors", "model.safetensors") if (folder / name).exists()
        )
        name = "base_model.model.lm_head.lora_A.weight" if "adapter" in file.name else "model.layers.9.mlp.bias"
        save_file(load_file(file) | {name: torch.ones(1)}, file, metadata={"format": "pt"})
    with pytest.raises(SystemExit, match="has 1 weights that this run does not have"):
        main(flags(tmp_path, *stage))


def test_words_and_folders(unbroken, tmp_path, caplog):
    output, last = str(unbroken[0]), str(unbroken[0] / "checkpoint-3")
    for asked, overwrite, expected in (
        ("True", False, last),
        (True, True, last),
        ("False", False, None),
        ("None", False, last),
        (None, False, last),
        ("None", True, None),
        (last, True, last),
    ):
        assert chosen_checkpoint(asked, output, overwrite) == expected
    assert chosen_checkpoint(None, str(tmp_path), False) is None
    with pytest.raises(ValueError, match=r"True: .* has no complete checkpoint"):
        chosen_checkpoint("True", str(tmp_path), False)
    with pytest.raises(ValueError, match="absent: no such folder; give a checkpoint-N folder, True"):
        chosen_checkpoint("absent", output, False)
    (tmp_path / "checkpoint-4").mkdir()
    assert chosen_checkpoint(None, str(tmp_path), False) is None
    assert "the run starts from the beginning" in caplog.text
