"""MMMU: prompts, the official parser's rules, guesses, open answers, parquet."""

import io

import pytest

from llava.eval.benchmarks import mmmu
from llava.eval.benchmarks.mmmu_parse import multiple_choice_letter, open_answer_right
from llava.eval.files import read_rows
from tests.llava.eval.data_tree import encoded

OPTIONS = {"A": "oil", "B": "ink", "C": "chalk", "D": "clay"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("B. ink", "B"),
        ("(A) or rather (C)", "C"),  # the last one
        ("(C) or rather (A)", "A"),
        ("A is wrong, so (B)", "B"),  # brackets before bare letters
        ("A B A ", "A"),
        ("A.B", "B"),  # the second letter stands before the closing space
        ("A. or B.", "B"),
        ("C. or B. or so", "B"),
        ("PANDA is wrong", "A"),  # a letter that ends a word counts ...
        ("B or PANDA so", "B"),  # ... after one that stands alone
        ("it is chalk", None),  # too short for an option's text to count
        ("in this picture it is surely chalk", "C"),
        ("not oil, in this picture it is Ink", "B"),
        ("nothing of these in this picture at all", None),
        ("", None),
        ("b", None),
        (";'B';", "B"),
        ("';B;'", None),  # marks are taken off in a fixed order, once each
    ],
)
def test_letters(text, wanted):
    assert multiple_choice_letter(text, OPTIONS) == wanted


@pytest.mark.parametrize(
    ("text", "truths", "right"),
    [
        ("3.14", ["3.14"], True),
        ("It is 3.141", ["3.14"], True),  # rounded to two decimals
        ("3.15", ["3.14"], False),
        ("1,000 meters", ["1000"], True),
        ("1e3", ["1000"], True),
        ("x = 5", ["5"], True),
        ("so the result is 12 cm", ["12"], True),
        ("The cell wall.", ["cell wall"], True),
        ("Wall", ["cell wall", "wall"], True),
        ("Window", ["wall"], False),
        ("a", ["a"], True),
        ("banana", ["a"], False),  # one letter counts only beside a space
        ("is it an a or b", ["b"], True),
        ("", ["wall"], False),
        ("First 3. Then the answer is 4", ["4"], True),
    ],
)
def test_open_answers(text, truths, right):
    assert open_answer_right(text, truths) is right


def test_questions_as_asked(folder_of):
    bench, split, folder = folder_of("mmmu")
    rows = bench.build(folder, split)
    assert rows[0]["text"] == (
        "Which? <image 1>\nA. oil\nB. ink\nC. chalk\nD. clay\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert "\nF. 6\n\n" in rows[1]["text"]
    assert rows[2]["text"] == "How much is <image 1>?\n\nAnswer the question using a single word or phrase."
    assert (rows[0]["category"], rows[0]["question_id"]) == ("Art_Theory", "validation_Art_Theory_1")


def test_scores_by_hand(folder_of, scored_with):
    replies = iter(["(B)", "F", "about 3.14", "window"])
    summary, scores = scored_with(folder_of("mmmu"), lambda row: next(replies))
    assert [one.value for one in scores] == [1, 1, 1, 0]
    assert summary["main"] == 75.0
    assert summary["parts"]["kind"]["open"] == {"value": 50.0, "n": 2}
    assert summary["parts"]["subject"]["Math"] == {"value": 100.0, "n": 2}
    assert summary["parts"]["guesses are wrong"] == {"0 guessed": {"value": 75.0, "n": 4}}


def test_guesses_depend_on_the_question_alone_and_are_told():
    def sample(number, text="?"):
        return mmmu.Sample(f"validation_Math_{number}", (), ["A"], {"kind": "multiple-choice"}, OPTIONS, text)

    scores = [mmmu.score(sample(number)) for number in range(400)]
    assert scores[::-1] == [mmmu.score(sample(number, "!")) for number in reversed(range(400))]
    assert {one.parsed for one in scores} == {f"guess {letter}" for letter in "ABCD"}
    summary = mmmu.aggregate(scores)
    assert 17 < summary["main"] < 33  # a quarter, four standard errors either way
    assert summary["parts"]["guesses are wrong"] == {"400 guessed": {"value": 0.0, "n": 400}}
    assert mmmu.score(sample(1, None)).value is None


@pytest.mark.parametrize("name", ["ai2d", "mmmu"])
def test_parquet_of_the_hub_is_unpacked(folder_of, tmp_path, name):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    bench, split, folder = folder_of(name)
    rows_file = split.needs[0].paths[0]
    wanted = bench.build(folder, split)
    hub = tmp_path / "hub"
    pictures = [{"bytes": encoded(number), "path": None} for number in range(4)]
    field = "image" if name == "ai2d" else "image_1"
    rows = [
        {**{key: value for key, value in row.items() if key not in ("image", "question_id")}, field: picture}
        for row, picture in zip(read_rows(folder / rows_file), pictures, strict=True)
    ]
    for row in rows:
        row["answer"] = str(row["answer"])
    (hub / "data").mkdir(parents=True)
    pattern = "test" if name == "ai2d" else "validation"
    parquet.write_table(pyarrow.Table.from_pylist(rows), hub / "data" / f"{pattern}-00000-of-00001.parquet")
    prepared = bench.prepare(hub, split)
    assert bench.rows(hub, split) == wanted
    assert prepared.absent == []
    stream = io.BytesIO((hub / "images" / wanted[2]["image"]).read_bytes())
    assert stream.read() == encoded(2)
