"""Cross tokens of CrossGET in a run: they learn, are saved beside the checkpoint, loaded with it, and resumed."""

import json

import pytest
import torch
from runs import kill_at, losses
from safetensors.torch import load_file

from flowcut.attach import handle_of
from flowcut.hooks.learned import LEARNED, learned_on
from llava.model.builder import load_pretrained_model
from llava.train.learned import refuse_sharding
from llava.train.train import prepare, run, train

PRUNER = "crossget:budget=10,cross_tokens=new"
FILE = "crossget/cross_tokens.safetensors"


def tokens_of(model):
    return learned_on(handle_of(model).anatomy.encoders[0].model).offsets.detach().clone()


@pytest.fixture(scope="module")
def stage(data_folder):
    return ("--version", "v1", "--data_path", data_folder / "dialogues.json", "--pruner", PRUNER)


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory, flags, stage):
    output = tmp_path_factory.mktemp("cross")
    return output, train(argv=flags(output, *stage))


def test_they_learn_and_have_a_file_of_their_own(finetuned):
    output, trainer = finetuned
    trained = [name for name, value in trainer.model.named_parameters() if value.requires_grad]
    assert sum(LEARNED in name for name in trained) == 1
    assert not any("vision_tower" in name for name in trained if LEARNED not in name)
    tokens = tokens_of(trainer.model)
    assert float(tokens.abs().max()) > 0
    for folder in (output, output / "checkpoint-6"):
        assert torch.equal(load_file(folder / FILE)["offsets"], tokens)
        assert json.loads((folder / "config.json").read_text())["flowcut"] == {
            "method": "crossget",
            "budget": 10,
            "cross_tokens": FILE,
        }
        assert not any(LEARNED in name for name in load_file(folder / "model.safetensors"))
    assert not torch.equal(load_file(output / "checkpoint-3" / FILE)["offsets"], tokens)


def test_the_checkpoint_loads_with_them(finetuned):
    output, trainer = finetuned
    _, model, _, _ = load_pretrained_model(str(output), None, "llava", device="cpu")
    assert torch.equal(tokens_of(model), tokens_of(trainer.model))
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.encode_images(pixels)
        assert features.shape[1] == 10
        learned_on(handle_of(model).anatomy.encoders[0].model).offsets.zero_()
        assert not torch.equal(features, model.encode_images(pixels))


def test_a_killed_run_goes_on_with_them(finetuned, flags, stage, tmp_path):
    _, unbroken = finetuned
    kill_at(4, flags(tmp_path, *stage))
    resumed = run(prepare(argv=flags(tmp_path, *stage)))
    assert losses(resumed) == losses(unbroken)
    assert torch.equal(tokens_of(resumed.model), tokens_of(unbroken.model))


def test_checkpointed_layers_train_the_same(finetuned, flags, stage, tmp_path):
    trainer = train(argv=flags(tmp_path, *stage, "--gradient_checkpointing", True))
    assert losses(trainer) == pytest.approx(losses(finetuned[1]), rel=1e-4)
    assert torch.allclose(tokens_of(trainer.model), tokens_of(finetuned[1].model), atol=1e-4)


def test_a_projector_alone_brings_them_too(flags, llama_folder, data_folder, tmp_path):
    stage = ("--version", "plain", "--data_path", data_folder / "captions.json", "--tune_mm_mlp_adapter", True)
    trainer = train(argv=flags(tmp_path, *stage, "--pruner", PRUNER))
    saved = torch.load(tmp_path / "mm_projector.bin", weights_only=True)
    assert all("mm_projector" in name for name in saved)
    _, model, _, _ = load_pretrained_model(str(tmp_path), str(llama_folder), "llava", device="cpu")
    assert torch.equal(tokens_of(model), tokens_of(trainer.model))
    assert float(tokens_of(model).abs().max()) > 0


def test_weights_that_are_split_over_processes_are_refused(finetuned):
    with pytest.raises(ValueError, match="has weights of its own, which --deepspeed would split"):
        refuse_sharding(handle_of(finetuned[1].model), "zero3.json")
