"""model_vqa, model_vqa_science and model_vqa_mmbench: their question files, prompts and answer lines."""

import base64
import io
import json

import pytest
from PIL import Image

from llava.eval import model_vqa, model_vqa_loader, model_vqa_mmbench, model_vqa_science
from llava.eval.benchmarks.answer_formats import OPTION_LETTER
from llava.eval.model_vqa_mmbench import OPTION_LETTER_CN
from llava.eval.models.llava_answerer import LlavaAnswerer


def answers(folder, name="answers.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_model_vqa_answers_as_the_loader(question_folder, flags):
    model_vqa_loader.main(flags("loader.jsonl"))
    model_vqa.main(flags("long.jsonl"))
    first, second = answers(question_folder, "loader.jsonl"), answers(question_folder, "long.jsonl")
    assert [row["text"] for row in first] == [row["text"] for row in second]
    assert model_vqa.build_parser().get_default("max_new_tokens") == 1024


@pytest.fixture
def science(question_folder):
    """Four questions, every other one with a picture."""
    rows = []
    for number in range(4):
        text = f"Context: none.\nhow many cats {number}?\nA. two\nB. red"
        row = {"id": str(number), "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "A"}]}
        if number % 2:
            row["image"] = f"{number}.png"
            row["conversations"][0]["value"] = f"<image>\n{text}"
        rows.append(row)
    (question_folder / "science.json").write_text(json.dumps(rows))
    return question_folder


def with_file(flags, folder, name):
    place = flags.index("--question-file")
    return [*flags[: place + 1], str(folder / name), *flags[place + 2 :]]


@pytest.mark.parametrize("batch", [1, 3])
def test_science(science, flags, batch):
    command = with_file(flags("answers.jsonl", "--single-pred-prompt", "--answer-prompter"), science, "science.json")
    model_vqa_science.main([*command, "--batch-size", str(batch)])
    rows = answers(science)
    assert [row["question_id"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["prompt"].startswith("<image>\n") for row in rows] == [False, True, False, True]
    assert all(row["prompt"].endswith("B. red\n" + OPTION_LETTER) for row in rows)
    assert [row["metadata"]["visual_tokens"] for row in rows] == [0, 16, 0, 16]


def test_science_does_not_depend_on_the_batch(science, flags):
    texts = []
    for batch in (1, 2, 4):
        name = f"{batch}.jsonl"
        model_vqa_science.main([*with_file(flags(name), science, "science.json"), "--batch-size", str(batch)])
        texts.append([row["text"] for row in answers(science, name)])
    assert texts[0] == texts[1] == texts[2]


def test_science_reports_bad_entries(science, flags, capsys):
    rows = json.loads((science / "science.json").read_text())
    (science / "science.json").write_text(json.dumps([*rows, {"id": "5"}]))
    with pytest.raises(SystemExit) as stop:
        model_vqa_science.main(with_file(flags(), science, "science.json"))
    assert stop.value.code == 1
    assert "science.json entry 4: is not a question" in capsys.readouterr().err
    assert len(answers(science)) == 4


@pytest.fixture
def mmbench(question_folder):
    picture = io.BytesIO()
    Image.open(question_folder / "images" / "1.png").save(picture, "PNG")
    encoded = base64.b64encode(picture.getvalue()).decode()
    lines = ["index\tquestion\thint\tA\tB\tC\tD\timage"]
    lines.append(f"3\thow many cats?\tnan\ttwo\tred\tyes\t\t{encoded}")
    lines.append(f'1000003\t"what is\nthis?"\tin this image\ttwo\tred\tyes\tno\t{encoded}')
    (question_folder / "mmbench.tsv").write_text("\n".join(lines) + "\n")
    return question_folder


def test_mmbench(mmbench, flags):
    model_vqa_mmbench.main(with_file(flags("answers.jsonl", "--single-pred-prompt"), mmbench, "mmbench.tsv"))
    first, second = answers(mmbench)
    assert (first["question_id"], second["question_id"]) == (3, 1000003)
    assert first["prompt"] == "how many cats?\nA. two\nB. red\nC. yes"
    assert second["prompt"] == "in this image\nwhat is\nthis?\nA. two\nB. red\nC. yes\nD. no"
    assert (first["options"], first["option_char"], first["round_id"]) == (["two", "red", "yes"], ["A", "B", "C"], 0)


def test_mmbench_rounds(mmbench, flags):
    command = with_file(flags("answers.jsonl", "--all-rounds"), mmbench, "mmbench.tsv")
    model_vqa_mmbench.main([*command, "--batch-size", "2"])
    rows = answers(mmbench)
    assert [(row["question_id"], row["round_id"]) for row in rows] == [(3, n) for n in range(3)] + [
        (1000003, n) for n in range(4)
    ]
    assert rows[1]["options"] == ["red", "yes", "two"]
    assert rows[1]["option_char"] == ["B", "C", "A"]
    assert rows[1]["prompt"].endswith("A. red\nB. yes\nC. two")


@pytest.mark.parametrize(
    ("more", "ending"),
    [
        (["--single-pred-prompt"], OPTION_LETTER),
        (["--single-pred-prompt", "--lang", "cn"], OPTION_LETTER_CN),
        ([], "C. yes"),
    ],
)
def test_mmbench_text(mmbench, flags, more, ending):
    args = model_vqa_mmbench.build_parser().parse_args(with_file(flags("a.jsonl", *more), mmbench, "mmbench.tsv"))
    questions, problems = model_vqa_mmbench.read(args)
    assert questions[0].text.endswith("\n" + ending)
    assert not problems


def test_mmbench_says_what_is_wrong(mmbench, flags, capsys):
    (mmbench / "no.tsv").write_text("index\tquestion\n1\twhy?\n")
    with pytest.raises(SystemExit, match="has no column A, image"):
        model_vqa_mmbench.main(with_file(flags(), mmbench, "no.tsv"))
    with (mmbench / "mmbench.tsv").open("a") as file:
        file.write("4\twhy?\t\ttwo\tred\t\t\t!!!\n5\twhy?\t\ttwo\tred\t\t\taGVsbG8=\n")
    with pytest.raises(SystemExit):
        model_vqa_mmbench.main(with_file(flags(), mmbench, "mmbench.tsv"))
    said = capsys.readouterr().err
    assert "mmbench.tsv row 3: is not a question" in said
    assert "question 5: 5 bytes hold no picture" in said
    assert len(answers(mmbench)) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(question_folder, flags, workers):
    (question_folder / "images" / "3.png").write_text("damaged")
    name = f"{workers}.jsonl"
    model_vqa_loader.main(flags(name, "--workers", str(workers), "--batch-size", "3", "--skip-bad"))
    rows = answers(question_folder, name)
    assert [row["question_id"] for row in rows] == [0, 1, 2, 4, 5, 6, 7]
    alone = []
    for number in range(8):
        if number != 3:
            model_vqa_loader.main(flags(f"alone{number}.jsonl", "--num-chunks", "8", "--chunk-idx", str(number)))
            alone += answers(question_folder, f"alone{number}.jsonl")
    assert [row["text"] for row in rows] == [row["text"] for row in alone]


def test_several_pictures_in_a_question(question_folder, flags):
    rows = [
        {"question_id": 0, "image": ["0.png", "1.png"], "text": "how many cats?"},
        {"question_id": 1, "image": "0.png", "text": "how many cats?"},
        {"question_id": 2, "image": [], "text": "how many cats?"},
    ]
    (question_folder / "several.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [*with_file(flags(), question_folder, "several.jsonl"), "--pruner", "fastervlm:budget=5"]
    model_vqa_loader.main([*command, "--batch-size", "3"])
    assert [row["metadata"]["visual_tokens"] for row in answers(question_folder)] == [10, 5, 0]


def test_a_question_the_model_cannot_take_stops_no_other(question_folder, flags, monkeypatch, capsys):
    real = LlavaAnswerer.answer

    def refuses_one(self, texts, pictures):
        if any("red star" in text for text in texts):
            raise ValueError("no red stars")
        return real(self, texts, pictures)

    monkeypatch.setattr(LlavaAnswerer, "answer", refuses_one)
    with pytest.raises(SystemExit):
        model_vqa_loader.main(flags("answers.jsonl", "--batch-size", "4"))
    assert [row["question_id"] for row in answers(question_folder)] == [0, 1, 3, 4, 5, 7]
    assert "question 2: no red stars" in capsys.readouterr().err


def test_a_bad_row_is_its_own_problem(science, mmbench, flags):
    """ScienceQA's rows without a picture, MMBench's whose picture is another row's, in odd base64, or missing."""
    rows = json.loads((science / "science.json").read_text())
    odd = [rows[0] | {"id": "null", "image": None}, rows[0] | {"id": "bad", "image": 0}, 3, rows[0] | {"id": "last"}]
    (science / "odd.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(odd).encode())
    arguments = with_file(flags("s.jsonl"), science, "odd.json")
    questions, problems = model_vqa_science.read(model_vqa_science.build_parser().parse_args(arguments))
    assert (questions[0].question_id, questions[0].images) == ("null", ())
    assert questions[-1].question_id == "last"
    assert [problem.where for problem in problems] == ["odd.json entry 1", "odd.json entry 2"]

    header, first, *_ = (mmbench / "mmbench.tsv").read_text().splitlines()
    cells = dict(zip(header.split("\t"), first.split("\t"), strict=True))
    picture = cells["image"]
    images = (cells["index"], picture.rstrip("="), f"data:image/png;base64,{picture}", "999", "", picture)
    lines = ["\t".join((cells | {"index": str(100 + n), "image": one}).values()) for n, one in enumerate(images)]
    (mmbench / "odd.tsv").write_text("\n".join([header, first, *lines]))
    arguments = with_file(flags("m.jsonl"), mmbench, "odd.tsv")
    questions, problems = model_vqa_mmbench.read(model_vqa_mmbench.build_parser().parse_args(arguments))
    same = [question.question_id for question in questions if question.images == questions[0].images]
    assert same == [int(cells["index"]), 100, 101, 102, 105]
    assert "mmbench" not in str(problems)
    assert [problem.where for problem in problems][-1] == "odd.tsv row 6"
