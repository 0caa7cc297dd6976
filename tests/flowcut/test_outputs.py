"""What a model under a pruner returns has the form of what it returns without one."""

import inspect

import pytest
import torch
from hosts import DEPTH, pixels
from laws import built, hosts

from flowcut import FastV, FlowCut, attach

FAMILIES = ["llava_hf", "llava_next_hf", "llava_onevision", "video_llava", "qwen2_vl", "qwen2_5_vl"]
ENCODERS = ["clip", "siglip", "dinov2"]
ROOMY = FastV.keeping(30, layer=2)  # nothing is cut in the encoder


@pytest.fixture(autouse=True)
def _no_gradients(no_gradients):
    pass


def form(value):
    """Types all the way down, with shapes but for the number of tokens."""
    if isinstance(value, torch.Tensor):
        return "tensor", value.ndim, len(value) if value.ndim > 2 else None, value.shape[-1]
    if isinstance(value, tuple | list):
        return type(value).__name__, [form(item) for item in value]
    if hasattr(value, "items"):
        return type(value).__name__, {name: form(item) for name, item in value.items()}
    return value


def sources(name, model):
    """(method that encodes, its arguments) for images, and for videos where the family has them."""
    inputs = hosts()[name].inputs(hosts()[name].samples(), "right")
    if "pixel_values_images" in inputs:
        inputs["pixel_values"] = inputs["pixel_values_images"]
    for method in ("get_image_features", "get_video_features"):
        names = inspect.signature(getattr(type(model.model), method, str.join)).parameters
        call = {key: inputs[key] for key in names if key in inputs}
        if any("pixel" in key for key in call):
            yield method, call


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pruner", [ROOMY, FlowCut(20)], ids=["FastV", "FlowCut"])
def test_features_come_as_from_the_unpruned_class(family, pruner):
    """Tuples where tuples are asked for, by argument or config, and one entry an image or video."""
    model = built(family)
    asked = [{}, {"return_dict": False}, {"return_dict": True}, {"output_hidden_states": True}]
    for method, call in sources(family, model):
        encode = getattr(model.model, method)
        expected = [encode(**call, **more) for more in asked]
        with attach(model, pruner):
            encode = getattr(model.model, method)
            for more, outputs in zip(asked, expected, strict=True):
                assert form(encode(**call, **more)) == form(outputs)
            try:
                model.model.config.return_dict = False
                assert form(encode(**call)) == form(expected[1])
            finally:
                model.model.config.return_dict = True


@pytest.mark.parametrize("family", ENCODERS)
def test_states_and_attentions_of_a_batch_are_those_of_each_image(family):
    """Also of layers in which images keep different numbers of patches; 0 stands for what an image has not."""
    model, images = built(family, "eager"), pixels([0, 1, 2, 3])
    asked = {"output_hidden_states": True, "output_attentions": True}
    with attach(model, FlowCut(10)) as handle:
        batch = model(images, **asked)
        assert len({count for counts in handle.trace.entering for count in counts}) > 3
        assert any(len(set(counts)) > 1 for counts in handle.trace.entering)
        assert len(batch.hidden_states) == DEPTH + 1
        assert len(batch.attentions) == DEPTH
        for row, image in enumerate(images):
            alone = model(image[None], **asked)
            for states, own in zip(batch.hidden_states, alone.hidden_states, strict=True):
                length = own.shape[1]
                torch.testing.assert_close(states[row, :length], own[0], atol=2e-4, rtol=1e-4)
                assert not states[row, length:].any()
            for weights, own in zip(batch.attentions, alone.attentions, strict=True):
                length = own.shape[-1]
                torch.testing.assert_close(weights[row, :, :length, :length], own[0], atol=2e-4, rtol=1e-4)
                assert not weights[row, :, length:].any()
        names = model(images, **asked)
        for one, other in zip(names.to_tuple(), model(images, **asked, return_dict=False), strict=True):
            assert form(one) == form(other)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pruner", [FastV.keeping(10, layer=2), FlowCut(20)], ids=["FastV", "FlowCut"])
def test_the_language_model_tells_of_every_layer(family, pruner):
    model = built(family, "eager")
    inputs = hosts()[family].inputs(hosts()[family].samples(), "right")
    with attach(model, pruner):
        outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    layers = model.config.text_config.num_hidden_layers
    assert [len(states) for states in outputs.hidden_states] == [len(inputs["input_ids"])] * (layers + 1)
    entered = [states.shape[1] for states in outputs.hidden_states[:-1]]
    assert [weights.shape[-2] for weights in outputs.attentions] == entered


@pytest.mark.parametrize("family", [*ENCODERS, *FAMILIES])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_no_config_names_the_tap(family, implementation):
    """Neither before nor after a forward, nor after one that an error ended."""
    model, host = built(family, implementation), hosts()[family]
    pruner = FastV.keeping(10, layer=2) if family in FAMILIES else FlowCut(10)

    def names():
        return {part.config._attn_implementation for part in model.modules() if hasattr(part, "config")}

    def stop(*_):
        raise RuntimeError("stopped")

    before, attention = names(), next(p for p in host.tower(model).modules() if hasattr(p, "is_causal"))
    with attach(model, pruner):
        assert names() == before
        host.outputs(model, host.samples()[:1])
        assert names() == before
        inside = next(part for part in attention.children())
        hook = inside.register_forward_hook(stop)
        with pytest.raises(RuntimeError, match="stopped"):
            host.outputs(model, host.samples()[1:2])
        hook.remove()
        assert names() == before
