"""LLaVA-Bench: what the judge reads, its two numbers, the ratio of means."""

import json
from dataclasses import replace

import pytest

from llava.eval.benchmarks.llavabench import BENCHMARK, UNREADABLE, description, messages, parse, ratio, samples_of
from llava.eval.files import read_rows
from llava.eval.sample import Verdict
from tests.llava.eval.data_tree import write_answers
from tests.llava.eval.data_tree_judged import make_llavabench

SPLIT = BENCHMARK.split()


@pytest.fixture
def folder(tmp_path):
    make_llavabench(tmp_path / "bench")
    return tmp_path / "bench"


@pytest.fixture
def samples(folder, tmp_path):
    rows = BENCHMARK.rows(folder, SPLIT)
    file = write_answers(tmp_path / "a.jsonl", rows[::-1], lambda row: f"Answer {row['question_id']}.")
    return BENCHMARK.read(folder, file, SPLIT).samples


def summarised(samples, *reviews):
    judged = [replace(sample, verdicts=tuple(map(Verdict, own))) for sample, own in zip(samples, reviews, strict=True)]
    return BENCHMARK.aggregate([BENCHMARK.score(sample) for sample in judged])


def test_the_official_question_file_is_taken_as_it_is(folder):
    prepared = BENCHMARK.prepare(folder, SPLIT)
    assert (prepared.questions, prepared.built, prepared.absent) == (5, False, [])


def test_ratio_of_means_and_not_mean_of_ratios(samples):
    summary = summarised(samples, [[8, 4]], [[10, 10]], [[2, 2]], [[9, 6]], [[5, 3]])
    parts = {name: (part["value"], part["n"]) for name, part in summary["parts"]["category"].items()}
    assert parts == {
        "complex": (round(100 * 9 / 14, 4), 2),
        "conv": (60.0, 2),  # (4 + 2) / (8 + 2), where the ratios' mean would be 75
        "detail": (100.0, 1),
    }
    assert summary["main"] == round(100 * 25 / 34, 4)
    assert (summary["n"], summary["labels"]) == (5, [])


def test_unreadable_reviews_enter_the_means_and_are_told(samples):
    summary = summarised(samples, [[8, 4]], [[10, 10]], [UNREADABLE], [[9, 6]], [[5, 3]])
    assert summary["main"] == round(100 * (4 + 10 - 1 + 6 + 3) / (8 + 10 - 1 + 9 + 5), 4)
    assert summary["labels"] == ["1 reviews unreadable, counted as -1 -1"]


def test_failed_reviews_do_not_enter_the_means(samples):
    summary = summarised(samples, [[8, 4]], [[10, 10]], [None], [[9, 6]], [[5, 3]])
    assert summary["main"] == round(100 * 23 / 32, 4)
    assert (summary["n"], summary["labels"]) == (4, [])


def test_runs_are_averaged_after_the_ratio(samples):
    summary = summarised(samples, *[[[8, 4], [4, 4]]] * 5)
    assert summary["parts"]["all"]["over runs"] == {"value": 75.0, "n": 5, "std": 25.0, "runs": [50.0, 100.0]}


def test_without_a_judge_the_score_is_missing(samples):
    summary = summarised(samples, *[[]] * 5)
    assert (summary["main"], summary["n"], summary["missing"]) == (None, 0, 0)
    assert summary["parts"]["category"]["conv"]["value"] is None


def test_a_reference_without_points_gives_no_ratio():
    assert ratio([UNREADABLE]) is None
    assert ratio([[0, 5]]) is None
    assert ratio([]) is None
    assert ratio([[4, 2], [4, 4]]) == 75.0


def test_what_the_judge_reads(samples):
    texts = {**BENCHMARK.judge.prompts, "llava_bench_conv": "THE RULE"}
    system, user = messages(samples[2], texts, 1)
    assert (system["role"], user["role"]) == ("system", "user")
    assert user["content"] == (
        "[Context]\nA green square.\nIts corner is blue.\n\n"
        "[Question]\nIs there a corner?\n\n"
        "[Assistant 1]\nThe reference to 2.\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nAnswer 2.\n\n[End of Assistant 2]\n\n"
        "[System]\nTHE RULE\n\n"
    )


@pytest.mark.parametrize(
    ("reply", "pair"),
    [
        ("8 6\nBecause ...", [8.0, 6.0]),
        ("8,6", [8.0, 6.0]),
        ("7.5 10", [7.5, 10.0]),
        ("8, 6", None),  # two spaces after the comma has gone, as in LLaVA
        ("8 6 ", None),
        ("8", None),
        ("8 6 7", None),
        ("\n8 6", None),
        ("Assistant 1: 8", None),
        ("nan 5", None),
        ("", None),
    ],
)
def test_parse(reply, pair):
    assert parse(reply) == pair


def test_an_unreadable_reply_is_not_asked_again():
    assert (BENCHMARK.judge.attempts, BENCHMARK.judge.fallback) == (1, UNREADABLE)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("answers_gpt4.jsonl", {"question_id": 99}),
        ("context.jsonl", {"image": "003.jpg"}),
        ("questions.jsonl", {"category": "other"}),
    ],
)
def test_files_that_do_not_belong_together(folder, file, change):
    rows = read_rows(folder / file)
    rows[0] = {**rows[0], **change}
    (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions, contexts, references = (
        read_rows(folder / name) for name in ("questions.jsonl", "context.jsonl", "answers_gpt4.jsonl")
    )
    with pytest.raises(ValueError, match="no reference, no description or none of the categories"):
        samples_of(questions, contexts, references)


def test_descriptions():
    assert description({"caption": "one text"}) == "one text"
    assert description({"caption": ["two", "lines"]}) == "two\nlines"
    with pytest.raises(ValueError, match="without 'caption'"):
        description({})
