"""Hostile and accidental input: no traceback, no hang, nothing done is lost, and memory stays below a bound."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from flowcut.registry import parse_pruner
from llava.eval import model_vqa_loader
from llava.eval.questions import read_questions
from llava.given import decode_base64, read_json
from llava.mm_utils import process_images
from llava.pictures import as_rgb, decode_image, read_picture
from tests import hostile_inputs as hostile

LONGEST_REASON = 500


def refused(read, *given) -> bool:
    """Whether `read` refuses with a ValueError of one line; False where it takes the input."""
    try:
        read(*given)
    except ValueError as error:
        said = str(error)
    else:
        return False
    assert said.strip(), "a reason is said"
    assert "\n" not in said, f"{given!r:.80}: {said}"
    return True


def test_there_are_at_least_three_hundred(tmp_path):
    assert hostile.count(tmp_path) >= 300


@pytest.fixture
def no_ghostscript(monkeypatch):
    def run(*_, **__):
        raise AssertionError("PostScript reached Ghostscript")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)


def test_pictures(tmp_path, no_ghostscript):
    taken = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, (name, content) in enumerate(hostile.pictures()):
            file = tmp_path / f"{number}.jpg"
            file.write_bytes(content)
            ways = refused(read_picture, file), refused(decode_image, content)
            assert ways[0] == ways[1], f"{name} is read from a file, or from bytes, only"
            if not ways[0]:
                assert read_picture(file).mode == "RGB"
                taken.add(name)
    assert {"whole PNG", "whole TIFF", "16 bits", "CMYK", "one bit", "on its side", "thin 1 x 100000"} <= taken
    assert not taken & {"PostScript", "DOS EPS", "floats", "negative integers", "random bytes", "empty"}
    assert not any(name.startswith(("other format", "claimed")) for name in taken)


def test_sixteen_bits_are_scaled():
    grey = Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.uint16))
    assert np.asarray(as_rgb(grey))[0, :, 0].tolist() == [0, 128, 255]


def test_base64_in_every_form():
    content = bytes(range(256)) + b"."
    for text in hostile.base64_forms(content):
        assert decode_base64(text) == content
        assert decode_base64(text.encode()) == content
    for text in hostile.bad_base64():
        assert refused(decode_base64, text), text


def test_question_files(tmp_path):
    """Whatever stands in a line, the lines before and after it are read, the first one after a byte order mark."""
    lines = list(hostile.question_lines())
    good = [json.dumps(hostile.GOOD | {"question_id": number}).encode() for number in range(len(lines) + 1)]
    mixed = [line for pair in zip(good, lines, strict=False) for line in pair] + good[-1:]
    file = tmp_path / "questions.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + b"\n".join(mixed))
    questions, problems = read_questions(file)
    assert [question.question_id for question in questions] == list(range(len(good)))
    broken = sum(line.count(b"\n") for line in lines)  # UTF-16 has line ends of its own
    assert len(problems) >= len(lines) - broken
    assert all("\n" not in problem.what and len(problem.what) < LONGEST_REASON for problem in problems)
    for line in lines:
        file.write_bytes(line)
        refused(read_json, file)


def test_pruner_texts():
    for text in hostile.pruner_texts():
        refused(parse_pruner, text)


@pytest.fixture
def folder(tmp_path):
    hostile.noise().save(tmp_path / "good.png")
    return tmp_path


@pytest.fixture
def arguments(folder, llava_folder):
    shared = ["--model-path", str(llava_folder), "--image-folder", str(folder), "--conv-mode", "v1", "--device", "cpu"]
    files = ["--question-file", str(folder / "q.jsonl"), "--answers-file", str(folder / "a.jsonl")]
    return [*shared, *files, "--temperature", "0", "--max_new_tokens", "2"]


def ask(folder: Path, rows: list[dict]) -> None:
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_flags(folder, arguments, capsys):
    """One line each, before or after loading; and the answers that were there stay."""
    ask(folder, [hostile.GOOD])
    model_vqa_loader.main(arguments)
    before = (folder / "a.jsonl").read_bytes()
    assert before.count(b"\n") == 1
    for more in hostile.flags():
        try:
            model_vqa_loader.main([*arguments, *more])
        except SystemExit as stop:
            code = stop.code
        else:
            pytest.fail(f"{more} is accepted")
        said = str(code) if code not in (1, 2) else capsys.readouterr().err
        assert said.strip(), f"{more}: nothing is said"
        assert "Traceback" not in said
        assert code == 2 or said.count("\n") == 0, f"{more}: {said}"
    assert (folder / "a.jsonl").read_bytes() == before


def test_pictures_of_questions(folder, arguments, capsys, no_ghostscript):
    """Each bad picture is its own question's problem, in worker processes too, and the run can be continued."""
    values = list(hostile.pictures_that_fail(folder))
    rows = [hostile.GOOD | {"question_id": number, "image": value} for number, value in enumerate(values)]
    ask(folder, [hostile.GOOD, *rows, hostile.GOOD | {"question_id": "last"}])
    for more in ([], ["--workers", "1"]):
        with pytest.raises(SystemExit) as end:
            model_vqa_loader.main([*arguments, *more, "--batch-size", "3"])
        assert end.value.code == 1
        answers = [json.loads(line) for line in (folder / "a.jsonl").read_text().splitlines()]
        assert [row["question_id"] for row in answers] == ["good", "last"]
        assert capsys.readouterr().err.count("not answered: ") == len(values)


