"""MME: layouts, parsing, points of a task, perception + cognition, the official tool's files."""

import ast

import pytest

from llava.eval.benchmarks import mme
from llava.eval.sample import Score


def test_the_golden_pairs(parser_pairs):
    pairs = parser_pairs("mme")
    assert len(pairs) == 12
    for given, _, wanted in pairs:
        assert mme.parse(ast.literal_eval(given)) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("NO", "no"),
        (" no.", "no"),
        ("  no", "no"),
        ("   no", "other"),
        ("noyes", "no"),
        ("no yes", "no"),
        ("a no", "no"),
    ],
)
def test_tricky_answers(text, wanted):
    assert mme.parse(text) == wanted


@pytest.mark.parametrize("nested", [False, True])
def test_the_question_file_of_both_layouts(folder_of, nested):
    bench, split, folder = folder_of("mme", nested=nested)
    prepared = bench.prepare(folder, split)
    rows = bench.rows(folder, split)
    assert (len(rows), prepared.absent) == (14 * 4, [])
    assert prepared.images.name == ("MME_Benchmark" if nested else "MME_Benchmark_release_version")
    count = [row for row in rows if row["category"] == "count"]
    assert [row["question_id"] for row in count] == ["count/0001.png"] * 2 + ["count/0002.png"] * 2
    assert count[2] == {
        "question_id": "count/0002.png",
        "image": "count/0002.png",
        "text": "Is this count 1 one?\nAnswer the question using a single word or phrase.",
        "category": "count",
    }
    assert next(row["image"] for row in rows if row["category"] == "artwork") == "artwork/images/10.jpg"


def test_all_right_is_the_maximum(folder_of, scored_with):
    summary, _ = scored_with(folder_of("mme"), lambda row: "Yes" if " one?" in row["text"] else "No")
    assert summary["parts"]["sum"]["perception"] == {"value": 2000.0, "n": 40}
    assert summary["parts"]["sum"]["cognition"] == {"value": 800.0, "n": 16}
    assert summary["main"] == 2800.0


def test_points_by_hand():
    """Three pictures of two questions: both right, one right, none right: 3/6 + 1/3."""
    values = [(1, 1), (1, 0), (0, 0)]
    scores = [
        Score(f"{picture}", float(value), parts={"task": "count", "picture": f"count/{picture}"})
        for picture, pair in enumerate(values)
        for value in pair
    ]
    assert mme.task_points(scores) == {
        "value": pytest.approx(50 + 100 / 3, abs=1e-3),
        "accuracy": 50.0,
        "accuracy_plus": pytest.approx(100 / 3, abs=1e-3),
        "n": 6,
    }
    # a picture of which one question has no answer enters the first share alone
    scores[1] = scores[1]._replace(value=None, answered=False)
    assert mme.task_points(scores)["accuracy"] == 40.0
    assert mme.task_points(scores)["accuracy_plus"] == 0.0


def test_a_sum_over_missing_tasks_is_missing(folder_of, scored_with):
    summary, _ = scored_with(folder_of("mme"), lambda row: None if row["category"] == "OCR" else "Yes")
    assert summary["parts"]["task"]["OCR"]["value"] is None
    assert summary["parts"]["sum"]["perception"]["value"] is None
    assert summary["parts"]["sum"]["cognition"]["value"] == 4 * 50.0
    assert (summary["main"], summary["missing"]) == (None, 4)


def test_ids_repeat_so_the_wording_decides(folder_of, tmp_path):
    """Paths of other layouts and the original sentence are understood; order plays no part."""
    bench, split, folder = folder_of("mme")
    file = tmp_path / "a.jsonl"
    file.write_text(
        '{"question_id": "count/0001.png", "prompt": "Is this count 0 two?\\n'
        'Answer the question using a single word or phrase.", "text": "No"}\n'
        '{"question_id": "MME/count/images/0001.jpg", "prompt": "Is this count 0 one?  Please answer yes or no.", '
        '"text": "yes"}\n'
    )
    joined = bench.read(folder, file, split)
    assert [one.text for one in joined.samples if one.question_id == "count/0001.png"] == ["yes", "No"]
    assert len(joined.missing) == 54
    file.write_text('{"question_id": "count/0001.png", "text": "No"}\n')
    with pytest.raises(ValueError, match="has no prompt"):
        bench.read(folder, file, split)


def test_the_official_files_give_the_same_points(folder_of, scored_with, tmp_path):
    made = folder_of("mme")
    bench, split, folder = made
    replies = iter(["Yes", "  yes", "no\n", "Yes\tand no", "other", "No"] * 10)
    summary, _ = scored_with(made, lambda row: next(replies))
    joined = bench.read(folder, tmp_path / "answers.jsonl", split)
    results = bench.export(folder, split, joined.samples, tmp_path / "answers")
    lines = (results / "OCR.txt").read_text().split("\n")[:-1]
    assert len(lines) == 4
    picture, question, truth, _ = lines[0].split("\t")
    assert (picture, question, truth) == ("0001.txt", "Is this OCR 0 one? Please answer yes or no.", "Yes")
    assert mme.aggregate([mme.score(one) for one in mme.read_results(results)])["parts"] == summary["parts"]


def test_damaged_files_are_named(folder_of, tmp_path):
    bench, split, folder = folder_of("mme")
    root = folder / mme.RELEASE
    (root / "OCR" / "0001.txt").write_text("Is this it? Please answer yes or no. Yes\n")
    with pytest.raises(ValueError, match=r"0001\.txt line 1 is not 'question TAB Yes\|No'"):
        bench.build(folder, split)
    (root / "OCR" / "0001.txt").unlink()
    (root / "OCR" / "0009.txt").write_text("Is this it?\tYes\n")
    with pytest.raises(ValueError, match="has no picture next to it"):
        bench.build(folder, split)
    with pytest.raises(ValueError, match="has none of MME's tasks"):
        mme.task_root(tmp_path / "MME" / mme.RELEASE / "OCR")
    (tmp_path / "count.txt").write_text("a\tb\tYes\n")
    with pytest.raises(ValueError, match=r"count\.txt line 1 has 3 cells"):
        mme.read_results(tmp_path)
    with pytest.raises(ValueError, match="has no <task>"):
        mme.read_results(folder)


def test_a_subset_takes_both_questions_of_a_picture(folder_of):
    bench, split, folder = folder_of("mme")
    rows = bench.subset(bench.build(folder, split), 3)
    assert len(rows) == 6
    assert all(rows[place]["image"] == rows[place + 1]["image"] for place in (0, 2, 4))
