"""A table in its three forms."""

import csv
import io
from html.parser import HTMLParser

from scripts.tables.render.grid import Grid


class _Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows, self.inside = [], False

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        self.inside = tag in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1].append(data)

    def handle_endtag(self, tag):
        self.inside = False


def test_the_three_forms_say_the_same(tmp_path):
    made = Grid("T <1>", ["method", "a & b"], [["x, y", "1.0"], ["<z>", "-"]], ["note"])
    made.lines[0][1] = made.mark("1.0", "why")
    assert made.mark("2", "why") == "2 [1]"
    files = made.write(tmp_path / "table")
    assert [file.suffix for file in files] == [".md", ".csv", ".html"]
    expected = [made.header, *made.lines]
    assert list(csv.reader(io.StringIO(files[1].read_text()))) == expected
    parser = _Cells()
    parser.feed(files[2].read_text())
    assert parser.rows == expected
    markdown = [line for line in files[0].read_text().splitlines() if line.startswith("| ")]
    assert [line.strip("| ").split(" | ") for line in markdown if "---" not in line] == expected
    assert "[1] why" in files[0].read_text()
    assert "note" in files[2].read_text()
