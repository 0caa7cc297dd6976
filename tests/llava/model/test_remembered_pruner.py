"""A checkpoint remembers its pruner: the config field, and what the loader makes of it."""

import json
import logging
import shutil

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from flowcut import FasterVLM, FlowCut, attach, detach
from llava.model.builder import load_pretrained_model, load_tokenizer, save_llava_checkpoint
from llava.model.remembered_pruner import remember, remembered_pruner

FIELD = {"method": "flowcut", "budget": 5, "last_layer": -2}
TRAINED = "flowcut:budget=5,last_layer=-2"
PIXELS = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def load(folder, base=None, **kwargs):
    return load_pretrained_model(str(folder), base and str(base), "any-name", device="cpu", **kwargs)[1]


def tokens(model) -> int:
    """How many visual tokens of a picture the language model gets."""
    with torch.no_grad():
        return model.encode_images(PIXELS).shape[1]


def write_field(folder, value):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"flowcut": value}))
    return folder


@pytest.fixture
def trained(llava_folder, tmp_path):
    """A copy of the tiny checkpoint whose config says that it was trained with five tokens."""
    return write_field(shutil.copytree(llava_folder, tmp_path / "trained"), FIELD)


@pytest.fixture
def said(caplog):
    """A function that gives the warnings so far, as text, and forgets them."""
    caplog.set_level(logging.WARNING, "llava.model.remembered_pruner")

    def take() -> list[str]:
        lines = [record.getMessage() for record in caplog.records if record.name == "llava.model.remembered_pruner"]
        caplog.clear()
        assert not any("\n" in line for line in lines)
        return lines

    return take


def test_the_loader_follows_the_checkpoint_and_says_so(trained, said):
    model = load(trained)
    assert said() == [f'{trained} was trained with {TRAINED} and runs with it; pruner="none" turns that off']
    assert tokens(model) == 5
    assert model.config.flowcut == FIELD
    with pytest.raises(ValueError, match="already has a pruner attached"):
        attach(model, FlowCut(budget=3, last_layer=-2))
    detach(model)
    assert tokens(model) == 16


def test_the_loader_is_told_otherwise(trained, said):
    assert tokens(load(trained, pruner="none")) == 16
    assert said() == []
    assert tokens(load(trained, pruner=TRAINED)) == 5
    assert said() == []
    for text, kept in (("flowcut:budget=3,last_layer=-2", 3), ("fastervlm:budget=5", 5)):
        assert tokens(load(trained, pruner=text)) == kept
        assert said() == [f"{trained} was trained with {TRAINED} but runs with {text}"]
    assert tokens(load(trained, pruner=f"{TRAINED},interval=1")) == 5
    assert said() == [f"{trained} was trained with {TRAINED} but runs with flowcut:budget=5,interval=1,last_layer=-2"]


def test_a_checkpoint_that_remembers_nothing(llava_folder, said):
    assert tokens(load(llava_folder)) == 16
    assert tokens(load(llava_folder, pruner="fastervlm:budget=4")) == 4
    assert said() == []


def test_a_projector_on_a_base_remembers_too(make_tiny_llava, llama_folder, tmp_path, said):
    model = make_tiny_llava(unfreeze=False, flowcut=FIELD)
    model.config.architectures = ["LlavaLlamaForCausalLM"]
    model.config.save_pretrained(tmp_path)
    projector = {name: value for name, value in model.state_dict().items() if "mm_projector" in name}
    torch.save(projector, tmp_path / "mm_projector.bin")
    assert tokens(load(tmp_path, llama_folder)) == 5
    assert "runs with it" in said()[0]
    assert tokens(load(tmp_path, llama_folder, pruner="none")) == 16
    assert tokens(load(tmp_path, llama_folder, pruner="fastervlm:budget=7")) == 7
    assert len(said()) == 1


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("flowcut:budget=5", "is not a dict of fields"),
        ({"budget": 5, "colour": "red"}, "'colour' is not a setting of flowcut"),
        ({"method": "later", "budget": 5}, "unknown pruner method 'later'; choose one of"),
        ({"budget": 5}, "flowcut:budget=5 does not fit .*: last_layer=-3 is not in this encoder"),
    ],
)
def test_a_field_that_cannot_be_used(trained, said, field, message):
    write_field(trained, field)
    with pytest.raises(ValueError, match=message) as error:
        load(trained)
    assert str(trained) in str(error.value)
    assert "\n" not in str(error.value)
    said()
    assert tokens(load(trained, pruner="none")) == 16
    assert tokens(load(trained, pruner="fastervlm:budget=7")) == 7  # the field is not followed, so it stops nothing
    assert "running with" in said()[0] or field == {"budget": 5}


def test_text_that_cannot_be_used(llava_folder, llama_folder):
    with pytest.raises(ValueError, match="unknown pruner 'flowcat:budget=5'"):
        load("/no/such/model", pruner="flowcat:budget=5")  # before anything is looked for
    with pytest.raises(ValueError, match=r"flowcut:budget=5 does not fit .*tiny-llava"):
        load(llava_folder, pruner="flowcut:budget=5")
    with pytest.raises(ValueError, match="has no vision tower"):
        load(llama_folder, pruner="fastervlm:budget=5")
    assert load(llama_folder, pruner="none") is not None


def test_the_field_survives_saving_and_plain_transformers(trained, llama_folder, tmp_path):
    model = load(trained)
    save_llava_checkpoint(model, load_tokenizer(str(llama_folder)), tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["flowcut"] == FIELD
    assert tokens(load(tmp_path / "again")) == 5
    left, right = (load(folder, pruner="none").state_dict() for folder in (trained, tmp_path / "again"))
    assert all(torch.equal(value, right[name]) for name, value in left.items()), "an attached pruner leaves no trace"

    plain = LlamaForCausalLM.from_pretrained(trained, config=LlamaConfig.from_pretrained(trained))
    assert plain.config.flowcut == FIELD
    plain.save_pretrained(tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["flowcut"] == FIELD


def test_remember_and_forget():
    config = LlamaConfig()
    assert remembered_pruner(config, "x") is remembered_pruner({}, "x") is remembered_pruner({"flowcut": None}, "x")
    remember(config, None)
    remember(config, FasterVLM(9))
    assert remembered_pruner(config, "x") == remembered_pruner(config.to_dict(), "x") == FasterVLM(9)
    remember(config, None)
    assert "flowcut" not in config.to_dict()
