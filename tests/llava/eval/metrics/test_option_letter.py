"""Which option an answer means."""

import ast
import csv
from pathlib import Path

import pytest

from llava.eval.benchmarks.answer_formats import multiple_choice, short_answer, with_options
from llava.eval.metrics.option_letter import infer_option

OPTIONS = {"A": "red", "B": "dark blue", "C": "blue", "D": "green"}


def test_the_golden_pairs():
    with (Path(__file__).parents[1] / "golden" / "golden_mmbench_infer.csv").open(encoding="utf-8", newline="") as file:
        pairs = list(csv.reader(file))[1:]
    assert len(pairs) == 20
    for given, wanted in pairs:
        assert (infer_option(ast.literal_eval(given), OPTIONS) or "False") == wanted, given


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("A and B. and C.", None),  # four words with A: decorated forms, of which two stand there
        ("A, the first", "A"),
        ("A B", None),
        ("B B B", "B"),  # one letter, however often
        ("It is A", "A"),  # three words
        ("It is surely A", None),  # four: an article
        ("It is surely A.", "A"),
        ("GREEN!", "D"),
        ("redgreen", None),
        (":B", "B"),
        ("F", None),
    ],
)
def test_tricky_answers(given, wanted):
    assert infer_option(given, OPTIONS) == wanted


def test_an_option_without_text_is_in_every_answer():
    assert infer_option("green", {"A": "", "B": "green"}) is None


def test_prompts():
    assert short_answer("Why?") == "Why?\nAnswer the question using a single word or phrase."
    assert with_options("Which?", ["x", "y"]) == "Which?\nA. x\nB. y"
    asked = multiple_choice("Which?", [str(number) for number in range(7)])
    assert asked.split("\n")[7:] == ["G. 6", "Answer with the option's letter from the given choices directly."]
