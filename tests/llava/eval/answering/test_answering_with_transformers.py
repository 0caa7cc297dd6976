"""The answering programs with transformers' models: same files, resumed, whatever the batch and the workers."""

import json
import shutil

import pytest

from llava.eval import model_vqa_loader
from tests.llava.eval.media.videos import write_video

pytest.importorskip("av", reason="videos need PyAV: pip install av")


@pytest.fixture
def asked(question_folder):
    """Four pictures and two videos, one of them damaged."""
    rows = [json.loads(line) for line in (question_folder / "questions.jsonl").read_text().splitlines()][:4]
    write_video(question_folder / "images" / "a.mp4", 9)
    (question_folder / "images" / "b.mp4").write_bytes(b"nothing")
    rows += [{"question_id": name, "image": f"{name}.mp4", "text": "how many cats"} for name in "ab"]
    (question_folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return question_folder


def run(folder, model, answers, *more):
    model_vqa_loader.main(
        [
            *("--model-path", str(model), "--question-file", str(folder / "questions.jsonl")),
            *("--image-folder", str(folder / "images"), "--answers-file", str(folder / answers)),
            *("--temperature", "0", "--max_new_tokens", "5", "--device", "cpu", "--frames", "3", "--skip-bad", *more),
        ]
    )
    rows = [json.loads(line) for line in (folder / answers).read_text().splitlines()]
    for row in rows:
        row["metadata"] = {k: v for k, v in row["metadata"].items() if not k.endswith("ms") and k != "batch"}
    return rows


@pytest.mark.parametrize("more", [("--batch-size", "4"), ("--workers", "2")])
def test_pictures_and_videos_in_one_file(asked, hf_folder, more):
    model, pruner = hf_folder("video_llava"), ("--pruner", "flowcut:budget=6")
    alone = run(asked, model, "alone.jsonl", *pruner)
    assert [row["question_id"] for row in alone] == [0, 1, 2, 3, "a"]
    assert [row["metadata"]["visual_tokens"] for row in alone] == [6, 6, 6, 6, 18]
    assert run(asked, model, "more.jsonl", *pruner, *more) == alone
    [bad] = (asked / "more.bad.jsonl").read_text().splitlines()
    assert "b.mp4 cannot be read" in bad


def test_a_file_is_resumed_and_bad_videos_may_be_mended(asked, hf_folder):
    first = run(asked, hf_folder("qwen2_vl"), "answers.jsonl")
    shutil.copy(asked / "images" / "a.mp4", asked / "images" / "b.mp4")
    again = run(asked, hf_folder("qwen2_vl"), "answers.jsonl")
    assert again[:5] == first
    assert again[5]["question_id"] == "b"
    assert again[5]["text"] == first[4]["text"]


def test_other_settings_do_not_continue_a_file(asked, hf_folder):
    run(asked, hf_folder("qwen2_vl"), "answers.jsonl")
    with pytest.raises(SystemExit, match=r"written with other settings \(max_pixels None -> 6400"):
        run(asked, hf_folder("qwen2_vl"), "answers.jsonl", "--max-pixels", "6400")


def test_flags_that_do_not_fit_are_one_line(asked, llava_folder):
    with pytest.raises(SystemExit, match="error: max_pixels=6400 is for models such as Qwen2-VL"):
        run(asked, llava_folder, "answers.jsonl", "--max-pixels", "6400")
