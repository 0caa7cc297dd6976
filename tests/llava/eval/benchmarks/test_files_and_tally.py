"""Reading and writing benchmark files; means with what is missing left out."""

import pytest

from llava.eval.benchmarks.contract import Score
from llava.eval.benchmarks.files import absent, is_empty, read_json, read_rows, read_table, write_rows
from llava.eval.benchmarks.tally import accuracy, by_part, mean, percent, total


def test_rows_go_there_and_back(tmp_path):
    rows = [{"text": "方块\u2028 in two lines\nof text", "n": 1}, {"text": ""}]
    for name in ("a.jsonl", "deep/b.json"):
        write_rows(rows, tmp_path / name)
        assert read_rows(tmp_path / name) == rows
    assert not list(tmp_path.rglob("*.part"))


def test_blank_lines_and_a_byte_order_mark_do_no_harm(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}\r\n')  # JSON lines under that name: POPE
    assert read_rows(tmp_path / "a.json") == [{"a": 1}, {"a": 2}]


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text("<html>")
    with pytest.raises(ValueError, match=r"a\.json is no JSON .*download it again"):
        read_json(tmp_path / "a.json")


def test_tables_hold_large_cells_quotes_and_line_breaks(tmp_path):
    large = "A" * 300_000
    (tmp_path / "t.tsv").write_text(f'index\tquestion\timage\n1\t"a ""b""\nc"\t{large}\n')
    assert list(read_table(tmp_path / "t.tsv")) == [{"index": "1", "question": 'a "b"\nc', "image": large}]
    with pytest.raises(ValueError, match="does not exist"):
        list(read_table(tmp_path / "u.tsv"))


def test_empty_cells_are_those_of_the_tool_that_wrote_the_tables():
    assert all(is_empty(cell) for cell in (None, "", "nan", "NaN", "NAN", "None", "none", "N/A", "NULL"))
    assert not any(is_empty(cell) for cell in ("no", "0", "Na", "nothing", " "))


def test_absent_images_are_named_once(tmp_path):
    (tmp_path / "a.png").touch()
    rows = [{"image": "a.png"}, {"image": "b.png"}, {"image": ["b.png", "a.png"]}, {"text": "without"}]
    assert absent(rows, tmp_path) == ["b.png"]
    assert absent(rows, None) == []


def test_missing_scores_are_in_no_mean():
    scores = [Score(1, 1.0), Score(2, None, answered=False), Score(3, 0.0), Score(4, None)]
    assert percent(scores) == {"value": 50.0, "n": 2}
    assert percent(scores[1:2]) == {"value": None, "n": 0}
    summary = accuracy(scores)
    assert (summary["main"], summary["n"], summary["missing"]) == (50.0, 2, 1)
    assert accuracy([])["main"] is None


def test_parts_are_sorted_and_may_be_absent():
    scores = [
        Score(1, 1.0, parts={"words": 10}),
        Score(2, 1.0, parts={"words": 9}),
        Score(3, 0.0, parts={"words": None}),
    ]
    assert list(by_part(scores, "words")) == ["9", "10"]
    assert by_part(scores, "nothing") == {}


def test_a_sum_or_mean_over_something_missing_is_missing():
    assert total([1.0, 2.5]) == 3.5
    assert mean([1.0, 2.0]) == 1.5
    for values in ([1.0, None], []):
        assert total(values) is None
        assert mean(values) is None
