"""The program that shows how the KV cache grows; that its numbers are the real cache's is in the tests of ST3."""

import json

import pytest

from flowcut import ST3
from scripts import kv_cache


def test_by_formula(capsys):
    kv_cache.main(["--formula", "--new-tokens", "70", "--every", "64"])
    *_, last = capsys.readouterr().out.strip().splitlines()
    report = json.loads(last)
    assert report["pruner"] == "st3:budget=192"
    assert [row["tokens"] for row in report["rows"]] == [0, 64, 69]
    token = 32 * 2 * 4096 * 2 / 1e6  # half a MiB of a 7B model
    unpruned = [token * (638 + grown) for grown in (0, 64, 69)]
    assert [row["unpruned_mb"] for row in report["rows"]] == pytest.approx(unpruned)
    entries = sum(ST3(192).left(ST3(192).schedule(576, 32).entering, 64)) / 32
    assert report["rows"][1]["pruned_mb"] == pytest.approx(token * (62 + 64 + entries))
    assert report["rows"][1]["share"] < 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--formula", "--pruner", "flowcut:budget=64"], "FlowCut has no schedule over decoder layers"),
        (["--every", "0"], "--new-tokens and --every are numbers of tokens >= 1"),
    ],
)
def test_refused_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit):
        kv_cache.main(arguments)
    assert message in capsys.readouterr().err
