"""LLaVA's evaluation program: its flags and lines, killing it, and bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llava.eval import model_vqa_loader
from llava.eval.model_vqa_loader import main
from tests.kills import Killer

ROOT = Path(__file__).parents[3]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(path: Path) -> list[dict]:
    """The lines less what a clock has written."""
    return [
        row | {"metadata": {key: value for key, value in row["metadata"].items() if not key.endswith("ms")}}
        for row in rows(path)
    ]


def test_answer_lines_are_llavas(flags, question_folder, llava_folder):
    main(flags("answers.jsonl", "--pruner", "fastervlm:budget=5"))
    answers = rows(question_folder / "answers.jsonl")
    questions = rows(question_folder / "questions.jsonl")
    assert [row["question_id"] for row in answers] == [row["question_id"] for row in questions]
    assert [row["prompt"] for row in answers] == [row["text"] for row in questions]
    for row in answers:
        assert list(row) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
        assert row["model_id"] == llava_folder.name
        assert row["metadata"]["pruner"] == "fastervlm:budget=5"
        assert row["metadata"]["visual_tokens"] == 5
    assert len({row["answer_id"] for row in answers}) == len(answers)


def test_the_batch_size_changes_no_answer(flags, question_folder):
    main(flags("one.jsonl"))
    main(flags("three.jsonl", "--batch-size", "3"))
    one, three = (rows(question_folder / name) for name in ("one.jsonl", "three.jsonl"))
    assert [row["text"] for row in one] == [row["text"] for row in three]
    assert {row["metadata"]["batch"] for row in three} == {3}


def test_chunks_join_to_the_whole(flags, question_folder):
    main(flags("whole.jsonl"))
    for index in range(5):  # ceil(8 / 5) = 2 questions each: the last chunk is empty
        main(flags(f"part{index}.jsonl", "--num-chunks", "5", "--chunk-idx", str(index)))
    parts = [row for index in range(5) for row in without_times(question_folder / f"part{index}.jsonl")]
    assert parts == without_times(question_folder / "whole.jsonl")


@pytest.mark.slow
def test_kill_at_any_moment_and_start_again(flags, question_folder):
    file = question_folder / "questions.jsonl"
    first = rows(file)
    many = [row | {"question_id": f"{turn}-{row['question_id']}"} for turn in range(12) for row in first]
    file.write_text("".join(json.dumps(row) + "\n" for row in many))
    answers = question_folder / "killed.jsonl"
    command = [sys.executable, "-m", "llava.eval.model_vqa_loader", *flags("killed.jsonl", "--batch-size", "2")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not answers.exists() or answers.read_bytes().count(b"\n") < 5):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = answers.read_bytes()
    assert 5 <= done.count(b"\n") < len(many), "the kill came too late to test anything"
    answers.write_bytes(done + b'{"question_id": "half a li')

    main(flags("killed.jsonl", "--batch-size", "2"))
    assert answers.read_bytes().startswith(done), "finished answers are not made again"
    main(flags("calm.jsonl", "--batch-size", "2"))
    assert without_times(answers) == without_times(question_folder / "calm.jsonl")
    again = answers.read_bytes()
    main(flags("killed.jsonl", "--batch-size", "2"))
    assert answers.read_bytes() == again


@pytest.mark.slow
def test_killed_at_random_moments(flags, question_folder):
    """Every time, the run that is started again ends as one that was left alone."""
    file = question_folder / "questions.jsonl"
    first = rows(file)
    many = [row | {"question_id": f"{turn}-{row['question_id']}"} for turn in range(3) for row in first]
    file.write_text("".join(json.dumps(row) + "\n" for row in many))
    killer, killed = Killer(main), 0
    killer.run(["--help"])  # which imports everything
    killer.run(flags("calm.jsonl"))
    for number, moment in enumerate(killer.moments()):
        name = f"killed{number}.jsonl"
        killed += killer.run(flags(name), until=moment)
        assert not killer.run(flags(name), until=300)
        assert without_times(question_folder / name) == without_times(question_folder / "calm.jsonl")
    assert killed


def test_bad_images_and_rows_are_reported_and_may_be_mended(flags, question_folder, capsys):
    images, file = question_folder / "images", question_folder / "questions.jsonl"
    good, original = (images / "5.png").read_bytes(), file.read_text()
    (images / "2.png").unlink()
    (images / "5.png").write_bytes(good[:40])
    file.write_text(original + '{"question_id": 99}\n')
    with pytest.raises(SystemExit) as end:
        main(flags())
    assert end.value.code == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("not answered")]
    assert len(said) == 3
    assert "questions.jsonl line 9: has no image and no text" in said[0]
    assert "question 2: image" in said[1] and "does not exist" in said[1]  # noqa: PT018
    assert "question 5: image" in said[2] and "cannot be read" in said[2]  # noqa: PT018
    answers = question_folder / "answers.jsonl"
    assert [row["question_id"] for row in rows(answers)] == [0, 1, 3, 4, 6, 7]
    assert len(rows(question_folder / "answers.bad.jsonl")) == 3

    main(flags("answers.jsonl", "--skip-bad"))  # the same, but no failure
    shutil.copy(images / "0.png", images / "2.png")
    (images / "5.png").write_bytes(good)
    main(flags("answers.jsonl", "--skip-bad"))
    assert [row["question_id"] for row in rows(answers)] == list(range(8))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--pruner", "flowcat:budget=5"], "unknown pruner 'flowcat:budget=5'"),
        (["--pruner", "flowcut:budget=0"], "budget=0 is not a whole number"),
        (["--pruner", "flowcut:budget=many"], "budget"),
        (["--pruner", "flowcut"], "has no budget"),
        (["--conv-mode", "v7"], "conversation mode 'v7' is unknown"),
        (["--question-file", "/nowhere/q.jsonl"], "question file /nowhere/q.jsonl does not exist"),
        (["--model-path", "/nowhere/model"], "/nowhere/model is not a folder"),
        (["--limit", "0"], "limit=0"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--num-chunks", "2", "--chunk-idx", "2"], "chunk 2 of 2"),
    ],
)
def test_bad_input_is_one_line_and_status_1(flags, more, said):
    with pytest.raises(SystemExit) as end:
        main(flags("answers.jsonl", *more))
    message = str(end.value)  # Python prints it to stderr and exits with 1
    assert message.startswith("error: ")
    assert said in message
    assert "\n" not in message


def test_a_model_path_without_weights(flags, llava_folder, tmp_path):
    bare = shutil.copytree(llava_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(SystemExit, match=r"error: .* has no weights"):
        main(flags("answers.jsonl", "--model-path", str(bare)))


def test_other_settings_do_not_continue_a_file(flags, question_folder):
    main(flags("answers.jsonl", "--limit", "2"))
    before = (question_folder / "answers.jsonl").read_bytes()
    with pytest.raises(SystemExit, match=r"other settings \(pruner 'none' -> .*fresh"):
        main(flags("answers.jsonl", "--limit", "2", "--pruner", "fastervlm:budget=5"))
    assert (question_folder / "answers.jsonl").read_bytes() == before
    main(flags("answers.jsonl", "--limit", "4"))  # more questions are no other settings
    assert [row["question_id"] for row in rows(question_folder / "answers.jsonl")] == [0, 2, 4, 6]
    main(flags("answers.jsonl", "--pruner", "fastervlm:budget=5", "--fresh"))
    assert len(rows(question_folder / "answers.jsonl")) == 8


def test_without_a_flag_the_checkpoints_own_pruner_is_taken(flags, llava_folder, question_folder, tmp_path, caplog):
    own = shutil.copytree(llava_folder, tmp_path / "own")
    fields = json.loads((own / "config.json").read_text()) | {"flowcut": {"method": "fastervlm", "budget": 5}}
    (own / "config.json").write_text(json.dumps(fields))
    for name, more in (("own.jsonl", []), ("all.jsonl", ["--pruner", "none"])):
        main(flags(name, "--model-path", str(own), "--limit", "2", *more))
    used = [row["metadata"] for row in rows(question_folder / "own.jsonl")]
    assert [(one["pruner"], one["visual_tokens"]) for one in used] == [("fastervlm:budget=5", 5)] * 2
    settings = json.loads((question_folder / "own.settings.json").read_text())
    assert settings["pruner"] == "FasterVLM(budget=5)"
    assert {row["metadata"]["visual_tokens"] for row in rows(question_folder / "all.jsonl")} == {16}
    said = [record.getMessage() for record in caplog.records if record.name == "llava.model.remembered_pruner"]
    assert said == [
        "own was trained with fastervlm:budget=5 and runs with it; --pruner none turns that off",
        "own was trained with fastervlm:budget=5 but runs with all visual tokens (none)",
    ]


def test_sampling_is_repeatable(flags, question_folder):
    for name, seed in (("a.jsonl", "0"), ("b.jsonl", "0"), ("c.jsonl", "1")):
        main(flags(name, "--temperature", "5", "--seed", seed))
    a, b, c = ([row["text"] for row in rows(question_folder / f"{name}.jsonl")] for name in "abc")
    assert a == b != c


def test_flags_and_defaults_are_llavas():
    args = model_vqa_loader.build_parser().parse_args(["--model-path", "m", "--question-file", "q"])
    expected = {
        "model_base": None,
        "image_folder": "",
        "answers_file": "answer.jsonl",
        "num_chunks": 1,
        "chunk_idx": 0,
        "temperature": 0.2,
        "top_p": None,
        "num_beams": 1,
        "max_new_tokens": 128,
        "pruner": None,
    }
    assert expected.items() <= vars(args).items()
