"""Counts behind cuts inside the language model, and their two means."""

import pytest

from flowcut.methods.schedule import build, check_kept, check_stages, shrinking, single
from flowcut.pruner import EncoderShape, ModelShape
from flowcut.registry import parse_pruner


def test_both_means_by_hand():
    schedule = build(100, 4, (0, 2), (50, 10))
    assert schedule.leaving == [50, 50, 10, 10]
    assert schedule.entering == [100, 50, 50, 10]
    assert (schedule.inputs, schedule.outputs) == (52.5, 30)
    assert (schedule.mean("inputs"), schedule.mean("outputs")) == (52.5, 30)


def test_merged_tokens_come_on_top_and_are_cut_again():
    schedule = build(20, 3, (0, 1), (10, 10), merged=lambda dropped: dropped // 5)
    assert (schedule.kept, schedule.left) == ((10, 10), (12, 10))


def test_never_more_than_there_are_and_at_least_so_many_less():
    assert build(5, 3, (0, 1), (9, 9)).left == (5, 5)
    assert build(5, 3, (0, 1), (9, 9), least=1).left == (4, 3)
    assert build(1, 3, (0, 1), (9, 9), least=1).left == (1, 1)


@pytest.mark.parametrize("counted", ["inputs", "outputs"])
def test_the_budget_is_met_within_a_step(counted):
    """A step of the last cut moves the mean by at most its share of the layers, and several cuts may step at once."""
    for tokens in (144, 576):
        for budget in range(tokens // 8, tokens, 7):
            schedule = shrinking(tokens, 32, (1, 7, 15), budget, counted)
            assert abs(schedule.mean(counted) - budget) <= 1
            assert list(schedule.left) == sorted(schedule.left, reverse=True)


def test_budgets_out_of_reach():
    with pytest.raises(ValueError, match=r"budget=20 .* 32 layers with 576 .* 1/7/15; use at least 37, or cut"):
        shrinking(576, 32, (1, 7, 15), 20)
    with pytest.raises(ValueError, match="when the first 2 read all 576 tokens; use at least 37, or keep="):
        single(576, 32, 2, 20)
    assert single(576, 32, 2, 37) == 1


MEETS = ["fastv:", "fastv:layer=1,", "dart:", "pdrop:", "pdrop:layers=1/3/8,", "vtw:", "sparsevlm:", "sparsevlm-plus:"]


@pytest.mark.parametrize("text", MEETS)
def test_the_least_budget_is_met_and_smaller_ones_are_not(text):
    counted = "outputs" if text.startswith("sparsevlm") else "inputs"
    for tokens, layers in ((576, 32), (100, 28), (576, 24)):
        shape = ModelShape((EncoderShape("e", 24, 24, 1),), layers)
        least = parse_pruner(f"{text}budget=64").least_budget(tokens, shape)
        assert 1 < least < tokens
        met = parse_pruner(f"{text}budget={least}").schedule(tokens, layers).mean(counted)
        assert abs(met - least) <= 1
        below = parse_pruner(f"{text}budget={least - 2}")
        if text == "vtw:":  # it moves by whole layers, and refuses nothing
            assert below.schedule(tokens, layers).mean(counted) > least - 2
        else:
            with pytest.raises(ValueError, match=f"use at least {least}[ ,]"):
                below.schedule(tokens, layers)


@pytest.mark.parametrize("text", ["fastv:keep=9,", "pdrop:keep=9/8/7,", "pdrop:ratio=0.5,", "vtw:layer=2,"])
def test_where_fields_say_how_many_stay_any_budget_goes(text):
    shape = ModelShape((EncoderShape("e", 24, 24, 1),), 32)
    assert parse_pruner(f"{text}budget=64").least_budget(576, shape) == 1
    parse_pruner(f"{text}budget=1").schedule(576, 32)


@pytest.mark.parametrize(("layers", "site", "least"), [(24, "vit", 1), (4, "vit", 72), (4, "output", 1)])
def test_tome_halves_in_each_block_at_most(layers, site, least):
    shape = ModelShape((EncoderShape("e", layers, layers, 1),), 32)
    pruner = parse_pruner(f"tome:budget=64,merge_site={site}")
    assert pruner.least_budget(576, shape) == least
    if least > 1:
        assert pruner.number(576, least, 0, layers - 2) == 288
        with pytest.raises(ValueError, match="use a larger budget"):
            pruner.number(576, least - 1, 0, layers - 2)


def test_a_token_that_is_always_sent_leaves_one_patch():
    shape = ModelShape((EncoderShape("e", 24, 24, 1, num_forwarded_special_tokens=1),))
    assert parse_pruner("flowcut:budget=64").least_budget(577, shape) == 2


@pytest.mark.parametrize("bad", [(), (3, 3), (4, 2), (0,), 5, None])
def test_layers_that_are_none(bad):
    with pytest.raises(ValueError, match="not ascending layer numbers >= 1; write, say, layers=2/8/16"):
        check_stages("layers", bad, lowest=1)


def test_kept_that_does_not_fit():
    check_kept("keep", None, 3)
    check_kept("keep", (3, 2, 1), 3)
    for bad in ((3, 2), (3, 2, 0)):
        with pytest.raises(ValueError, match="is not one number of tokens >= 1 for each of the 3 cuts"):
            check_kept("keep", bad, 3)
