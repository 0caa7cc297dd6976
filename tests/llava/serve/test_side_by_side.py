"""Two methods about one question: answers, times, tables and history."""

from dataclasses import replace

import pytest

from llava.serve.figure_tables import figure_table, history_table
from llava.serve.session import ROUNDS, Wish
from llava.serve.side_by_side import MOST_ROWS, HistoryRow, SideBySide

TEXT = "what is in this image"
NONE = Wish("tiny", 0.0, max_new_tokens=3, timed=True)
PRUNED = replace(NONE, method="fastervlm", budget=5)
NAMES = ["none", "fastervlm:budget=5"]


def ask(both, controller, path, wishes, text=TEXT):
    both.add(text, path, wishes, controller)
    return list(both.answer(wishes, controller))


@pytest.fixture(scope="module")
def asked(controller, pictures, tmp_path_factory):
    """One question, with both methods."""
    path = str(tmp_path_factory.mktemp("picture") / "a.png")
    pictures[0].save(path)
    both = SideBySide()
    ask(both, controller, path, [NONE, PRUNED])
    return both


def test_both_answer_and_are_timed_in_the_same_rounds(asked):
    assert [side.figures["visual_tokens"] for side in asked.sides] == [16, 5]
    assert [timing["pruner"] for timing in asked.timings] == NAMES
    assert [timing["visual_tokens"] for timing in asked.timings] == [16, 5]
    assert asked.rounds == ROUNDS
    assert asked.sides[0].figures["comparison"] is None  # not timed twice
    for row, tokens, timing in zip(asked.rows, ((16, 16), (16, 5)), asked.timings, strict=True):
        assert (row.number, row.question, row.tokens, row.ttft_ms) == (1, TEXT, tokens, timing["ttft_ms"])
    assert [row.method for row in asked.rows] == NAMES
    assert [row.answer for row in asked.rows] == [side.last_turn()[1] for side in asked.sides]


def times(first, low, high, pruner="none"):
    return {"pruner": pruner, "encode_ms": 1.0, "prefill_ms": 2.0, "ttft_ms": first, "ttft_range_ms": [low, high]}


def test_the_table_says_how_times_were_measured(asked):
    both = replace(asked, timings=[times(30.0, 28.0, 31.0), times(20.0, 19.0, 27.0, NAMES[1])])
    table = figure_table(both, NAMES)
    assert "<td>16 → 16</td><td>16 → 5</td>" in table
    assert f"medians of {ROUNDS} runs, the methods in turns, after one run to warm up" in table
    assert "<td>30.0 <small>(28.0 - 31.0)</small></td>" in table
    assert "fastervlm:budget=5 gives its first token 1.50 times as fast" in table
    both.timings[1] = times(20.0, 19.0, 28.5, NAMES[1])
    assert "overlap, so they show no difference" in figure_table(both, NAMES)
    assert "times as fast" not in figure_table(both, NAMES)
    both.problem = "OutOfMemoryError: too <much>"
    assert "could not be measured: OutOfMemoryError: too &lt;much&gt;" in figure_table(both, NAMES)


def test_one_method_alone_and_without_times(controller, files):
    both = SideBySide()
    ask(both, controller, files[0], [PRUNED])
    assert both.timings[0]["pruner"] == NAMES[1]
    assert both.timings[1] is None
    assert "in turns" not in figure_table(both, NAMES[1:])
    ask(both, controller, files[0], [replace(PRUNED, timed=False)])
    table = figure_table(both, NAMES[1:])
    assert "No times were measured" in table
    assert "ms" not in table
    assert both.sides[0].turns == 2


def test_the_same_method_twice_has_one_time(controller, files):
    both = SideBySide()
    ask(both, controller, files[0], [PRUNED, PRUNED])
    assert both.timings[0] == both.timings[1] is not None
    assert "in turns" not in figure_table(both, [NAMES[1]] * 2)


