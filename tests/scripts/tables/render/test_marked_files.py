"""Pages that follow from cells: filled between their markers, checked without being touched."""

import pytest

from scripts.tables.render.marked_files import fill, keep_pages

PAGE = "before\n<!-- a -->\nold\n<!-- /a -->\nafter\n<!-- ab -->\nother\n<!-- /ab -->\n"


def test_only_what_stands_between_the_markers_changes():
    assert fill(PAGE, "a", "new") == PAGE.replace("old\n", "\nnew\n\n")
    with pytest.raises(ValueError, match="has no <!-- b -->"):
        fill(PAGE, "b", "new")


def test_a_stale_page_is_named_by_check_and_written_without(tmp_path, capsys):
    page, other = tmp_path / "page.md", tmp_path / "deeper" / "other.md"
    page.write_text("old")

    def ask(*flags):
        keep_pages("the.program", "", lambda results: {page: f"of {results}", other: "x"}, ["--results", "r", *flags])

    with pytest.raises(SystemExit, match=r"out of date: .*page.md, .*other.md; run python -m the.program"):
        ask("--check")
    assert page.read_text() == "old"
    assert not other.exists()
    ask()
    assert (page.read_text(), other.read_text()) == ("of r", "x")
    ask("--check")
    assert capsys.readouterr().out.splitlines()[-1] == "up to date"


def test_cells_that_cannot_be_read_are_one_line(tmp_path):
    def texts(results):
        raise ValueError(f"{results} holds no cells")

    with pytest.raises(ValueError, match="r holds no cells"):  # which every program tells in one line
        keep_pages("the.program", "", texts, ["--results", "r"])
