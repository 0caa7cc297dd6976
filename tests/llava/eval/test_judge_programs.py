"""The programs that judge: `score` with the judge's flags, and LLaVA's and Video-LLaVA's names, end to end."""

import csv
import json
import re
from pathlib import Path

import pytest

from llava.eval import eval_gpt_mmvet, eval_gpt_review_bench, prepare, score, summarize_gpt_review
from llava.eval.benchmarks.registry import benchmark
from llava.eval.video import eval_video_qa
from tests.llava.eval.data_tree import make_data_tree, write_answers
from tests.llava.eval.data_tree_judged import MAKERS, make_judged_tree
from tests.llava.eval.judge.fake_judge import Response, serving


@pytest.fixture
def data(tmp_path):
    return make_judged_tree(tmp_path / "eval")


@pytest.fixture
def answers(data, tmp_path):
    def write(name, reply=lambda row: f"said {row['question_id']}"):
        bench = benchmark(name)
        split = bench.split()
        return write_answers(tmp_path / "answers.jsonl", bench.rows(bench.folder(data, split), split), reply)

    return write


@pytest.fixture
def run(capsys):
    """Runs a program -> (its last line as JSON, its text, what it said on stderr)."""

    def program(main, *arguments):
        main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return json.loads(said.out.splitlines()[-1]), said.out, said.err

    return program


def review(body, number):
    """The reference gets 8; the model as many points as the id in its answer says."""
    said = re.search(r"said (\d)", body["messages"][-1]["content"])
    return f"8 {said.group(1)}\nBecause."


def dictionary(body, number):
    return (
        "{'pred': 'yes', 'score': 4}" if "clip_1" in body["messages"][-1]["content"] else "{'pred': 'no', 'score': 1}"
    )


REPLIES = {
    "mmvet": lambda body, number: "0.5",
    "llavabench": review,
    "tgif": dictionary,
    "msvd": dictionary,
    "msrvtt": dictionary,
}
# 8: five references; 0 + 1 + 2 + 3 + 4: the model
EXPECTED = {"mmvet": 50.0, "llavabench": 100 * 10 / 40, "tgif": 50.0, "msvd": 50.0, "msrvtt": 50.0}


@pytest.mark.parametrize("name", MAKERS)
def test_prepare_and_score(data, answers, run, name, tmp_path):
    checked, _, _ = run(prepare.main, name, "--data", data, "--check")
    assert (checked["program"], checked["max_new_tokens"]) == ("llava.eval.model_vqa", 1024)
    assert checked["absent_images"] == 0
    file = answers(name)
    with serving(REPLIES[name]) as judge:
        flags = ["--judge-base-url", judge.url, "--judge-model", "my-judge"]
        last, text, _ = run(score.main, name, "--data", data, "--answers-file", file, *flags)
    assert last["main"] == EXPECTED[name]
    assert last["judge"]["model"] == "my-judge"
    assert last["judge"]["answered_as"] == ["fake-judge-2026"]
    assert f"{EXPECTED[name]:.2f} (" in text.splitlines()[0]
    assert "judge my-judge at 127.0.0.1" in text.splitlines()[0]
    assert json.loads((tmp_path / "answers.scores.json").read_text()) == last
    with (tmp_path / "answers.scores.csv").open(newline="") as items:
        assert all(row["value"] for row in csv.DictReader(items))


@pytest.mark.parametrize("name", MAKERS)
def test_without_a_judge_a_dash_and_how_to_set_one(data, answers, run, name):
    last, text, _ = run(score.main, name, "--data", data, "--answers-file", answers(name))
    assert last["main"] is None
    assert re.search(r" - \(.*not judged: give --judge-base-url and --judge-model", text.splitlines()[0])


def test_a_judge_that_fails_too_often_leaves_no_score(data, answers, tmp_path):
    with serving(lambda body, number: Response(status=400)) as judge:
        flags = ["--data", str(data), "--answers-file", str(answers("mmvet")), "--judge-base-url", judge.url]
        with pytest.raises(SystemExit, match=r"error: .* verdicts failed"):
            score.main(["mmvet", *flags])
    assert not (tmp_path / "answers.scores.json").exists()


def test_a_benchmark_without_a_judge_takes_no_flags_for_one(tmp_path):
    root = make_data_tree(tmp_path / "plain", ("gqa",))
    bench = benchmark("gqa")
    rows = bench.rows(bench.folder(root, bench.split()), bench.split())
    file = write_answers(tmp_path / "gqa.jsonl", rows, lambda row: "red")
    with pytest.raises(SystemExit, match="scored without a judge"):
        score.main(["gqa", "--data", str(root), "--answers-file", str(file), "--judge-base-url", "http://127.0.0.1:9"])


