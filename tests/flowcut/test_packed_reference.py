"""A picture by hand through each family with a packed vision encoder: the same tokens stay, the same logits come."""

import pytest
import torch
from hosts import IMAGE, HFGlm4v, HFGlm4vMoe, HFQwen3VL, HFQwen3VLMoe, HFQwen35, HFQwen35Moe, Sample
from naive_packed import FastVInQwen3VL, Glm4v, Qwen3VL, Qwen35

from flowcut import FastV, FlowCut, attach

BUDGET = 5
BEFORE, AFTER, PICTURE = [1, 5], [7, 8, 9], 2
# The layer of the second cut: the last one that DeepStack adds to, or the second. And how much larger q and k are made.
CASES = {
    "qwen3_vl": (HFQwen3VL(), Qwen3VL, 2, 3),
    "qwen3_vl_moe": (HFQwen3VLMoe(), Qwen3VL, 2, 3),
    "qwen3_5": (HFQwen35(), Qwen35, None, 3),
    "qwen3_5_moe": (HFQwen35Moe(), Qwen35, None, 3),
    "glm4v": (HFGlm4v(), Glm4v, 1, 2),
    "glm4v_moe": (HFGlm4vMoe(), Glm4v, 1, 2),
}


def sharp(host, factor=3):
    """With attention that is far from even, so that tokens go in several steps."""
    model = host.build()
    for block in host.layers(model):
        block.attn.qkv.weight[: 2 * len(block.attn.qkv.weight) // 3] *= factor
    return model


def agrees(host, model, naive, pruner, layer):
    """-> the trace, once tokens and logits are those of the plain steps."""
    sample = Sample([*BEFORE, IMAGE, *AFTER], [PICTURE])
    pixels = host.media([sample])["pixel_values"]
    expected, groups = naive(model, BUDGET).logits((BEFORE, AFTER), pixels, host.grid(PICTURE), layer)
    with attach(model, pruner) as handle:
        logits = model(**host.inputs([sample], "right")).logits[0]
    assert (handle.trace.remaining[0][:, 1] // 4).tolist() == groups.tolist()
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    return handle.trace


@torch.no_grad()
@pytest.mark.parametrize("family", CASES)
def test_one_picture_in_plain_steps(family):
    host, naive, layer, factor = CASES[family]
    trace = agrees(host, sharp(host, factor), naive, FlowCut(BUDGET), layer)
    assert len(set(trace.leaving)) > 3  # several selections


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_cut_among_the_layers_that_deepstack_adds_to(layer):
    """What is left after it still gets the features that later layers add."""
    host = HFQwen3VL()
    agrees(host, sharp(host), FastVInQwen3VL, FastV.keeping(BUDGET, layer=layer + 1), layer)
