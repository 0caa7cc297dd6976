"""Placeholders, keys and refusals of the processor, without an engine: from a model's config alone."""

import importlib
import pkgutil
import re

import pytest
from conftest import prompt_about
from vllm.config import ModelConfig
from vllm.model_executor.models.registry import _MULTIMODAL_MODELS
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.plugins import load_general_plugins

from flowcut import anatomy
from flowcut_vllm import MODELS, REFUSED
from llava.model.remembered_pruner import FIELD
from tests.llava.eval.models.tiny import QWEN, write_tiny_checkpoint


def families():
    """The modules of the library's model families."""
    modules = [importlib.import_module(f"flowcut.anatomy.{one.name}") for one in pkgutil.iter_modules(anatomy.__path__)]
    return [module for module in modules if hasattr(module, "FAMILY")]


@pytest.fixture(scope="module")
def processor(embedded):
    load_general_plugins()

    def made(pruner):
        overrides = {} if pruner is None else {FIELD: pruner}
        config = ModelConfig(embedded, hf_overrides=overrides, dtype="float32", limit_mm_per_prompt={"image": 3})
        return MULTIMODAL_REGISTRY.create_processor(config)

    return made


def processed(processor, scenes, budget=None, count=1, **kwargs):
    pictures = processor.info.parse_mm_data({"image": [picture for picture, _ in scenes[:count]]})
    given = kwargs if budget is None else {"flowcut": {"budget": budget}, **kwargs}
    return processor(prompt_about("Is it?", pictures=count), pictures, hf_processor_mm_kwargs=given)


@pytest.mark.parametrize(("budget", "tokens"), [(None, 64), (1, 1), (576, 576), (9999, 576), (0.25, 144)])
def test_placeholders_are_as_many_as_tokens_kept(processor, scenes, budget, tokens):
    result = processed(processor({"budget": 64}), scenes, budget, count=2)
    image = processor({"budget": 64}).info.get_hf_config().image_token_index
    assert result["prompt_token_ids"].count(image) == 2 * tokens
    assert [place.length for place in result["mm_placeholders"]["image"]] == [tokens] * 2


def test_a_key_tells_pictures_pruners_and_budgets_apart(processor, scenes):
    one, other = processor({"budget": 64}), processor({"method": "random", "budget": 64})
    keys = [processed(one, scenes, budget)["mm_hashes"]["image"][0] for budget in (None, 32, 0.25, 64)]
    keys.append(processed(other, scenes)["mm_hashes"]["image"][0])
    keys.append(processed(one, scenes[1:])["mm_hashes"]["image"][0])
    keys.append(processed(processor(None), scenes)["mm_hashes"]["image"][0])
    assert keys[0] == keys[3], "the server's budget, asked for, is the server's budget"
    assert len(set(keys)) == len(keys) - 1


def test_a_stock_model_does_not_heed_a_budget(processor, scenes):
    """By the number of tokens a client sees that such a server does not prune."""
    result = processed(processor(None), scenes, 32)
    assert [place.length for place in result["mm_placeholders"]["image"]] == [576]


@pytest.mark.parametrize("given", [{"budget": 0}, {"budget": "all"}, {"method": "random"}, 64])
def test_a_bad_request_is_refused_in_one_line(processor, scenes, given):
    with pytest.raises(ValueError, match="budget") as error:
        processed(processor({"budget": 64}), scenes, flowcut=given)
    assert "\n" not in str(error.value)


def test_the_encoder_s_room_is_planned_for_all_tokens(processor):
    info = processor({"budget": 4}).info
    assert info.get_mm_max_tokens_per_item(4096, {"image": 1}) == {"image": 576}


@pytest.mark.parametrize(
    ("pruner", "message"),
    [
        ({"method": "fastv", "budget": 64}, "fastv cuts inside the language model"),
        ({"method": "cdpruner", "budget": 64}, "cdpruner reads the question"),
        ({"method": "flowcut", "budget": 0}, "budget=0 is not a whole number"),
        ({"budget": 64, "interval": "two"}, "does not fit"),
    ],
)
def test_a_server_with_such_a_pruner_does_not_start(processor, pruner, message):
    with pytest.raises(ValueError, match=message):
        processor(pruner)


def test_other_families_are_refused_with_a_pruner_and_stock_without(tmp_path):
    load_general_plugins()
    folder = str(write_tiny_checkpoint(tmp_path, "llava_onevision"))
    plain = ModelConfig(folder, dtype="float32", limit_mm_per_prompt={"image": 1})
    assert MULTIMODAL_REGISTRY.create_processor(plain).info.supported_mm_limits["image"] is None
    pruned = ModelConfig(folder, hf_overrides={FIELD: {"budget": 4}}, dtype="float32")
    with pytest.raises(ValueError, match="is not served pruned: it has no pruned class here yet"):
        MULTIMODAL_REGISTRY.create_processor(pruned)


@pytest.mark.parametrize("family", QWEN)
def test_a_pruned_qwen_takes_images_alone(tmp_path, family):
    load_general_plugins()
    folder = str(write_tiny_checkpoint(tmp_path, family))
    for pruner, limits in ((None, {"image": None, "video": None}), ({"budget": 4}, {"image": None})):
        config = ModelConfig(folder, hf_overrides={FIELD: pruner}, dtype="float32", limit_mm_per_prompt={"image": 1})
        processor = MULTIMODAL_REGISTRY.create_processor(config)
        assert processor.info.supported_mm_limits == limits
        assert "images_kwargs" in processor.info.supported_mm_processor_kwargs
    refused = {FIELD: {"method": "visionzip", "budget": 4}}
    with pytest.raises(ValueError, match="cannot merge patches in a model that joins several"):
        MULTIMODAL_REGISTRY.create_processor(ModelConfig(folder, hf_overrides=refused, dtype="float32"))


def test_every_family_of_the_library_is_served_or_refused():
    """None is served unpruned in silence."""
    known = {name for module in families() for name in re.findall(r"\w+ForConditionalGeneration", module.FAMILY)}
    assert {name for name in known if name in _MULTIMODAL_MODELS} == {*MODELS, *REFUSED}