def test_long_prompts(folder, arguments, capsys):
    """A prompt that the context cannot hold is refused before it is computed; the answer ends with the context."""
    words = "two cats " * 1500
    long = [{"question_id": 1, "text": words}, {"question_id": 2, "text": "a" * 1_000_000}]
    many = {"question_id": 3, "image": ["good.png"] * 150, "text": "why"}
    ask(folder, [hostile.GOOD | row for row in (*long, many)] + [hostile.GOOD])
    with pytest.raises(SystemExit):
        model_vqa_loader.main([*arguments, "--batch-size", "2"])
    assert capsys.readouterr().err.count("the model's context is 2048") == 3
    assert json.loads((folder / "a.jsonl").read_text())["question_id"] == "good"


def test_errors_of_the_model_and_of_the_disk(folder, arguments, capsys, monkeypatch):
    """Any error in answering is that question's problem; a full disk, or Ctrl-C, keeps the answers so far."""
    ask(folder, [hostile.GOOD | {"question_id": number, "text": f"{number} cats"} for number in range(4)])
    from llava.eval.answering.answer_run import AnswerRun
    from llava.eval.answering.journal import Journal

    real_answer, real_write = AnswerRun._answer, Journal.write

    def odd(self, batch):
        if any("1 cats" in one.question.text for one in batch):
            raise RuntimeError("two\nlines")
        return real_answer(self, batch)

    def full(failure):
        def write(self, line):
            if len(self) == 2:
                raise failure
            real_write(self, line)

        return write

    monkeypatch.setattr(AnswerRun, "_answer", odd)
    for failure, status in (
        (OSError(28, "No space left on device"), "No space left on device"),
        (KeyboardInterrupt(), 130),
    ):
        monkeypatch.setattr(Journal, "write", full(failure))
        with pytest.raises(SystemExit) as end:
            model_vqa_loader.main([*arguments])
        assert status in (end.value.code, str(end.value).removeprefix("error: ").partition(";")[0])
        assert (folder / "a.jsonl").read_bytes().count(b"\n") == 2
    monkeypatch.setattr(Journal, "write", real_write)
    with pytest.raises(SystemExit):
        model_vqa_loader.main(arguments)
    assert "question 1: RuntimeError: two lines" in capsys.readouterr().err
    assert [json.loads(row)["question_id"] for row in (folder / "a.jsonl").read_text().splitlines()] == [0, 2, 3]


def peak() -> int:
    """The largest memory of this process since it was last reset, in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


@pytest.mark.parametrize("aspect", ["pad", None, "anyres"])
def test_memory_stays_below_a_bound(aspect):
    """Thin pictures become squares, or short sides that are enlarged; 1 x 20000 once took 12 GB."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    config = SimpleNamespace(image_aspect_ratio=aspect, image_grid_pinpoints=[[336, 672], [672, 336], [672, 672]])
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak()
    for size in ((1, 20_000), (100_000, 1), (16_000, 240)):
        process_images([Image.new("RGB", size)], processor, config)
    assert peak() - before < 600
