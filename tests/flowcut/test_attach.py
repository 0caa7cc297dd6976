"""attach, detach, flowcut: the handle, what it refuses, and that a refused model is left as it was."""

import copy

import pytest
import torch
from hosts import PATCHES, Clip, HFLlava
from torch import nn

from flowcut import FlowCut, Random, attach, detach, flowcut
from flowcut.tap import VISION

CLIP, LLAVA = Clip(), HFLlava()


@pytest.fixture
def model():
    return CLIP.build()


def count(model):
    with torch.no_grad():
        return CLIP.outputs(model, CLIP.samples()[:1])[0].shape[0]


def test_one_line(model):
    assert flowcut(model, target_num=7) is model
    assert count(model) == 7
    detach(model)
    assert count(model) == PATCHES


def test_budget_between_calls(model):
    with attach(model, FlowCut(7)) as handle:
        assert count(model) == 7
        handle.budget = 12
        assert count(model) == handle.budget == 12
        with pytest.raises(ValueError, match="budget=0"):
            handle.budget = 0
        assert handle.budget == 12


def test_nothing_stays_behind_in_between(model):
    """The pruner's notes of one forward do not reach the next one: the same image gives the same scores again."""
    with attach(model, FlowCut(7), signals=True) as handle, torch.no_grad():
        CLIP.outputs(model, CLIP.samples()[:1])
        first = handle.trace
        CLIP.outputs(model, CLIP.samples()[1:])
        CLIP.outputs(model, CLIP.samples()[:1])
    for layer, signals in first.signals.items():
        assert torch.equal(signals["cumulative"][0], handle.trace.signals[layer]["cumulative"][0])


def test_a_copy_of_an_attached_model_is_attached(model):
    attach(model, FlowCut(7))
    twin = copy.deepcopy(model)
    detach(model)
    assert count(model) == PATCHES
    assert count(twin) == 7
    detach(twin)
    assert count(twin) == PATCHES


def test_twice_is_refused(model):
    handle = attach(model, FlowCut(7))
    with pytest.raises(ValueError, match="already has a pruner"):
        attach(model, Random(5))
    assert count(model) == 7
    handle.remove()
    with pytest.raises(ValueError, match="already removed"):
        handle.remove()
    with pytest.raises(ValueError, match="no pruner attached"):
        detach(model)
    assert count(model) == PATCHES


def test_the_tower_of_an_attached_llava_is_taken():
    llava = LLAVA.build()
    with attach(llava, FlowCut(7)), pytest.raises(ValueError, match="already has a pruner"):
        attach(LLAVA.tower(llava), FlowCut(7))


def test_unknown_models_are_told_the_known_families(model):
    for stranger in (nn.Linear(2, 2), LLAVA.build().model.language_model):
        with pytest.raises(
            ValueError, match=r"CLIPVisionModel \(transformers\); .*LlavaForC.*Qwen2_5_VL.*; LlavaLlama"
        ):
            attach(stranger, FlowCut(7))
    with pytest.raises(ValueError, match="is not a pruner"):
        attach(model, 64)


def test_attention_that_cannot_be_tapped(model):
    model.config._attn_implementation_internal = "homemade"
    hooks = len(model._forward_pre_hooks)
    with pytest.raises(ValueError, match="'homemade' cannot be tapped"):
        attach(model, FlowCut(7))
    assert len(model._forward_pre_hooks) == hooks


def test_cls_counts_where_it_is_passed_on():
    config = LLAVA.config()
    config.vision_feature_select_strategy = "full"
    llava = LLAVA.build(config)
    with attach(llava, FlowCut(7)) as handle, torch.no_grad():
        ids = torch.tensor([[1, *[config.image_token_id] * (PATCHES + 1), 2]])
        pixels = LLAVA.inputs(LLAVA.samples()[:1], "left")["pixel_values"]
        assert llava(input_ids=ids, pixel_values=pixels).logits.shape[1] == 2 + 7
        assert len(handle.trace.final[0]) == 6
        with pytest.raises(ValueError, match="leaves no patch"):
            handle.budget = 1


def test_features_read_too_early():
    config = LLAVA.config()
    config.vision_feature_layer = -5
    llava = LLAVA.build(config)
    inputs = LLAVA.inputs(LLAVA.samples()[:1], "left")
    with attach(llava, FlowCut(7)), pytest.raises(ValueError, match="features are read after encoder layer 3"):
        llava(**inputs)
    with attach(llava, FlowCut(7, last_layer=-5)), torch.no_grad():
        assert llava(**inputs).logits.shape[1] == 5 + 7


def test_nothing_is_under_way_after_a_forward(model):
    """Recomputation in the backward pass is not observed, and neither an error nor an interrupt leaves anything."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with attach(model, FlowCut(7)) as handle:
        model.train()(torch.ones(1, 3, 24, 24)).last_hidden_state.sum().backward()
        assert VISION.get() is None
        trace = handle.trace
        with pytest.raises(RuntimeError):
            model(torch.ones(1, 5, 24, 24))
        assert VISION.get() is None
        assert handle.trace is trace


def test_hidden_states_recorded_before_and_after_attaching(model):
    """transformers installs its recording hooks at the first request; either order records the shortened states."""
    fresh = CLIP.build()
    count(model)
    for subject in (model, fresh):
        with attach(subject, FlowCut(7)) as handle, torch.no_grad():
            pixels = torch.ones(1, 3, 24, 24)
            states = subject(pixels, output_hidden_states=True).hidden_states
        assert [state.shape[1] - 1 for state in states[1:]] == [counts[0] for counts in handle.trace.leaving]
