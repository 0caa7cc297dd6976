"""Video-LLaVA's program: its lines, answers that fit whatever the chunk, resumed."""

import json

import pytest

from llava.eval.benchmarks.video_qa import answer_line
from llava.eval.video import run_inference_video_qa as program

pytest.importorskip("av", reason="videos need PyAV: pip install av")


def run(folder, model, name, *more):
    program.main(
        [
            *("--model_path", str(model), "--video_dir", str(folder / "videos"), "--cache_dir", str(folder / "cache")),
            *("--gt_file_question", str(folder / "test_q.json"), "--gt_file_answers", str(folder / "test_a.json")),
            *("--output_dir", str(folder / "out"), "--output_name", name, "--device", "cpu"),
            *("--frames", "3", "--max_new_tokens", "5", *more),
        ]
    )
    return [json.loads(line) for line in (folder / "out" / f"{name}.json").read_text().splitlines()]


def test_lines_are_video_llavas(benchmark_folder, video_model):
    lines = run(benchmark_folder, video_model, "merge")
    assert all(list(line) == ["id", "question", "answer", "pred"] for line in lines)
    assert [line["id"] for line in lines] == [f"v_{number}" for number in range(5)]
    assert [line["answer"] for line in lines] == [f"answer {number}" for number in range(5)]
    assert lines[1]["question"] == "how many cats"
    assert len({line["pred"] for line in lines}) > 1
    assert answer_line(lines[0])["text"] == lines[0]["pred"]


def test_chunks_join_to_the_whole(benchmark_folder, video_model):
    """Right answers included, which the original takes from the beginning for every chunk."""
    flags = ("--pruner", "flowcut:budget=6")
    whole = run(benchmark_folder, video_model, "whole", *flags)
    parts = [
        run(benchmark_folder, video_model, f"2_{part}", *flags, "--num_chunks", "2", "--chunk_idx", str(part))
        for part in (0, 1)
    ]
    assert [len(part) for part in parts] == [3, 2]
    assert parts[0] + parts[1] == whole
    assert run(benchmark_folder, video_model, "batch", *flags, "--batch_size", "5") == whole


def test_a_killed_run_goes_on(benchmark_folder, video_model):
    whole = run(benchmark_folder, video_model, "whole")
    run(benchmark_folder, video_model, "killed")
    answers = benchmark_folder / "out" / "killed.answers.jsonl"
    (benchmark_folder / "out" / "killed.json").unlink()
    content = answers.read_text()
    third = content.splitlines(keepends=True)[2]
    answers.write_text(content[: content.index(third) + 40])  # half a line
    assert run(benchmark_folder, video_model, "killed") == whole
    assert answers.read_text().startswith(content[: content.index(third)])


def test_what_cannot_be_answered_is_told(benchmark_folder, video_model):
    (benchmark_folder / "videos" / "clip_1.avi").write_bytes(b"nothing")
    rows = json.loads((benchmark_folder / "test_a.json").read_text())
    (benchmark_folder / "test_a.json").write_text(json.dumps([row for row in rows if row["question_id"] != "v_3"]))
    with pytest.raises(SystemExit) as end:
        run(benchmark_folder, video_model, "bad")
    assert end.value.code == 1
    lines = run(benchmark_folder, video_model, "bad", "--skip_bad")
    assert [(line["id"], line["answer"]) for line in lines] == [("v_0", "answer 0"), ("v_2", "answer 2")]
    bad = [json.loads(line) for line in (benchmark_folder / "out" / "bad.answers.bad.jsonl").read_text().splitlines()]
    assert bad[0] == {"where": "test_q.json entry 4", "what": "question v_3 has no answer to compare with"}
    assert [problem["where"] for problem in bad[1:]] == ["question v_1", "question v_4"]
    assert all("clip_1.avi cannot be read" in problem["what"] for problem in bad[1:])


def test_the_prompt_may_be_the_checkpoints_own(benchmark_folder, video_model):
    theirs = run(benchmark_folder, video_model, "theirs")
    own = run(benchmark_folder, video_model, "own", "--conv_mode", "")
    assert [line["pred"] for line in own] != [line["pred"] for line in theirs]
    settings = json.loads((benchmark_folder / "out" / "own.answers.settings.json").read_text())
    assert settings["conv_mode"] == "chat template"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test_q.json", "[", "is not JSON"),
        ("test_q.json", '{"a": 1}', "is not a JSON list of video_name, question, question_id"),
        ("test_a.json", '[{"question_id": 1}]', "is not a JSON list of question_id, answer"),
        (
            "test_a.json",
            '[{"question_id": 1, "answer": "a"}, {"question_id": 1, "answer": "b"}]',
            "answers question 1 twice, 'a' and 'b'",
        ),
        ("test_a.json", None, "does not exist"),
    ],
)
def test_bad_files_are_one_line(benchmark_folder, video_model, name, content, message):
    (benchmark_folder / name).unlink()
    if content is not None:
        (benchmark_folder / name).write_text(content)
    with pytest.raises(SystemExit) as end:
        run(benchmark_folder, video_model, "bad")
    assert str(end.value).startswith("error: ")
    assert message in str(end.value)
    assert "\n" not in str(end.value)
