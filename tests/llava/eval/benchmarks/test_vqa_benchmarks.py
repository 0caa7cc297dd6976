"""VQAv2, VizWiz and TextVQA: question files, ten humans, uploads."""

import json

import pytest

from llava.eval.benchmarks import textvqa, vizwiz, vqav2
from llava.eval.sample import Sample
from tests.llava.eval.data_tree import write_answers


def rows_of(file):
    return [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]


def test_vqav2_question_files(folder_of):
    bench, split, folder = folder_of("vqav2")
    prepared = bench.prepare(folder, split)
    assert prepared.question_file.name == "llava_vqav2_mscoco_test-dev2015.jsonl"
    assert rows_of(prepared.question_file)[2] == {
        "question_id": 2000,
        "image": "COCO_test2015_000000000002.jpg",
        "text": "What is 2000?\nAnswer the question using a single word or phrase.",
        "category": "default",
    }
    assert prepared.absent == []
    val = bench.prepare(folder, bench.split("val"))
    assert (val.images, val.absent, val.questions) == (folder / "val2014", [], 3)


def test_vqav2_val_by_hand(folder_of, scored_with):
    """yes: ten of ten, 1. two: the model's becomes 2, of which humans say 7 -> 1. t-shirt -> t shirt, twice -> 0.6."""
    replies = {4000: "Yes.", 4001: "two", 5000: "t-shirt"}
    summary, scores = scored_with(folder_of("vqav2", "val"), lambda row: replies[row["question_id"]])
    assert [one.value for one in scores] == pytest.approx([1.0, 1.0, 0.6])
    assert summary["main"] == 86.67
    assert summary["parts"]["answer"] == {
        "number": {"value": 100.0, "n": 1},
        "other": {"value": 60.0, "n": 1},
        "yes/no": {"value": 100.0, "n": 1},
    }
    assert summary["parts"]["question"]["how many"] == {"value": 100.0, "n": 1}


def test_vqav2_upload_lists_all_of_test2015(folder_of, tmp_path):
    bench, split, folder = folder_of("vqav2")
    file = write_answers(tmp_path / "a.jsonl", bench.rows(folder, split)[:2], lambda row: "The Cat.")
    joined = bench.read(folder, file, split)
    assert [bench.score(sample).value for sample in joined.samples] == [None] * 3  # no public answers
    upload = json.loads(bench.export(folder, split, joined.samples, tmp_path / "a").read_text())
    assert upload == [
        {"question_id": 1000, "answer": "cat"},
        {"question_id": 1001, "answer": "cat"},
        *({"question_id": one, "answer": ""} for one in (2000, 3000, 3001)),
    ]
    (folder / "v2_OpenEnded_mscoco_test2015_questions.json").unlink()
    with pytest.raises(ValueError, match="the server needs answers for its ids"):
        bench.export(folder, split, joined.samples, tmp_path / "a")


def test_vqav2_rounds_as_officially():
    scores = [vqav2.Score(n, value) for n, value in enumerate([1.0, 0.0, 0.0])]
    assert vqav2.aggregate(scores)["main"] == 33.33
    assert vqav2.aggregate([])["main"] is None


def test_vizwiz_question_file(folder_of):
    bench, split, folder = folder_of("vizwiz")
    prepared = bench.prepare(folder, split)
    first = rows_of(prepared.question_file)[0]
    assert (prepared.question_file.name, first["question_id"], first["image"]) == (
        "llava_test.jsonl",
        0,
        "VizWiz_test_00000000.jpg",
    )
    assert first["text"].split("\n") == [
        "What is this, number 0?",
        "When the provided information is insufficient, respond with 'Unanswerable'.",
        "Answer the question using a single word or phrase.",
    ]


def test_vizwiz_val_by_hand(folder_of, scored_with):
    replies = iter(["Unanswerable", "a cup", "no"])
    summary, scores = scored_with(folder_of("vizwiz", "val"), lambda row: next(replies))
    assert [one.value for one in scores] == pytest.approx([1.0, 1.0, 0.0])
    assert summary["main"] == pytest.approx(200 / 3, abs=1e-3)
    assert summary["parts"]["type"]["other"] == {"value": 100.0, "n": 1}


