"""PyramidDrop against its released code's numbers, against a loop, and where the published schedules are known."""

import pytest
import torch

from flowcut import PyramidDrop, attach, parse_pruner
from tests.flowcut.hosts import Clip, HFLlava
from tests.flowcut.naive_llama import attention, batch, prompt, run, tiny_llava
from tests.flowcut.recorded_llama import names, near, replay

# The last image has no more than the budget and stays; as the longest row it keeps the batch as wide as it was.
BUDGET = 5
PROMPTS = [prompt(0, 30, 5), prompt(1, 22, 2), prompt(2, 12, 9), prompt(3, BUDGET, 40)]


@pytest.mark.parametrize("name", names("pdrop"))
def test_recorded(name, tmp_path):
    case = replay(name, tmp_path)
    layers, ratio = tuple(case.case["layer_list"]), case.case["image_token_ratio_list"][0]
    pruner = PyramidDrop(1, layers=layers, ratio=ratio)
    case.run(pruner)
    assert list(pruner.schedule(case.case["n_visual"], 8).kept) == case.case["keeps"]
    for stage, layer in enumerate(layers):
        near(case.language.signals[layer - 1]["score"][0], case.gold[f"stage{stage}.score"], 1e-5)
        assert torch.equal(case.language.kept[layer - 1][0], case.gold[f"stage{stage}.keep"])


def loop(model, given, layers, ratio, renumber):
    """The paper's text for one sample: in front of each listed layer, the last token's attention in that very layer."""
    total = given.image

    def before(number, sequence, _):
        if number not in layers or total <= BUDGET:
            return
        keep = int(total * ratio ** (layers.index(number) + 1))
        row = attention(model, number, sequence).mean(dim=0)[-1]
        best = sorted(sequence.visual, key=lambda column: -float(row[column]))[:keep]
        text = [column for column in range(len(sequence.tokens)) if sequence.tokens[column] < 0]
        sequence.keep(sorted(best + text), renumber)

    return run(model, given, before=before)


@pytest.mark.parametrize("positions", ["renumbered", "original"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_each_sample_of_a_padded_batch_equals_the_loop(side, positions, tmp_path):
    model = tiny_llava(tmp_path)
    logits, handle = batch(model, PyramidDrop(BUDGET, layers=(1, 3), ratio=0.6, positions=positions), PROMPTS, side)
    for row, given in enumerate(PROMPTS):
        expected, sequence = loop(model, given, (1, 3), 0.6, positions == "renumbered")
        kept = [token for token in sequence.tokens if token >= 0]
        assert handle.trace.language.final[row].tolist() == kept
        near(logits[row], expected, 1e-4)


@pytest.mark.parametrize(("budget", "kept"), [(192, (322, 180, 101)), (128, (242, 102, 42)), (64, (111, 21, 4))])
def test_budgets_of_llava_7b(budget, kept):
    """The ratios .560, .421 and .193 that the specification of the method works out for layers 2, 8, 16."""
    schedule = PyramidDrop(budget).schedule(576, 32)
    assert schedule.kept == kept
    assert abs(schedule.inputs - budget) < 0.2
    assert schedule.entering == [576] * 2 + [kept[0]] * 6 + [kept[1]] * 8 + [kept[2]] * 16


def test_the_papers_own_setting():
    schedule = parse_pruner("pdrop:budget=270,layers=8/16/24,ratio=0.5").schedule(576, 32)
    assert (schedule.kept, schedule.inputs) == ((288, 144, 72), 270)
    assert PyramidDrop(270, layers=(8, 16, 24)).schedule(576, 32).kept == (288, 144, 72)
    assert PyramidDrop(576).schedule(576, 32).entering == [576] * 32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": (8, 2)}, "layers=8/2 are not ascending layer numbers >= 1"),
        ({"layers": (0, 2)}, "layers=0/2 are not ascending"),
        ({"layers": ()}, "layers= are not ascending"),
        ({"ratio": 1.0}, r"ratio=1\.0 is not a share between 0 and 1"),
        ({"keep": (3, 2)}, "keep=3/2 is not one number of tokens >= 1 for each of the 3 cuts"),
        ({"positions": "kept"}, "positions='kept' is not allowed; choose original or renumbered"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        PyramidDrop(64, **fields)


def test_misfits():
    with pytest.raises(
        ValueError, match="PyramidDrop cuts inside a language model, and this is a vision encoder alone"
    ):
        attach(Clip().build(), PyramidDrop(64))
    with pytest.raises(ValueError, match="layers=16 is not in this decoder of only 4 layers; use at most 3"):
        attach(HFLlava().build(), PyramidDrop(64))
    with pytest.raises(ValueError, match="budget=64 cannot be met on average over 32 layers with 576 tokens") as error:
        PyramidDrop(64, layers=(8, 16, 24)).schedule(576, 32)
    assert "use at least 145" in str(error.value)
