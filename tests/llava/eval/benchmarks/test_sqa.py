"""ScienceQA: question file, parsing, accuracy over questions with a picture."""

import ast
import json

import pytest

from llava.eval.benchmarks import sqa
from llava.eval.sample import Sample


def test_the_golden_pairs(parser_pairs):
    pairs = parser_pairs("sqa")
    assert len(pairs) == 11
    for given, choices, wanted in pairs:
        assert sqa.choice(sqa.parse(ast.literal_eval(given)), int(choices)) == int(wanted), given


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "FAILED"),
        ("A", "A"),
        ("F", "FAILED"),
        ("F. six", "FAILED"),
        ("A.", "FAILED"),
        ("A.x", "FAILED"),
        ("A. ", "A"),
        ("So: The answer is B.", "B"),
        ("The answer is F.", "F"),  # a letter beyond the options; wrong later
        ("The answer is B", "FAILED"),  # nothing behind the letter
        ("The answer is B, surely", "B"),  # the reference's period stands for anything
        ("The answer is Blue.", "B"),
        ("the answer is B.", "FAILED"),
    ],
)
def test_tricky_answers(text, wanted):
    assert sqa.parse(text) == wanted


def test_the_question_file(folder_of):
    bench, split, folder = folder_of("sqa")
    prepared = bench.prepare(folder, split)
    rows = json.loads(prepared.question_file.read_text())
    assert prepared.question_file.name == "llava_test_CQM-A.json"
    assert [row["id"] for row in rows] == ["901", "902", "903", "904", "905"]
    assert rows[0] == {
        "id": "901",
        "image": "901/image.png",
        "conversations": [
            {
                "from": "human",
                "value": "<image>\nContext: Look at the square.\nWhich color is number 0?\nA. red\nB. green",
            },
            {"from": "gpt", "value": "A"},
        ],
    }
    assert "image" not in rows[2]
    assert rows[2]["conversations"][0]["value"].startswith("Context: Look")
    assert rows[1]["conversations"][0]["value"].startswith("<image>\nWhich")
    assert (prepared.images, prepared.absent) == (folder / "images/test", [])


def test_scores_by_hand(folder_of, scored_with):
    """Truths A, B, A, B, A; pictures in 901, 902, 904. Right: 901, 903 (as letter and text); 902 beyond its options."""
    replies = {"901": "A", "902": "D", "903": "A. red", "904": "A", "905": None}
    summary, scores = scored_with(folder_of("sqa"), lambda row: replies[row["id"]])
    assert [one.value for one in scores] == [1.0, 0.0, 1.0, 0.0, None]
    assert summary["main"] == pytest.approx(100 / 3, abs=1e-3)
    assert summary["parts"]["all"]["accuracy"] == {"value": 50.0, "n": 4}
    assert summary["parts"]["image"]["without"] == {"value": 100.0, "n": 1}
    assert summary["missing"] == 1


def test_the_prompt_says_whether_there_was_a_picture():
    extra = {"choices": 2, "image": True}
    assert sqa.has_image(Sample("1", ("1",), 0, extra=extra))
    assert not sqa.has_image(Sample("1", ("1",), 0, extra=extra, text="A", prompt="Which?"))
    assert sqa.has_image(Sample("1", ("1",), 0, extra={**extra, "image": False}, text="A", prompt="<image>\nWhich?"))


def test_an_unknown_split_is_named(folder_of):
    _, _, folder = folder_of("sqa")
    with pytest.raises(ValueError, match=r"has no split 'minitest'; give one of train, val, test"):
        sqa.problems(folder, "minitest")