def test_vizwiz_ids_of_a_foreign_question_file(folder_of, scored_with):
    """The annotation is found by picture, so the file may number as it likes and leave questions out."""
    made = folder_of("vizwiz", "val")
    bench, split, folder = made
    rows = bench.build(folder, split)
    foreign = [{**row, "question_id": 100 + row["question_id"]} for row in reversed(rows[1:])]
    (folder / split.question_file).write_text("".join(json.dumps(row) + "\n" for row in foreign))
    summary, scores = scored_with(made, lambda row: "yes" if row["image"].endswith("2.jpg") else "mug")
    assert [one.question_id for one in scores] == [102, 101]
    assert (summary["main"], summary["n"]) == (100.0, 2)


def test_vizwiz_upload_wants_every_answer():
    samples = [Sample(0, ("0",), extra="a.jpg", text="It's a Cup!"), Sample(1, ("1",), extra="b.jpg", text="")]
    assert vizwiz.upload_rows(samples) == [{"image": "a.jpg", "answer": "it 's cup"}, {"image": "b.jpg", "answer": ""}]
    with pytest.raises(ValueError, match=r"1 of 3 questions have no answer \(first: 2\)"):
        vizwiz.upload_rows([*samples, Sample(2, ("2",), extra="c.jpg")])


def test_textvqa_question_files(folder_of):
    bench, split, folder = folder_of("textvqa")
    rows = rows_of(bench.prepare(folder, split).question_file)
    assert rows[0]["question_id"] == 34602  # not the picture's id, which two questions share
    assert rows[0]["text"].split("\n") == [
        "What brand is it?",
        "Reference OCR token: ACME, 19 99",  # the line break inside a token is gone
        "Answer the question using a single word or phrase.",
    ]
    assert rows[3]["text"].split("\n")[1] == "Reference OCR token: "
    plain = rows_of(bench.prepare(folder, bench.split("val-no-ocr")).question_file)
    assert plain[0]["text"] == "What brand is it?\nAnswer the question using a single word or phrase."


REPLIES = {34602: "Acme", 34603: "1999.", 34604: "Stop", 34605: "7"}


def test_textvqa_by_hand(folder_of, scored_with):
    """acme: 6 + 2 of ten -> 1; 1999 -> 1; stop: 2 -> 0.6; 7: three say seven and one 7 -> 1."""
    summary, scores = scored_with(folder_of("textvqa"), lambda row: REPLIES[row["question_id"]])
    assert [one.value for one in scores] == pytest.approx([1.0, 1.0, 0.6, 1.0])
    assert summary["main"] == pytest.approx(90.0)


def test_textvqa_answers_of_llavas_file(folder_of, tmp_path):
    """Image ids as question ids; picture and wording tell the question."""
    bench, split, folder = folder_of("textvqa")
    official = textvqa.annotated(folder / textvqa.ANNOTATION)
    foreign = [
        {"question_id": row["image_id"], "text": f"{row['question'].upper()}\nReference OCR token: A, B\nAnswer it."}
        for row in official
    ]
    texts = iter(REPLIES.values())
    joined = bench.read(folder, write_answers(tmp_path / "a.jsonl", foreign, lambda row: next(texts)), split)
    assert [one.text for one in joined.samples] == list(REPLIES.values())
    assert joined.unknown == []


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("What IS it?\nAnswer.", "what is it?"),
        ("Why?\nReference OCR token: a\nAnswer.", "why?"),
        ("Reference OCR token: a, b\nWhy?\nAnswer.", "why?"),
        ("OCR tokens: a, b. Question: Why so? Short answer:", "why so?"),
    ],
)
def test_textvqa_question_of_a_prompt(prompt, question):
    assert textvqa.question_of(prompt) == question


@pytest.mark.parametrize("prompt", ["Why?", "Why?\nReference OCR token: a\nb\nAnswer.", "a\nb\nc", ""])
def test_textvqa_prompts_that_tell_nothing(prompt):
    with pytest.raises(ValueError, match="no question was found"):
        textvqa.question_of(prompt)


def test_textvqa_image_ids_need_the_prompt():
    with pytest.raises(ValueError, match="image ids repeat"):
        textvqa.answer_key({"question_id": "0a1b", "text": "x"})
