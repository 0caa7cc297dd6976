"""FastV against its released code's numbers, against a loop, and its budgets."""

import pytest
import torch

from flowcut import FastV
from tests.flowcut.naive_llama import batch, prompt, run, tiny_llava
from tests.flowcut.recorded_llama import names, near, replay

PROMPTS = [prompt(0, 30, 6), prompt(1, 22, 1), prompt(2, 34, 3)]


@pytest.mark.parametrize("name", names("fastv"))
def test_recorded(name, tmp_path):
    case = replay(name, tmp_path)
    layer = case.case["K"]
    case.run(FastV.keeping(case.case["keep"], layer=layer))
    near(case.language.signals[layer - 1]["score"][0], case.gold["score"], 1e-5)
    assert torch.equal(case.language.final[0], case.gold["keep"])


def loop(model, given, pruner):
    def after(number, sequence, weights):
        if number == pruner.layer - 1:
            row = weights.mean(dim=0)[-1]
            best = sorted(sequence.visual, key=lambda column: -float(row[column]))[: pruner.keep]
            text = [column for column in range(len(sequence.tokens)) if sequence.tokens[column] < 0]
            sequence.keep(sorted(best + text), pruner.positions == "renumbered")

    return run(model, given, after=after)


@pytest.mark.parametrize("positions", ["original", "renumbered"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_each_sample_of_a_padded_batch_equals_the_loop(side, positions, tmp_path):
    model, pruner = tiny_llava(tmp_path), FastV.keeping(9, layer=2, positions=positions)
    logits, handle = batch(model, pruner, PROMPTS, side)
    for row, given in enumerate(PROMPTS):
        expected, sequence = loop(model, given, pruner)
        assert handle.trace.language.final[row].tolist() == [token for token in sequence.tokens if token >= 0]
        near(logits[row], expected, 1e-4)


@pytest.mark.parametrize(
    ("layer", "budget", "kept"), [(2, 192, 166), (2, 128, 98), (2, 64, 30), (3, 192, 152), (3, 128, 82), (3, 64, 11)]
)
def test_budgets_of_llava_7b(layer, budget, kept):
    schedule = FastV(budget, layer=layer).schedule(576, 32)
    assert schedule.left == (kept,)
    assert abs(schedule.inputs - budget) < 0.6


@pytest.mark.parametrize("fields", [{"layer": 0}, {"keep": 0}, {"positions": "kept"}])
def test_bad_fields(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        FastV(64, **fields)
