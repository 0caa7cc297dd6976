"""Miniatures of the benchmarks that a judge scores: MM-Vet, LLaVA-Bench, and the three video sets.

Like `data_tree`: contents are invented, formats are the official ones. Videos are real where PyAV is installed; without
it they are empty files of the right names.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from tests.llava.eval.data_tree import COLORS, lines, picture, save, write

FRAMES = 12


def make_mmvet(folder: Path) -> None:
    """Four questions; capabilities math and ocr together twice, in both orders."""
    rows = {}
    for number, (question, answer, capability) in enumerate(
        [
            ("Which numbers solve it?", "-1<AND>5", ["ocr", "math"]),
            ("What color is the square?", "green<OR>lime", ["rec"]),
            ("Which sum is written there?", "12", ["math", "ocr"]),
            ("Why is this strange?", "The corner is white.", ["rec", "gen"]),
        ]
    ):
        name = f"v1_{number}"
        rows[name] = {
            "imagename": f"{name}.png",
            "question": question,
            "answer": answer,
            "imagesource": "drawn",
            "capability": capability,
        }
        save(number, folder / "images" / f"{name}.png")
    write(folder / "mm-vet.json", rows)


def make_llavabench(folder: Path) -> None:
    """Two pictures, five questions; one description is a list of sentences."""
    questions = [
        ("001.jpg", "conv", "What color is the square?"),
        ("001.jpg", "detail", "Describe the picture in detail."),
        ("002.jpg", "conv", "Is there a corner?"),
        ("002.jpg", "complex", "Why might somebody draw this?"),
        ("002.jpg", "complex", "What could come next?"),
    ]
    for number in (0, 1):
        save(number, folder / "images" / f"00{number + 1}.jpg")
    rows = [
        {"question_id": number, "image": image, "category": category, "text": text}
        for number, (image, category, text) in enumerate(questions)
    ]
    references = [
        {"question_id": number, "text": f"The reference to {number}.", "answer_id": f"ref{number}", "model_id": "gpt4"}
        for number in reversed(range(len(questions)))  # nothing may rest on the order of lines
    ]
    write(folder / "questions.jsonl", lines(rows))
    write(folder / "answers_gpt4.jsonl", lines(references))
    contexts = [
        {"id": "001", "image": "001.jpg", "caption": "A red square with a green corner."},
        {"id": "002", "image": "002.jpg", "caption": ["A green square.", "Its corner is blue."]},
    ]
    write(folder / "context.jsonl", lines(contexts))


def make_video_qa(folder: Path, videos: str = "videos", ending: str = ".mp4") -> None:
    """Three clips, four questions; the answers' file is in another order than the questions'."""
    asked = [
        ("clip_1", 0, "what color is it?", "red"),
        ("clip_1", 1, "what does it do?", "nothing"),
        ("clip_2", 0, "who is it?", "woman"),
        ("clip_3", 0, "how many are there?", "two"),
    ]
    questions = [
        {"video_name": video, "question": question, "question_id": f"v_{video}_{number}"}
        for video, number, question, _ in asked
    ]
    answers = [{"answer": answer, "question_id": f"v_{video}_{number}"} for video, number, _, answer in asked]
    write(folder / "test_q.json", questions)
    write(folder / "test_a.json", answers[1:] + answers[:1])
    for number in (1, 2, 3):
        write_video(number, folder / videos / f"clip_{number}{ending}")


def write_video(number: int, path: Path) -> None:
    """A second of squares whose colours change."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if find_spec("av") is None:
        path.write_bytes(b"")
        return
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FRAMES)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for index in range(FRAMES):
            frame = av.VideoFrame.from_image(picture(number + index * len(COLORS) // FRAMES, 32))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


MAKERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "mmvet": ("mm-vet", make_mmvet),
    "llavabench": ("llava-bench-in-the-wild", make_llavabench),
    "tgif": ("GPT_Zero_Shot_QA/TGIF_Zero_Shot_QA", lambda folder: make_video_qa(folder, "mp4")),
    "msvd": ("GPT_Zero_Shot_QA/MSVD_Zero_Shot_QA", lambda folder: make_video_qa(folder, ending=".avi")),
    "msrvtt": ("GPT_Zero_Shot_QA/MSRVTT_Zero_Shot_QA", lambda folder: make_video_qa(folder, "videos/all")),
}


def make_judged_tree(root: Path, names: tuple[str, ...] = tuple(MAKERS)) -> Path:
    """The benchmarks of these names under `root`."""
    for name in names:
        folder, make = MAKERS[name]
        make(root / folder)
    return root
