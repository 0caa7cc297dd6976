import json

import pytest

from tests.llava.eval.media.videos import write_video
from tests.llava.eval.models.tiny import write_tiny_checkpoint


@pytest.fixture(scope="session")
def video_model(tmp_path_factory):
    """A tiny Video-LLaVA."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny-video", "video_llava")


@pytest.fixture
def benchmark_folder(tmp_path):
    """Five questions about three videos in Video-LLaVA's layout; the answers stand in another order."""
    (tmp_path / "videos").mkdir()
    for name, frames in (("clip_0.mp4", 9), ("clip_1.avi", 12), ("clip_2.mp4", 15)):
        write_video(tmp_path / "videos" / name, frames)
    asked = ["what is in this image", "how many cats", "two", "hello red star", "yes no"]
    questions = [
        {"video_name": f"clip_{number % 3}", "question": text, "question_id": f"v_{number}"}
        for number, text in enumerate(asked)
    ]
    answers = [{"question_id": f"v_{number}", "answer": f"answer {number}"} for number in (3, 1, 4, 0, 2)]
    (tmp_path / "test_q.json").write_text(json.dumps(questions))
    (tmp_path / "test_a.json").write_text(json.dumps(answers))
    return tmp_path