def test_requests_first_and_replies_later(data, answers, run, tmp_path):
    file, wanted = answers("llavabench"), tmp_path / "requests.jsonl"
    base = ["llavabench", "--data", data, "--answers-file", file]
    last, _, _ = run(score.main, *base, "--judge-requests", wanted)
    assert last["main"] is None
    assert f"not judged: 5 requests written to {wanted}" in last["labels"]
    replies = tmp_path / "replies.jsonl"
    rows = [json.loads(line) for line in wanted.read_text().splitlines()]
    lines = [{"custom_id": row["custom_id"], "reply": review(row["body"], 0)} for row in rows]
    replies.write_text("".join(json.dumps(line) + "\n" for line in lines))
    last, _, _ = run(score.main, *base, "--judge-replies", replies)
    assert last["main"] == 25.0


def bench_flags(data, answers, output):
    folder = data / "llava-bench-in-the-wild"
    return [
        *("--question", folder / "questions.jsonl", "--context", folder / "context.jsonl"),
        *("--answer-list", folder / "answers_gpt4.jsonl", answers, "--output", output),
    ]


def test_the_rules_of_this_project_are_the_default(data, answers, run, tmp_path, monkeypatch):
    """`--rule llava/eval/table/rule.json`, from the repository's root, asks what no `--rule` asks."""
    monkeypatch.chdir(Path(__file__).parents[3])
    asked = []
    for number, more in enumerate(([], ["--rule", "llava/eval/table/rule.json"])):
        flags = bench_flags(data, answers("llavabench"), tmp_path / f"{number}.jsonl")
        with serving(lambda body, number: "7 8\nboth good") as judge:
            run(eval_gpt_review_bench.main, *flags, *more, "--judge-base-url", judge.url)
        asked.append(sorted(judge.users()))
    assert asked[0] == asked[1]
    assert all("[System]\nTwo AI assistants" in user for user in asked[0])


def test_llavas_reviews_and_their_summary(data, answers, run, tmp_path):
    rules = tmp_path / "rule.json"
    kinds = ("conv", "detail", "complex")
    texts = {f"llava_bench_{kind}": {"role": "Assistant", "prompt": f"RULE {kind}"} for kind in kinds}
    rules.write_text(json.dumps({"coding": {"role": "Assistant", "prompt": "code"}, **texts}))
    output = tmp_path / "reviews" / "m.jsonl"
    flags = [*bench_flags(data, answers("llavabench"), output), "--rule", rules, "--max-tokens", "77"]
    unread = re.compile("said 4")

    def reply(body, number):
        return "I would rather not" if unread.search(body["messages"][-1]["content"]) else review(body, number)

    with serving(reply) as judge:
        last, _, errors = run(
            eval_gpt_review_bench.main, *flags, "--judge-base-url", judge.url, "--max-judge-failures", "0.2"
        )
    assert last["reviews"] == 5
    assert "1 of 5 verdicts failed" in errors
    assert {body["max_tokens"] for body in judge.bodies} == {77}
    assert all(re.search(r"\[System\]\nRULE (conv|detail|complex)\n\n$", user) for user in judge.users())
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["tuple"] for line in lines] == [[8, 0], [8, 1], [8, 2], [8, 3], [-1, -1]]
    keys = ("id", "question_id", "answer1_id", "answer2_id", "category")
    assert {key: lines[1][key] for key in keys} == {
        "id": 2,
        "question_id": 1,
        "answer1_id": "ref1",
        "answer2_id": "1",
        "category": "llava_bench_detail",
    }
    assert lines[3]["content"] == "8 3\nBecause."

    last, text, _ = run(summarize_gpt_review.main, "--files", output)
    # conv (0 + 2) / 16, detail 1 / 8, complex (3 - 1) / (8 - 1), all (0 + 1 + 2 + 3 - 1) / (32 - 1)
    assert last["files"]["m"] == {
        "all": 16.1,
        "llava_bench_complex": 28.6,
        "llava_bench_conv": 12.5,
        "llava_bench_detail": 12.5,
        "unreadable": 1,
    }
    assert "all 16.1 62.0 10.0" in text  # means 31 / 5 and 5 / 5, ten times
    last, _, _ = run(summarize_gpt_review.main, "--files", output, "--ignore", "4")
    assert last["files"]["m"]["all"] == 18.8  # 6 / 32, 18.75 rounded


def test_review_files_are_found_in_a_folder(tmp_path, run):
    for name in ("review_b.jsonl", "gpt4_text_a.jsonl", "other.jsonl"):
        (tmp_path / name).write_text('{"question_id": 1, "score": [4, 2]}\n')
    last, _, _ = run(summarize_gpt_review.main, "--dir", tmp_path)
    assert last["files"] == {name: {"all": 50.0, "unreadable": 0} for name in ("a", "review_b")}
    last, _, _ = run(summarize_gpt_review.main, "--dir", tmp_path, "--files", "other.jsonl")
    assert list(last["files"]) == ["other"]
    last, _, _ = run(summarize_gpt_review.main, "--dir", tmp_path, "--select", "view", "--version", "_b")
    assert list(last["files"]) == ["review_b"]


