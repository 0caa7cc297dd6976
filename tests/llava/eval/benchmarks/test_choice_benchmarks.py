"""SEED, AI2D and Q-Bench: question files, matching, parts, splits."""

import json

import pytest

from llava.eval.benchmarks import ai2d, qbench, seed
from llava.eval.sample import Score


def test_seed_question_file(folder_of):
    bench, split, folder = folder_of("seed")
    prepared = bench.prepare(folder, split)
    rows = bench.rows(folder, split)
    assert [row["question_id"] for row in rows] == ["v12", 101670, 101671, 101672, 101673, 101674]
    assert rows[1] == {
        "question_id": 101670,
        "image": "SEED-Bench-image/1_000",
        "text": "What is in number 1?\nA. a 1\nB. b 1\nC. c 1\nD. d 1\n"
        "Answer with the option's letter from the given choices directly.",
        "category": 2,
    }
    assert rows[4]["image"] == "SEED-Bench-video-image/10_101673.png"
    assert prepared.absent == []


def test_seed_by_hand(folder_of, scored_with):
    """Truths A B C D (pictures), A B (videos). A letter alone is right, nothing else."""
    replies = iter(["A", "B", "C.", "d", "A", "B"])
    summary, _ = scored_with(folder_of("seed"), lambda row: next(replies))
    assert summary["main"] == pytest.approx(400 / 6, abs=1e-3)
    assert summary["parts"]["kind"] == {"image": {"value": 50.0, "n": 4}, "video": {"value": 100.0, "n": 2}}
    assert summary["parts"]["type"]["Instance Identity"] == {"value": 50.0, "n": 2}
    assert summary["labels"] == []


def test_seed_total_is_over_both_kinds():
    """14,233 pictures at 66.1 and 5,009 videos at 37.3 are 58.6 together."""
    scores = [Score(n, float(n < 9408), parts={"kind": "image"}) for n in range(14233)]
    scores += [Score(n, float(n < 1868), parts={"kind": "video"}) for n in range(5009)]
    summary = seed.aggregate(scores)
    assert [round(summary["parts"]["kind"][kind]["value"], 1) for kind in ("image", "video")] == [66.1, 37.3]
    assert round(summary["main"], 1) == 58.6


def test_seed_without_frames_says_image_only(folder_of, scored_with):
    made = folder_of("seed")
    summary, _ = scored_with(
        made, lambda row: "A" if "image/" in row["image"] and "video" not in row["image"] else None
    )
    assert (summary["labels"], summary["n"], summary["missing"]) == (["image only"], 4, 2)
    assert summary["parts"]["kind"]["video"] == {"value": None, "n": 0}
    bench, _, folder = made
    split = bench.split("image")
    assert split.label == "image only"
    assert [row["category"] for row in bench.build(folder, split)] == [1, 2, 1, 2]


def test_seed_upload(folder_of, tmp_path):
    bench, split, folder = folder_of("seed")
    samples = [one for one in bench.load(folder, split, [])]
    file = bench.export(folder, split, [samples[0], *samples[1:]], tmp_path / "a")
    assert file.read_text() == ""
    answered = [seed.Sample(one.question_id, one.keys, one.truth, text="B") for one in samples[:2]]
    bench.export(folder, split, answered, tmp_path / "a")
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"question_id": "v12", "prediction": "B"},
        {"question_id": "101670", "prediction": "B"},
    ]


def test_ai2d(folder_of, scored_with):
    made = folder_of("ai2d")
    assert made[0].build(made[2], made[1])[1]["text"].startswith("Which label is part 1?\nA. stem\nB. root\nC. leaf")
    replies = iter(["A", "B. root", " C ", "The answer is D"])
    summary, scores = scored_with(made, lambda row: next(replies))
    assert [one.value for one in scores] == [1, 1, 1, 0]
    assert summary["main"] == 75.0


@pytest.mark.parametrize(
    ("text", "wanted"), [("A.", "A"), ("A.B.", "A"), ("a.", "a."), ("(A)", "(A)"), ("", ""), (" B.\n", "B")]
)
def test_ai2d_tricky_answers(text, wanted):
    assert ai2d.parse(text) == wanted


def test_ai2d_answers_as_index_or_letter():
    assert [ai2d.letter_of(answer) for answer in (0, "2", "D")] == ["A", "C", "D"]


def test_qbench_question_files(folder_of):
    bench, split, folder = folder_of("qbench")
    rows = bench.build(folder, split)
    assert rows[1]["text"] == (
        "What is wrong?\nChoose between one of the options as follows:\nA. Blur\nB. Noise\nC. Nothing\n"
    )
    chinese = bench.build(folder, bench.split("dev-zh"))
    assert chinese[0]["text"] == "图像清晰吗?\n在下列选项中选择一个:\nA. 是\nB. 否\n"
    assert bench.prepare(folder, bench.split("dev-zh")).absent == []


def test_qbench_by_hand(folder_of, scored_with):
    """Truths B, A, C: a letter, a text, and two options named at once."""
    replies = iter(["B. No", "There is blur", "Dark, not Bright"])
    summary, _ = scored_with(folder_of("qbench"), lambda row: next(replies))
    assert summary["main"] == pytest.approx(200 / 3, abs=1e-3)
    assert summary["parts"]["kind"] == {
        "how": {"value": 0.0, "n": 1},
        "what": {"value": 100.0, "n": 1},
        "yes-or-no": {"value": 100.0, "n": 1},
    }
    assert summary["parts"]["concern"]["in-context other"] == {"value": 0.0, "n": 1}


def test_qbench_test_has_no_answers_and_damage_is_named(folder_of, scored_with):
    bench, split, folder = folder_of("qbench", "test")
    summary, _ = scored_with((bench, split, folder), lambda row: "A")
    assert (summary["main"], summary["missing"]) == (None, 0)
    with pytest.raises(ValueError, match="'Maybe', which is none of its options"):
        qbench._sample(3, {"candidates": ["Yes", "No"], "correct_ans": "Maybe"})
