"""POPE: parsing, F1 by category, the mean of three, joining by id and wording."""

import ast
import json
from fractions import Fraction

import pytest

from llava.eval.benchmarks import pope
from llava.eval.sample import Score


def test_the_golden_pairs(parser_pairs):
    pairs = parser_pairs("pope")
    assert len(pairs) == 14
    for given, _, wanted in pairs:
        assert pope.parse(ast.literal_eval(given)) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Yes, it is. There is no doubt", "yes"),  # the first sentence alone
        ("No", "no"),
        ("No\nindeed", "yes"),  # split at spaces, not at line breaks
        ("no.", "no"),
        (".no", "yes"),
        ("n,o", "no"),  # commas are deleted before splitting
        ("cannot", "yes"),
        ("Not", "yes"),
    ],
)
def test_tricky_answers(text, wanted):
    assert pope.parse(text) == wanted


def test_the_question_file(folder_of):
    bench, split, folder = folder_of("pope")
    bench.prepare(folder, split)
    rows = [json.loads(line) for line in (folder / "llava_pope_test.jsonl").read_text().splitlines()]
    assert [row["category"] for row in rows] == ["adversarial"] * 4 + ["random"] * 4 + ["popular"] * 4
    assert [row["question_id"] for row in rows][::4] == [1, 10000001, 20000001]
    assert len({row["question_id"] for row in rows}) == 12
    assert rows[0]["text"] == "Is there a cup in the image?\nAnswer the question using a single word or phrase."


def test_scores_by_hand(folder_of, scored_with):
    """Labels are yes, no, yes, no in every category."""
    replies = {
        "adversarial": ["Yes", "No", "Yes", "No"],  # F1 1
        "random": ["Yes", "Yes", "No", "No"],  # TP 1, FP 1, FN 1: F1 1/2
        "popular": ["Yes", "Yes", "Yes", "Yes"],  # precision 1/2, recall 1: F1 2/3
    }
    turns = {category: iter(texts) for category, texts in replies.items()}
    summary, _ = scored_with(folder_of("pope"), lambda row: next(turns[row["category"]]))
    exact = (1 + Fraction(1, 2) + Fraction(2, 3)) / 3
    assert summary["main"] == pytest.approx(float(100 * exact), abs=1e-3)
    random = summary["parts"]["category"]["random"]
    assert (random["TP"], random["FP"], random["TN"], random["FN"]) == (1, 1, 1, 1)
    assert (random["accuracy"], random["precision"], random["recall"], random["yes_ratio"]) == (50, 50, 50, 50)
    assert summary["parts"]["category"]["popular"]["yes_ratio"] == 100.0
    assert summary["parts"]["accuracy"]["mean"] == {"value": pytest.approx(66.6667), "n": 12}


def test_the_published_mean():
    """The published F1 of the three categories average to the published number."""
    parts = []
    for category, hits, false in (("random", 873, 254), ("popular", 861, 278), ("adversarial", 842, 316)):
        # F1 = 2TP / (2TP + FP + FN)
        pairs = [("yes", "yes")] * hits + [("yes", "no")] * (false // 2) + [("no", "yes")] * (false - false // 2)
        parts += [Score(n, float(a == b), a, b, {"category": category}) for n, (a, b) in enumerate(pairs)]
    summary = pope.aggregate(parts)
    shown = {name: round(part["f1"], 1) for name, part in summary["parts"]["category"].items()}
    assert shown == {"random": 87.3, "popular": 86.1, "adversarial": 84.2}
    assert round(summary["main"], 1) == 85.9


def test_what_is_missing_is_not_zero(folder_of, scored_with):
    summary, _ = scored_with(folder_of("pope"), lambda row: None if row["category"] == "random" else "No")
    assert summary["parts"]["category"]["random"]["f1"] is None
    assert summary["parts"]["category"]["popular"]["precision"] is None  # nobody said yes
    assert summary["parts"]["category"]["popular"]["f1"] == 0.0
    assert (summary["main"], summary["missing"]) == (None, 4)


def test_a_foreign_question_file_is_taken_and_joined_by_id_and_wording(folder_of, tmp_path):
    bench, split, folder = folder_of("pope")
    rows = bench.build(folder, split)
    foreign = [{**row, "question_id": number} for number, row in enumerate(rows)][::-1]
    (folder / split.question_file).write_text("".join(json.dumps(row) + "\n" for row in foreign))
    prepared = bench.prepare(folder, split)
    assert not prepared.built
    answers = [
        {"question_id": row["question_id"], "prompt": row["text"], "text": row["category"]} for row in foreign[:5]
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    joined = bench.read(folder, tmp_path / "a.jsonl", split)
    assert [one.text for one in joined.samples[:5]] == [one.parts["category"] for one in joined.samples[:5]]
    assert len(joined.missing) == 7
    answers[0]["prompt"] = "Is there something else?"
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    assert bench.read(folder, tmp_path / "a.jsonl", split).unknown == [11]


def test_files_of_two_releases_are_refused(folder_of, tmp_path):
    bench, split, folder = folder_of("pope")
    bench.prepare(folder, split)
    (folder / "coco" / "coco_pope_random.json").write_text("")
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"question 10000001 .* is not in coco_pope_\*\.json"):
        bench.read(folder, tmp_path / "a.jsonl", split)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no coco_pope_\*\.json"):
        pope.official_rows(tmp_path / "empty")


def test_answers_without_their_prompt_are_refused():
    with pytest.raises(ValueError, match="has no prompt"):
        pope.answer_key({"question_id": 1, "text": "Yes"})
