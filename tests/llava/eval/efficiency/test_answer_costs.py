"""FLOPs of answers against flowcut.cost by hand, and their means."""

import numpy as np
import pytest
from transformers import CLIPVisionConfig, LlamaConfig

from flowcut.cost import encoder_flops, prefill_flops, projector_flops
from llava.eval.efficiency.answer_costs import ModelSizes, costs_of, flops_of, mean_gflops, mean_tokens, spread
from llava.model import LlavaConfig

VISION = CLIPVisionConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=56, patch_size=14
)
LANGUAGE = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
SIZES = ModelSizes(VISION, LANGUAGE, 2)


def answer(tokens, visual, text=10, **more):
    return {"tokens": tokens, "visual_tokens": visual, "text_tokens": text, **more}


def test_without_a_picture_only_the_language_model_works():
    [cost] = flops_of([answer([], 0)], SIZES)
    assert (cost.encoder, cost.projector, cost.prefill) == (0, 0, prefill_flops(LANGUAGE, [10, 10]))


@pytest.mark.parametrize("inside", [False, True])
def test_one_picture(inside):
    [cost] = flops_of([answer([16, 8, 5], 5, language_tokens=[5, 3])], SIZES, inside)
    assert cost.encoder == encoder_flops(VISION, [16, 8], mlp_path=[8, 5] if inside else None)
    assert cost.projector == projector_flops(5, 32, 64)
    assert cost.prefill == prefill_flops(LANGUAGE, [15, 13])


def test_tiles_are_runs_of_their_own_and_all_their_tokens_are_projected():
    [cost] = flops_of([answer([48, 48, 24], 20)], SIZES)
    assert cost.encoder == 3 * encoder_flops(VISION, [16, 16])
    assert cost.projector == projector_flops(24, 32, 64)
    assert cost.prefill == prefill_flops(LANGUAGE, [30, 30])


def test_means():
    answers = [answer([16, 16, 4], 4, 10), answer([], 0, 20), answer([16, 8, 4], 4, 12, language_tokens=[4, 2])]
    found = mean_tokens(answers)
    assert found["by_layer"] == [10.67, 8, 2.67]
    assert (found["llm"], found["text"]) == (2.67, 14)
    assert (found["encoder_inputs"], found["encoder_outputs"]) == (9.33, 5.33)
    assert (found["llm_inputs"], found["llm_outputs"]) == (round((4 + 0 + 3) / 3, 2), round((4 + 0 + 2) / 3, 2))
    costs = flops_of(answers, SIZES)
    assert mean_gflops(costs)["total"] == pytest.approx(np.mean([cost.total for cost in costs]) / 1e9, abs=1e-4)
    blind = mean_tokens([answer([], 0)])
    assert (blind["encoder_inputs"], blind["by_layer"], blind["llm"]) == (None, [], 0)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_spread_is_mean_and_quartiles(count):
    values = np.random.default_rng(count).random(count).tolist()
    found = spread(values, 9)
    assert list(found) == ["mean", "p25", "median", "p75"]
    assert list(found.values()) == pytest.approx([np.mean(values), *np.quantile(values, (0.25, 0.5, 0.75))])


def test_flops_of_tiles():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    vision = CLIPVisionConfig(**sizes, image_size=56, patch_size=14)
    language = LlavaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    answer = {"tokens": [48, 48, 30], "visual_tokens": 21, "text_tokens": 9}
    [cost] = flops_of([answer], ModelSizes(vision, language, 2))
    assert cost.encoder == 3 * encoder_flops(vision, [16, 16])
    assert cost.projector == projector_flops(30, 32, 64)
    assert cost.prefill == prefill_flops(language, [30, 30])
    [merging] = flops_of(
        [answer | {"language_tokens": [21, 6]}], ModelSizes(vision, language, 2), merges_before_mlp=True
    )
    assert merging.encoder == 3 * encoder_flops(vision, [16, 16], mlp_path=[16, 10])
    assert merging.prefill == prefill_flops(language, [30, 15])


def test_costs_of_answers_are_means_over_them():
    times = {"ms": 4.0, "encode_ms": 1.0, "prefill_ms": 2.0}
    answers = [
        answer([16, 16, 4], 4, **times),
        answer([16, 16, 6], 6, **{name: 3 * time for name, time in times.items()}),
    ]
    costs = costs_of(answers, SIZES, False)
    assert costs["tokens"] == mean_tokens(answers)
    assert costs["gflops"] == mean_gflops(flops_of(answers, SIZES))
    assert (costs["ms"]["mean"], costs["ms"]["encode"]["median"], costs["ms"]["prefill"]["mean"]) == (8.0, 2.0, 4.0)
    assert costs_of(answers, None, False) == costs | {"gflops": None}
    assert costs_of([], SIZES, False) == {"tokens": None, "gflops": None, "ms": None}