def test_without_a_picture_nothing_is_compared(controller):
    both = SideBySide()
    ask(both, controller, None, [NONE, PRUNED])
    table = figure_table(both, NAMES)
    assert "There was no picture, so nothing was pruned." in table
    assert "→" not in table
    assert both.rows[0].tokens == ()


def test_tokens_inside_the_language_model_are_told(controller, files):
    both = SideBySide()
    ask(both, controller, files[0], [NONE, replace(NONE, method="fastv", budget=9, settings="layer=1")])
    assert [row.tokens for row in both.rows] == [(16, 16), (16, 16, 2)]
    table = figure_table(both, ["none", "fastv"])
    assert "<td>16 → 16</td><td>16 → 16 → 2</td>" in table
    assert "<td>16.0</td><td>9.0</td>" in table  # the budget is a mean over the two layers


def test_a_side_that_fails_leaves_the_other_one(controller, files):
    both, wrong = SideBySide(), replace(PRUNED, settings="kepp=4")
    for wishes, fine in (([wrong, NONE], 1), ([NONE, wrong], 0)):
        ask(both, controller, files[0], wishes)
        assert both.sides[fine].figures["visual_tokens"] == 16
        assert both.sides[1 - fine].figures is None
        table = figure_table(both, [wish.pruner for wish in wishes])
        assert "&#x27;kepp=4&#x27; is not a setting of fastervlm" in table
        assert "is not a setting" in both.rows[-2 + 1 - fine].answer


def test_a_second_side_that_comes_later_takes_over_what_was_said(controller, files):
    both = SideBySide()
    ask(both, controller, files[0], [NONE])
    ask(both, controller, files[0], [NONE, PRUNED], "how many")
    assert [side.turns for side in both.sides] == [2, 2]
    assert both.sides[1].shown()[:2] == both.sides[0].shown()[:2]
    ask(both, controller, files[0], [NONE])
    assert [side.turns for side in both.sides] == [3, 2]
    assert both.again([NONE, PRUNED])
    list(both.answer([NONE, PRUNED], controller))
    assert [side.turns for side in both.sides] == [3, 3]


@pytest.mark.parametrize("end", ["stop", "clear", "add", "again"])
def test_what_comes_next_ends_answers_under_way(controller, files, engine, end):
    both = SideBySide()
    long = replace(NONE, max_new_tokens=200)
    both.add(TEXT, files[0], [long, long], controller)
    answers = both.answer([long, long], controller)
    assert next(answers) == 0
    arguments = {"add": ("how many", files[0], [NONE], controller), "again": ([NONE],)}.get(end, ())
    getattr(both, end)(*arguments)
    assert list(answers) == []
    assert both.rows == []
    if end in ("add", "again"):
        list(both.answer([NONE], controller))
        assert [row.number for row in both.rows] == [2]
    with engine._lock:  # the generation that was left alone has ended
        pass


def test_clearing_keeps_the_history(asked):
    both = replace(asked, rows=list(asked.rows))
    both.clear()
    assert len(both.rows) == 2
    assert not any(side.turns for side in both.sides)
    assert not both.again([NONE])
    assert figure_table(both, NAMES) == ""


def test_the_history_is_escaped_short_and_newest_first():
    rows = [HistoryRow(1, "a" * 200, "none", "<b>x</b>", (576, 64), 12.34, 3), HistoryRow(2, "b\nc", "random", "y")]
    table = history_table(rows)
    assert table.index("b c") < table.index("a" * 79 + "…")
    assert "&lt;b&gt;x&lt;/b&gt;" in table
    assert "<b>x" not in table
    assert "<td>576 → 64</td><td>12.3</td><td>3</td>" in table
    assert "<td>-</td><td>-</td><td>-</td>" in table
    assert "Each answer gets a line here" in history_table([])


def test_the_history_has_an_end(controller, files):
    both = SideBySide(rows=[HistoryRow(0, "q", "none", "a")] * MOST_ROWS)
    ask(both, controller, files[0], [replace(NONE, timed=False, max_new_tokens=1)])
    assert len(both.rows) == MOST_ROWS
    assert both.rows[-1].question == TEXT
