"""Ways of counting: FlowCut's path by a plain loop and against FlowCut itself, budgets that cannot be met."""

import math

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from flowcut import FlowCut, attach, scores
from scripts.tables import tflops
from scripts.tables.paper.counting import PAPER_STEPS, RELEASED_STEPS, BudgetNotMet, Case, flowcut_path, in_decoder


@pytest.mark.parametrize(("ratio", "teraflops"), [(0.95, 0.311), (0.98, 0.342), (0.90, 0.270)])
def test_flowcut_by_a_plain_loop(ratio, teraflops):
    """Layers of a CLIP-L without the patch embedding; the sums were worked out beforehand, apart from this code."""
    tokens, flops, expected = 576, 0.0, []
    for layer in range(1, 25):
        expected.append(tokens)
        flops += 2 * (12 * (tokens + 1) * 1024**2 + 2 * (tokens + 1) ** 2 * 1024)
        if layer % 2 == 0 and layer < 23:
            selections = (22 - layer) // 2 + 2  # this one, those before layer 23, and the one behind it
            tokens -= round((tokens - 64) / math.sqrt(selections) * (1 - ratio**2))
        if layer == 23:
            tokens = 64
    assert flowcut_path(24, 576, 64, ratio, PAPER_STEPS) == expected
    assert flops / 1e12 == pytest.approx(teraflops, abs=0.0006)


@pytest.mark.parametrize(("budget", "ratio"), [(64, 0.95), (236, 0.7), (400, 0.2), (576, 0.5)])
def test_flowcut_against_flowcut(budget, ratio, monkeypatch):
    """The pruner itself on an encoder of 24 layers, told the same entropy everywhere."""
    monkeypatch.setattr(
        scores, "entropy", lambda weights: torch.full((len(weights),), ratio * math.log(weights.shape[1]))
    )
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=24, num_attention_heads=2, image_size=336, patch_size=14
    )
    model = CLIPVisionModel(config).eval()
    with torch.no_grad(), attach(model, FlowCut(budget)) as handle:
        model(torch.zeros(1, 3, 336, 336))
    assert flowcut_path(24, 576, budget, ratio, RELEASED_STEPS) == handle.trace.path()


def test_a_budget_that_cannot_be_met_is_told_apart_from_other_errors():
    case = Case(*tflops.configs(), 62, 0.95, tiles=5)
    with pytest.raises(BudgetNotMet, match="cannot be met"):
        in_decoder("pdrop:budget={}", case, 160)
    with pytest.raises(ValueError, match="unknown pruner") as error:
        in_decoder("pdorp:budget={}", case, 160)
    assert not isinstance(error.value, BudgetNotMet)
