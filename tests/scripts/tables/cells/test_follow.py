"""A program that is run for its result."""

import re

import pytest

from scripts.tables.cells.follow import Ended, follow


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            ["50%", "Traceback (most recent call last):", "torch.OutOfMemoryError: CUDA", "error: start again"],
            "torch.*",
        ),
        (["error: no such model", "more"], "no such model$"),
        (["killed"], "killed"),
        ([], "it said nothing"),
    ],
)
def test_the_reason_is_what_helps_most(said, reason):
    assert re.match(reason, Ended(1, said).reason)


def test_following_keeps_characters_whole(capfd):
    ended = follow(
        ["bash", "-c", 'printf "%05000d\\rwi\\303"; sleep 0.1; printf "\\251 \\303"; echo; echo "{\\"n\\": 1}"']
    )
    assert ended.status == 0
    assert ended.document == {"n": 1}
    assert "wié \ufffd" in capfd.readouterr().err
