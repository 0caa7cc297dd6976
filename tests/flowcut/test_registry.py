"""Pruners from text."""

import pytest

from flowcut import FasterVLM, FlowCut, Random, parse_pruner


@pytest.mark.parametrize(
    ("text", "pruner"),
    [
        ("none", None),
        ("flowcut:budget=64", FlowCut(64)),
        ("flowcut:budget=64,batch_coupling=max", FlowCut(64, batch_coupling="max")),
        (" flowcut: budget=64, history=0.25, semantic=false ", FlowCut(64, history=0.25, semantic=False)),
        ("flowcut-paper:budget=32", FlowCut.paper(32)),
        ("random:budget=64,seed=3", Random(64, seed=3)),
        ("fastervlm:budget=192", FasterVLM(192)),
    ],
)
def test_parse(text, pruner):
    assert parse_pruner(text) == pruner


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flowcat:budget=64", "choose none or one of flowcut"),
        ("", "unknown pruner"),
        ("flowcut", "write flowcut:budget=64"),
        ("flowcut:64", "'64' is no setting of flowcut"),
        ("flowcut:budget=64,colour=red", "'colour=red' is no setting of flowcut"),
        ("flowcut:budget=many", "budget=many is not a number"),
        ("flowcut:budget=0", "budget=0 is not a whole number"),
        ("flowcut:budget=64,value=perhaps", "neither true nor false"),
        ("flowcut:budget=64,batch_coupling=min", "batch_coupling='min' is not allowed"),
        ("none:budget=64", "unknown pruner"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(ValueError, match=message):
        parse_pruner(text)