@pytest.mark.parametrize(
    ("flags", "content", "complaint"),
    [
        ([], None, "neither --dir nor --files"),
        (["--dir", "."], None, "holds no gpt4_text"),
        (["--files", "r.jsonl", "--select", "v1.6"], "{}\n", "no review file has what --select"),
        (["--files", "r.jsonl"], '{"tuple": 3}\n', "line 1 has no pair"),
    ],
)
def test_reviews_that_cannot_be_summarised(tmp_path, monkeypatch, flags, content, complaint):
    monkeypatch.chdir(tmp_path)
    if content:
        (tmp_path / "r.jsonl").write_text(content)
    with pytest.raises(SystemExit, match=complaint):
        summarize_gpt_review.main(flags)


def test_mmvets_own_evaluator(data, tmp_path, run):
    results = tmp_path / "results"
    results.mkdir()
    (results / "m.json").write_text(json.dumps({f"v1_{number}": f"said {number}" for number in range(4)}))
    flags = ["--mmvet_path", data / "mm-vet", "--ckpt_name", "m", "--result_path", results]
    with serving(lambda body, number: "1.0" if "said 1" in body["messages"][0]["content"] else "0.2") as judge:
        last, _, _ = run(
            eval_gpt_mmvet.main, *flags, "--judge-base-url", judge.url, "--judge-model", "org/j", "--judge-runs", "2"
        )
    assert last["main"] == 40.0
    grades = json.loads((results / "m_org_j-grade-2runs.json").read_text())
    assert grades["v1_1"] == {"model": ["fake-judge-2026"] * 2, "content": ["1.0"] * 2, "score": [1.0, 1.0]}
    with (results / "m_org_j-cap-score-2runs.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert row == {
        **{"": "m", "math": "20.0", "ocr": "20.0", "rec": "60.0", "gen": "20.0"},
        **{"total": "40.0", "std": "0.0", "runs": "[40.0, 40.0]"},
    }
    assert (results / "m_org_j-cap-int-score-2runs.csv").read_text().startswith(",math_ocr,gen_rec,rec,total")


def predictions(tmp_path, answers):
    ids = ("v_clip_1_0", "v_clip_1_1", "v_clip_2_0", "v_clip_3_0")
    rows = [
        {"id": name, "question": "?", "answer": answer, "pred": name} for name, answer in zip(ids, answers, strict=True)
    ]
    file = tmp_path / "merge.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_video_llavas_judging(data, tmp_path, run):
    file = predictions(tmp_path, ["red", "nothing", "red", "nothing"])
    truths = data / "GPT_Zero_Shot_QA" / "MSVD_Zero_Shot_QA" / "test_a.json"
    output = tmp_path / "results.json"
    flags = ["--pred_path", file, "--output_dir", tmp_path / "out", "--output_json", output]
    with serving(dictionary) as judge:
        key = ["--api_base", judge.url, "--api_key", "abc", "--num_tasks", "2"]
        last, text, errors = run(eval_video_qa.main, *flags, *key, "--gt_file_answers", truths)
        assert "2 answer lines claim another truth" in errors
        assert set(judge.authorizations) == {"Bearer abc"}
        run(eval_video_qa.main, *flags, *key, "--gt_file_answers", truths)
        assert len(judge) == 4
        trusting, _, _ = run(eval_video_qa.main, *flags, *key)
        assert (len(judge), trusting["labels"][0][:5]) == (6, "judge")  # two truths are others, two requests are new
    assert last["main"] == 50.0
    assert last["parts"]["score"]["0 to 5"]["value"] == 2.5
    assert "Yes count: 2\nNo count: 2\nAccuracy: 50.00 %\nAverage score: 2.50\n" in text
    verdicts = json.loads(output.read_text())
    assert verdicts["v_clip_1_0"] == [{"pred": "yes", "score": 4}, {"q": "?", "a": "red", "pred": "v_clip_1_0"}]
    assert "temperature" not in judge.bodies[0]


def test_two_answers_to_one_id(tmp_path):
    file = tmp_path / "p.jsonl"
    rows = [{"id": "a", "question": "?", "answer": "x", "pred": pred} for pred in ("one", "two")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--pred_path", str(file), "--output_dir", str(tmp_path), "--output_json", str(tmp_path / "o.json")]
    with pytest.raises(SystemExit, match="id a has two answers"):
        eval_video_qa.main([*flags, "--api_base", "http://127.0.0.1:9/v1"])


@pytest.mark.parametrize("program", ["reviews", "mmvet", "video"])
def test_programs_that_only_judge_want_a_judge(data, answers, tmp_path, program):
    mmvet = ["--mmvet_path", data / "mm-vet", "--ckpt_name", "m", "--result_path", tmp_path]
    video = ["--pred_path", tmp_path / "p", "--output_dir", tmp_path, "--output_json", tmp_path / "o"]
    main, flags = {
        "reviews": (eval_gpt_review_bench.main, bench_flags(data, answers("llavabench"), tmp_path / "o")),
        "mmvet": (eval_gpt_mmvet.main, mmvet),
        "video": (eval_video_qa.main, video),
    }[program]
    with pytest.raises(SystemExit, match="no judge was given; give --judge-base-url"):
        main([str(flag) for flag in flags])
