"""DART against a loop, by hand, and its budgets. No recorded numbers of its code exist."""

import pytest
import torch

from flowcut import DART, attach, parse_pruner
from tests.flowcut.hosts import Clip, HFLlava
from tests.flowcut.naive_llama import TEXT_IN_FRONT, batch, prompt, queries_and_keys, run, tiny_llava
from tests.flowcut.recorded_llama import near

PROMPTS = [prompt(0, 30, 6), prompt(1, 22, 1), prompt(2, 34, 0)]


def cosine(one, other):
    return float(one @ other / (one.norm() * other.norm()))


def loop(model, given, pruner):
    """One sample: pivots by their keys, each takes the tokens least like it."""
    strength = {}

    def before(number, sequence, _):
        if number == pruner.layer - 1:
            _, keys = queries_and_keys(model, number, sequence)
            keys = keys[::2]  # each key head stands there twice, once for each of its query heads
            strength.update(enumerate(sum(head.abs().sum(dim=1) for head in keys).tolist()))

    def after(number, sequence, _):
        if number != pruner.layer - 1:
            return
        visual = sequence.visual
        text = [column for column in range(len(sequence.tokens)) if column > visual[-1]] or list(range(TEXT_IN_FRONT))
        strongest = lambda columns, count: sorted(sorted(columns, key=lambda c: -strength[c])[:count])  # noqa: E731
        taken = strongest(visual, min(pruner.image_pivots, pruner.keep))
        pivots = taken + strongest(text, pruner.text_pivots)
        wanted = pruner.keep - len(taken)
        states = model.model.norm(sequence.states)
        for turn, pivot in enumerate(pivots):
            share = wanted // len(pivots) + (turn < wanted % len(pivots))
            free = [column for column in visual if column not in taken]
            taken = taken + sorted(free, key=lambda column: cosine(states[column], states[pivot]))[:share]
        everything = [column for column in range(len(sequence.tokens)) if sequence.tokens[column] < 0]
        sequence.keep(sorted(everything + taken), pruner.positions == "renumbered")

    return run(model, given, before=before, after=after)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "pruner",
    [
        DART(1, keep=13),
        DART(1, layer=1, keep=20, positions="renumbered"),
        DART(1, keep=3),
        DART(1, keep=9, text_pivots=0),
    ],
)
def test_each_sample_of_a_padded_batch_equals_the_loop(pruner, side, tmp_path):
    model = tiny_llava(tmp_path)
    model.model.norm.weight.data = torch.linspace(0.2, 3, 32)  # stretched, so that cosines behind it differ
    logits, handle = batch(model, pruner, PROMPTS, side)
    for row, given in enumerate(PROMPTS):
        expected, sequence = loop(model, given, pruner)
        assert handle.trace.language.final[row].tolist() == [token for token in sequence.tokens if token >= 0]
        assert len(handle.trace.language.final[row]) == pruner.keep
        near(logits[row], expected, 1e-4)


def test_padding_on_the_left_that_counts_as_places(tmp_path):
    """Without position_ids transformers counts padding too; rotated keys are read as if there were none."""
    model, given = tiny_llava(tmp_path), PROMPTS[0]
    chosen = []
    for padding in (0, 7):
        embeds = torch.cat([torch.zeros(padding, 32), given.embeds])[None]
        index = torch.cat([torch.full((padding,), -1), given.index])[None]
        mask = (torch.arange(embeds.shape[1]) >= padding).long()[None]
        with torch.no_grad(), attach(model, DART(1, keep=12)) as handle:
            model(inputs_embeds=embeds, attention_mask=mask, image_index=index)
        chosen.append(handle.trace.language.final[0].tolist())
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(("budget", "kept"), [(192, 166), (128, 98), (64, 30)])
def test_budgets_of_llava_7b(budget, kept):
    """A single cut in front of layer 2, as FastV's: (32 T - 2 * 576) / 30."""
    schedule = DART(budget).schedule(576, 32)
    assert schedule.left == (kept,)
    assert abs(schedule.inputs - budget) < 0.6
    assert DART(576).schedule(576, 32).left == (576,)
    assert DART(5, keep=900).schedule(576, 32).left == (576,)


def test_text():
    assert parse_pruner("dart:budget=64,layer=5,image_pivots=2") == DART(64, layer=5, image_pivots=2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer": 0}, "layer=0 is not a layer's number >= 1; the paper's is 2"),
        ({"keep": 0}, "keep=0 is not a number of tokens >= 1"),
        ({"image_pivots": 0}, "image_pivots=0, text_pivots=4: use at least 1 image pivot"),
        ({"text_pivots": -1}, "text_pivots=-1: use at least 1 image pivot and at least 0"),
        ({"positions": "kept"}, "positions='kept' is not allowed; choose original or renumbered"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        DART(64, **fields)


def test_misfits():
    with pytest.raises(ValueError, match="DART cuts inside a language model"):
        attach(Clip().build(), DART(64))
    with pytest.raises(ValueError, match="layer=4 is not in this decoder of only 4 layers"):
        attach(HFLlava().build(), DART(64, layer=4))
    with pytest.raises(ValueError, match="budget=20 cannot be met on average over 32 layers"):
        DART(20).schedule(576, 32)
