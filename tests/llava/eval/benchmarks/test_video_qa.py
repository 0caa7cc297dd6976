"""The video sets: joined by id, the judge's dictionaries, accuracy and score, and what can be said without a judge."""

import json
from dataclasses import replace

import pytest

from llava.eval.benchmarks.registry import benchmark
from llava.eval.benchmarks.video_qa import JUDGE, build, messages, parse, truths
from llava.eval.sample import Verdict
from tests.llava.eval.data_tree import write_answers
from tests.llava.eval.data_tree_judged import make_judged_tree, make_video_qa

SETS = ("tgif", "msvd", "msrvtt")
BENCHMARK = benchmark("msvd")
SPLIT = BENCHMARK.split()


@pytest.fixture
def folder(tmp_path):
    make_video_qa(tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def read(folder, tmp_path):
    """Samples with answers: a list of one text a question, None for none, in reversed order of lines."""

    def answered(*texts):
        rows = build(folder, SPLIT)
        said = dict(zip((row["question_id"] for row in rows), texts, strict=True))
        file = write_answers(tmp_path / "a.jsonl", rows[::-1], lambda row: said[row["question_id"]])
        return BENCHMARK.read(folder, file, SPLIT).samples

    return answered


def summarised(samples, *verdicts):
    judged = [replace(sample, verdicts=tuple(map(Verdict, own))) for sample, own in zip(samples, verdicts, strict=True)]
    return BENCHMARK.aggregate([BENCHMARK.score(sample) for sample in judged])


@pytest.mark.parametrize(("name", "video"), [("tgif", "clip_2.mp4"), ("msvd", "clip_2.avi"), ("msrvtt", "clip_2.mp4")])
def test_question_files_name_the_videos_that_are_there(tmp_path, name, video):
    bench = benchmark(name)
    split = bench.split()
    make_judged_tree(tmp_path, (name,))
    folder = bench.folder(tmp_path, split)
    prepared = bench.prepare(folder, split)
    assert prepared.absent == []
    assert json.loads(prepared.question_file.read_text().splitlines()[2]) == {
        "question_id": "v_clip_2_0",
        "image": video,
        "text": "who is it?",
        "category": "default",
    }
    assert (prepared.images / video).is_file()
    (prepared.images / video).unlink()
    assert bench.prepare(folder, split).absent == [video]


def test_truths_are_found_by_id(read):
    assert [sample.truth for sample in read("a", "b", "c", "d")] == ["red", "nothing", "woman", "two"]
    assert [sample.text for sample in read("a", "b", "c", "d")] == ["a", "b", "c", "d"]


def test_lines_of_video_llava_with_wrong_truths(folder, tmp_path):
    """What its program writes on two devices: the second half got the truths of the first."""
    rows = build(folder, SPLIT)
    stored = ["red", "nothing", "red", "nothing"]
    lines = [
        {"id": row["question_id"], "question": row["text"], "answer": answer, "pred": "woman"}
        for row, answer in zip(rows, stored, strict=True)
    ]
    (tmp_path / "merge.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    samples = BENCHMARK.read(folder, tmp_path / "merge.jsonl", SPLIT).samples
    summary = summarised(samples, [], [], [], [])
    assert summary["labels"] == ["2 answer lines claim another truth than test_a.json, which was used"]
    assert summary["parts"]["not judged"]["exact"]["value"] == 25.0
    exported = BENCHMARK.export(folder, SPLIT, samples, tmp_path / "merge")
    assert [json.loads(line)["answer"] for line in exported.read_text().splitlines()] == [
        "red",
        "nothing",
        "woman",
        "two",
    ]


def test_scoring_needs_no_videos(tmp_path, read, folder):
    for file in (folder / "videos").iterdir():
        file.unlink()
    (folder / "videos").rmdir()
    assert len(read("a", "b", "c", "d")) == 4


def test_accuracy_and_score_by_hand(read):
    summary = summarised(read("a", "b", "c", "d"), [["yes", 5]], [["no", 2]], [["yes", 4]], [["no", 0]])
    assert summary["main"] == 50.0
    assert summary["parts"]["score"]["0 to 5"]["value"] == 2.75
    assert (summary["n"], summary["missing"], summary["labels"]) == (4, 0, [])


def test_runs_and_failures(read):
    verdicts = [[["yes", 5], ["no", 1]], [["no", 2], None], [None, None], [["yes", 4], ["yes", 5]]]
    summary = summarised(read("a", "b", "c", "d"), *verdicts)
    # accuracies: 2 of 3, 1 of 2; scores: 11 / 3 and 3
    assert summary["parts"]["accuracy"]["over runs"]["runs"] == [66.6667, 50.0]
    assert summary["main"] == 58.3333
    assert summary["parts"]["score"]["0 to 5"]["runs"] == [3.6667, 3.0]
    assert summary["n"] == 3


def test_without_a_judge_there_are_only_matches(read):
    summary = summarised(read("Red.", "It does nothing at all", "the women", None), [], [], [], [])
    assert (summary["main"], summary["n"], summary["missing"]) == (None, 0, 1)
    matches = summary["parts"]["not judged"]
    assert [round(matches[name]["value"], 2) for name in ("exact", "contained")] == [33.33, 66.67]
    assert matches["exact"]["n"] == 3


def test_questions_without_a_single_truth_are_left_out_and_told(folder, read):
    rows = json.loads((folder / "test_a.json").read_text())
    rows = [row for row in rows if row["question_id"] != "v_clip_3_0"]
    (folder / "test_a.json").write_text(json.dumps([*rows, {**rows[0], "answer": "another"}]))
    samples = read("a", "b", "c", "d")
    assert [sample.truth for sample in samples] == ["red", None, "woman", None]
    assert summarised(samples, [], [], [], [])["labels"] == [
        "2 questions without a (single) answer in test_a.json left out"
    ]


def test_files_of_two_sets(folder, read):
    (folder / "test_a.json").write_text('[{"question_id": "other", "answer": "x"}]')
    with pytest.raises(ValueError, match=r"answers none of the questions of test_q\.json"):
        read("a", "b", "c", "d")


def test_answers_of_neither_form(folder, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "v_clip_1_0", "question": "?"}\n')
    with pytest.raises(ValueError, match="neither question_id and text nor id and pred"):
        BENCHMARK.read(folder, tmp_path / "a.jsonl", SPLIT)


def test_truths_of_numbers_are_texts(tmp_path):
    (tmp_path / "a.json").write_text('[{"question_id": 1, "answer": 2}]')
    assert truths(tmp_path / "a.json") == {"1": "2"}


def test_what_the_judge_reads(read):
    system, user = messages(read("costs $5 {now}", "b", "c", "d")[0], JUDGE.prompts, 1)
    assert system["content"] == JUDGE.prompts["system"]
    assert "Question: what color is it?\nCorrect Answer: red\nPredicted Answer: costs $5 {now}\n" in user["content"]
    with pytest.raises(ValueError, match=r"bad field .*allowed are \$question, \$answer, \$prediction"):
        messages(read("a", "b", "c", "d")[0], {**JUDGE.prompts, "user": "$pred"}, 1)


def test_the_example_in_the_prompt_can_be_read():
    assert parse(JUDGE.prompts["user"]) == ["no", 1]


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("{'pred': 'yes', 'score': 4}", ["yes", 4]),
        ('{"pred": "no", "score": 0}', ["no", 0]),
        ("{'pred': 'Yes.', 'score': 4.8}", ["yes", 4]),
        ("{'pred': 'no', 'score': '3'}", ["no", 3]),
        ("```python\n{'pred': 'yes',\n 'score': 5}\n```", ["yes", 5]),
        ("Here it is: {'score': 2, 'pred': 'no'} Hope that helps!", ["no", 2]),
        ('{"pred": "yes", "score": 5, "why": null}', ["yes", 5]),
        ("The prediction {now} differs: {'pred': 'no', 'score': 1}", ["no", 1]),
        ("{'pred': 'maybe', 'score': 3}", None),
        ("{'pred': 'yes'}", None),
        ("{'score': 5}", None),
        ("{'pred': 'yes', 'score': 6}", None),
        ("{'pred': 'yes', 'score': -1}", None),
        ("{'pred': 'yes', 'score': None}", None),
        ("{'pred': 'yes', 'score': 1e999}", None),
        ("{'pred': 'yes', 'score': [4]}", None),
        ("{'pred': 'yes', 'score': 4", None),
        ("{yes, 4}", None),
        ("{__import__('os'): 1}", None),
        ("yes", None),
        ("", None),
        ("{" * 5000, None),
        ("{'pred': 'yes', 'score': " + "(" * 3000 + "}", None),
    ],
)
def test_parse(reply, verdict):
    assert parse(reply) == verdict


@pytest.mark.parametrize("name", SETS)
def test_the_three_sets(name):
    bench = benchmark(name)
    assert bench.name == name
    assert bench.judge is JUDGE
    assert JUDGE.temperature(1) is None  # the published scripts leave it to the server
