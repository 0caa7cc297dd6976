"""Answer normalisation and the consensus of ten humans: golden pairs, odd cases, both cleaners."""

import ast
import csv
from fractions import Fraction
from pathlib import Path

import pytest

from llava.eval.metrics.contractions import CONTRACTIONS
from llava.eval.metrics.vqa_normalise import (
    consensus,
    m4c,
    m4c_accuracy,
    official_accuracy,
    official_answer,
    official_reference,
)

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name: str) -> list[list[str]]:
    with (GOLDEN / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def test_m4c_on_the_golden_pairs():
    pairs = golden("golden_m4c_normalise")
    assert len(pairs) == 51
    for given, wanted in pairs:
        assert m4c(ast.literal_eval(given)) == ast.literal_eval(wanted), given


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("a. b. c", "b c"),  # an article once its period is gone
        ("x" + "." * 40, "x" + "." * 8),  # 32 periods go, no more
        ("sign: stop", "sign: stop"),
        ("Shes here", "shes here"),  # shes is in no list
        ("HES", "he's"),
        ("none of them", "0 of them"),
        ("Tom's", "tom 's"),
        ("well-known, old", "well known old"),  # the comma goes first, so that the hyphen touches no space
        ("a - b", "b"),
        ("\n\t", ""),
    ],
)
def test_m4c_odd_cases(given, wanted):
    assert m4c(given) == wanted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),  # a number with a comma closes up every mark
        ("1-2", "1 2"),
        ("1,,000", "1 000"),  # two commas in a row are no such number
        ("Mother's day", "mother's day"),  # unlike m4c
        ("Two, three", "2 3"),
        ("what?", "what"),
        ("Dont", "don't"),
    ],
)
def test_official_answer(given, wanted):
    assert official_answer(given) == wanted


def test_official_reference_is_punctuation_alone():
    assert official_reference("The Two t-shirts.") == "The Two t shirts"


def test_contractions_are_the_published_list():
    assert len(CONTRACTIONS) == 120
    assert [spelling for spelling in CONTRACTIONS if spelling[0].isupper()] == ["Id've", "I'dve", "Im", "Ive"]
    assert CONTRACTIONS["somebody'd"] == "somebodyd"
    assert CONTRACTIONS["let's"] == "let's"
    # all others only add apostrophes
    odd = {
        spelling for spelling, proper in CONTRACTIONS.items() if proper.replace("'", "") != spelling.replace("'", "")
    }
    assert not odd


@pytest.mark.parametrize("matches", range(11))
def test_consensus_of_ten(matches):
    """Against exact arithmetic: left out a match, matches - 1 remain; left out another, matches."""
    references = [("yes" if number < matches else f"no {number}", number) for number in range(10)]
    third = Fraction(1, 3)
    exact = (matches * min(1, (matches - 1) * third) + (10 - matches) * min(1, matches * third)) / 10
    assert consensus("yes", references) == pytest.approx(float(exact), abs=1e-12)
    assert consensus("yes", references) == pytest.approx([0, 0.3, 0.6, 0.9, 1][min(matches, 4)], abs=1e-12)


def test_m4c_accuracy_normalises_both_sides():
    assert m4c_accuracy("The T-shirt!", ["t shirt"] * 2 + ["shirt"] * 8) == pytest.approx(0.6)
    assert m4c_accuracy("seven", ["seven"] * 3 + ["7"] + ["no"] * 6) == 1.0
    with pytest.raises(ValueError, match="9 human answers; the metric is defined for 10"):
        m4c_accuracy("yes", ["yes"] * 9)


def test_official_accuracy_cleans_references_only_when_they_differ():
    alike = [("t-shirt", number) for number in range(10)]
    assert official_accuracy("t-shirt", alike) == 0.0  # the answer loses its hyphen, the ten alike ones keep it
    mixed = [("t-shirt" if number < 2 else "shirt", number) for number in range(10)]
    assert official_accuracy("t-shirt", mixed) == pytest.approx(0.6)
    # numbers of humans are not mapped, those of the model are
    assert official_accuracy("two", [("two" if number < 3 else "2", number) for number in range(10)]) == 1.0
    assert official_accuracy("two", [("two" if number < 7 else "2", number) for number in range(10)]) == pytest.approx(
        0.9
    )


def test_official_accuracy_leaves_out_equal_records_together():
    """Records without an id of their own are equal, so leaving one out leaves its likes out."""
    same = [("yes", None)] * 4 + [("no", None)] * 6
    # left out a yes: no yes remains -> 0 (four times); left out a no: four yes -> 1 (six times)
    assert official_accuracy("yes", same) == pytest.approx(0.6)
