"""The answers file as a journal."""

import json
import os
from pathlib import Path

import pytest

from llava.eval.answering.journal import Journal
from llava.eval.questions import Problem, Question

QUESTIONS = [Question(number, (f"{number}.png",), "why?") for number in range(4)]
SETTINGS = {"model": "m", "chunk": (0, 1)}


def line(question: Question, text: str = "because") -> dict:
    return {"question_id": question.question_id, "prompt": question.text, "text": text}


def ids(path) -> list:
    return [json.loads(row)["question_id"] for row in path.read_text().splitlines()]


def test_half_a_line_is_dropped(tmp_path):
    path = tmp_path / "a.jsonl"
    journal = Journal(path, SETTINGS)
    journal.write(line(QUESTIONS[0], "Zürich"))
    journal.write(line(QUESTIONS[1]))
    whole = path.read_bytes()
    journal.close()
    half = json.dumps(line(QUESTIONS[2], "Zürich"), ensure_ascii=False).encode()
    for cut in range(1, len(half)):
        path.write_bytes(whole + half[:cut])
        again = Journal(path, SETTINGS)
        assert path.read_bytes() == whole
        assert again.pending(QUESTIONS) == QUESTIONS[2:]
        again.close()


def test_what_an_earlier_run_left_out_is_put_in_its_place(tmp_path):
    path = tmp_path / "a.jsonl"
    journal = Journal(path, SETTINGS)
    for question in (QUESTIONS[0], QUESTIONS[2], QUESTIONS[3]):
        journal.write(line(question))
    journal.finish(QUESTIONS, [Problem("question 1", "image 1.png does not exist")])
    assert json.loads(journal.bad_file.read_text()) == {"where": "question 1", "what": "image 1.png does not exist"}

    journal = Journal(path, SETTINGS)
    assert journal.pending(QUESTIONS) == [QUESTIONS[1]]
    journal.write(line(QUESTIONS[1]))
    assert ids(path) == [0, 2, 3, 1]
    journal.finish(QUESTIONS, [])
    assert ids(path) == [0, 1, 2, 3]
    assert not journal.bad_file.exists()


def test_repeated_questions_are_counted(tmp_path):
    twice = [QUESTIONS[0], QUESTIONS[1], QUESTIONS[0]]
    journal = Journal(tmp_path / "a.jsonl", SETTINGS)
    journal.write(line(QUESTIONS[0], "first"))
    assert journal.pending(twice) == twice[1:]
    journal.write(line(QUESTIONS[1]))
    journal.write(line(QUESTIONS[0], "second"))
    journal.finish(twice, [])
    assert ids(journal.path) == [0, 1, 0]


def test_other_settings_are_refused_and_named(tmp_path):
    path = tmp_path / "a.jsonl"
    Journal(path, SETTINGS).write(line(QUESTIONS[0]))
    assert Journal.fits(path, SETTINGS)
    other = SETTINGS | {"model": "n"}
    assert not Journal.fits(path, other)
    with pytest.raises(ValueError, match=r"other settings \(model 'm' -> 'n'\)"):
        Journal(path, other)
    assert ids(path) == [0], "a refusal must not touch the answers"
    anew = Journal(path, other, fresh=True)
    assert len(anew) == 0
    anew.close()
    assert path.read_text() == ""


def test_foreign_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(line(QUESTIONS[0])) + "\n")
    with pytest.raises(ValueError, match=r"a\.settings\.json"):
        Journal(path, SETTINGS)
    Journal(path, SETTINGS, fresh=True).write(line(QUESTIONS[0]))
    path.write_text("{nonsense\n" + path.read_text())
    with pytest.raises(ValueError, match="line 1 is not an answer"):
        Journal(path, SETTINGS)


def test_answers_to_other_questions_are_refused(tmp_path):
    journal = Journal(tmp_path / "a.jsonl", SETTINGS)
    journal.write(line(QUESTIONS[3]))
    with pytest.raises(ValueError, match="1 answers to questions that are not part of this run"):
        journal.pending(QUESTIONS[:3])


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "a.jsonl"
    first = Journal(path, SETTINGS)
    first.write(line(QUESTIONS[0]))
    for fresh in (False, True):
        with pytest.raises(ValueError, match="is being written by another process"):
            Journal(path, SETTINGS, fresh)
    assert ids(path) == [0]
    first.close()
    assert len(Journal(path, SETTINGS)) == 1


def test_files_of_the_same_stem_have_settings_of_their_own(tmp_path):
    for number, name in enumerate(("a.jsonl", "a.json", "a")):
        journal = Journal(tmp_path / name, {"model": number})
        journal.write(line(QUESTIONS[number]))
        journal.finish(QUESTIONS, [Problem("question", name)])
    for number, name in enumerate(("a.jsonl", "a.json", "a")):
        assert Journal.fits(tmp_path / name, {"model": number})
    assert len(list(tmp_path.iterdir())) == 9


def test_fresh_discards_regular_files_only(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    for path in ("/dev/null", tmp_path / "pipe.jsonl", tmp_path / "folder.jsonl"):
        with pytest.raises(ValueError, match="is not a regular file"):
            Journal(path, SETTINGS, fresh=True)
        assert Path(path).exists()
