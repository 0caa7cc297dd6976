"""A table in its three forms."""

import csv
import io
from html.parser import HTMLParser

from scripts.tables.render.grid import Grid, latex_text


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


def test_the_best_of_each_group_is_bold_in_html_markdown_and_latex():
    made = Grid("T_1", ["tokens", "method", "acc %", "ms"], left=2)
    made.lines = [
        ["576", "none", "99.0", "9"],
        ["64", "a_b", "80.0 [1]", "3"],
        ["64", "c", "81.5", "2"],
        ["64", "d", "-", "2"],
        ["32", "e", "70.0", "1"],
    ]
    made.groups = ["576 tokens", *["64 tokens"] * 3, "32 tokens"]
    made.better, made.unranked = {2: 1, 3: -1}, {0}
    assert made.best() == {(2, 2), (2, 3), (3, 3)}  # ties are both best; a single row is not
    page = made.html()
    assert page.count("<b>") == 3
    assert "<b>81.5</b>" in page
    assert page.index("64 tokens") < page.index("a_b") < page.index("32 tokens") < page.index(">e<")
    assert "| 64 | c | **81.5** | **2** |" in made.markdown()
    text = made.latex()
    assert r"\begin{tabular}{llrr}" in text
    assert r"64 & c & \textbf{81.5} & \textbf{2} \\" in text
    assert r"64 & a\_b & 80.0 [1] & 3 \\" in text
    assert r"tokens & method & acc \% & ms \\" in text
    assert text.count(r"\midrule") == text.count(r"\multicolumn") == 3
    assert "**" not in made.csv()


def test_latex_writes_special_characters_out():
    assert latex_text("a\\b~c^d&e%f$g#h_i{j}") == (
        r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d\&e\%f\$g\#h\_i\{j\}"
    )
