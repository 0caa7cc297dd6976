"""What is recorded, against the attention that transformers returns, and against pruners that run unwatched."""

import numpy as np
import pytest
import torch

from flowcut import FasterVLM, FlowCut, ToMe, VisionZip, attach
from flowcut.flow.record import Recorder, record, watch

KINDS = ("CLIPVisionModel", "SiglipVisionModel", "Dinov2WithRegistersModel")
PREFIX = {"CLIPVisionModel": 1, "SiglipVisionModel": 0, "Dinov2WithRegistersModel": 3}


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_flows_are_those_of_transformers_own_attention(kind, make_encoder, pixels):
    model, prefix = make_encoder(kind), PREFIX[kind]
    flow = record(model, pixels, [0, 7])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(pixels, output_attentions=True).attentions
    assert len(attentions) == 5
    for layer, attention in enumerate(attentions):
        matrix = attention[0].mean(dim=0)
        np.testing.assert_array_equal(flow.inflow[layer], matrix.argmax(dim=1))
        np.testing.assert_array_equal(flow.outflow[layer], matrix.argmax(dim=0))
        np.testing.assert_array_equal(flow.source[layer], matrix[prefix:, prefix:].argmax(dim=1))
        np.testing.assert_allclose(flow.maps[layer], matrix[[prefix, prefix + 7], prefix:], atol=1e-5)
        if prefix:
            np.testing.assert_allclose(flow.attention[layer], matrix[0, prefix:], atol=1e-5)
        assert flow.to_special[layer] == pytest.approx(float(matrix[prefix:, :prefix].sum(dim=1).mean()), abs=1e-5)


def test_values_are_those_of_the_projection(make_encoder, pixels):
    model = make_encoder("CLIPVisionModel")
    seen = []
    for layer in model.encoder.layers:
        layer.self_attn.v_proj.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    flow = record(model, pixels, [0])
    for layer, values in enumerate(seen):
        np.testing.assert_allclose(flow.strength[layer], values[1:].detach().abs().sum(dim=1), rtol=1e-5)
        heads = values.detach().view(17, 3, 8)
        similar = torch.stack([(heads[:, head] @ heads[0, head]).softmax(dim=0) for head in range(3)]).mean(dim=0)
        np.testing.assert_allclose(flow.similarity[layer], similar[1:], rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_recording_changes_nothing(kind, make_encoder, pixels):
    model = make_encoder(kind)
    with torch.no_grad():
        before = model(pixels).last_hidden_state
        seen = []
        with attach(model, Recorder(take=lambda view: seen.append(view.layer))) as handle:
            assert torch.equal(model(pixels).last_hidden_state, before)
        assert torch.equal(model(pixels).last_hidden_state, before)
    assert seen == [0, 1, 2, 3, 4]
    assert handle.trace.kept == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "pruner",
    [FlowCut(budget=5), FasterVLM(budget=5), VisionZip(budget=5), ToMe(budget=5)],
    ids=lambda p: type(p).__name__,
)
def test_a_watched_pruner_does_what_it_does_alone(kind, pruner, make_encoder, pixels):
    model = make_encoder(kind)
    with torch.no_grad(), attach(model, pruner) as handle:
        model(pixels)
    run = watch(model, pixels, pruner)
    final = handle.trace.final[0]
    assert np.flatnonzero(run.kept).tolist() == sorted(final[final >= 0].tolist())
    whole = record(model, pixels, [0]).strength
    np.testing.assert_allclose(run.strength[0], whole[0], rtol=1e-6)
    entered = (~np.isnan(run.strength)).sum(axis=1)
    patches = [counts[0] for counts in handle.trace.entering]
    if isinstance(pruner, VisionZip) and PREFIX[kind]:
        patches[-1] -= 1  # the CLS token that it sends on
    assert entered.tolist() == patches
    assert patches[0] == 16 > patches[-1]


def test_a_pruner_that_does_not_fit_says_so(make_encoder, pixels):
    with pytest.raises(ValueError, match="last_layer=-9 is not in this encoder"):
        watch(make_encoder("CLIPVisionModel"), pixels, FlowCut(budget=5, last_layer=-9))
