"""Reading and writing files: whole or not at all, damage named in one line."""

import pytest

from llava.eval.files import (
    absent,
    drop_half_line,
    is_empty,
    read_json,
    read_rows,
    read_table,
    write_atomic,
    write_rows,
)


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
    with pytest.raises(ValueError, match=r"a\.json is not JSON .*download it again"):
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


def test_half_a_line_is_cut_off_and_nothing_else(tmp_path):
    file = tmp_path / "a.jsonl"
    drop_half_line(file)
    assert not file.exists()
    for content, left in (("one\ntwo", "one\n"), ("one\ntwo\n", "one\ntwo\n"), ("half", "")):
        file.write_text(content)
        drop_half_line(file)
        assert file.read_text() == left


def test_a_file_is_replaced_as_a_whole(tmp_path):
    file = tmp_path / "a.txt"
    write_atomic(file, "first")
    write_atomic(file, "再")
    assert file.read_text("utf-8") == "再"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]
