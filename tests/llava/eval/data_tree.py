"""A miniature of LLaVA's data root, official files of every benchmark, a few questions and pictures each.

`make_data_tree(root)` makes all of it, each `make_<benchmark>(folder)` one; deterministic. Contents are invented,
formats are the official ones. `write_answers` answers a question file as the answering programs do.
"""

import base64
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

COLORS = ("red", "green", "blue", "yellow", "white", "black")
ROTATION = 1_000_000


def picture(number: int, size: int = 24) -> Image.Image:
    """A square in one of six colours with a corner of the next one."""
    image = Image.new("RGB", (size, size), COLORS[number % len(COLORS)])
    image.paste(COLORS[(number + 1) % len(COLORS)], (0, 0, size // 2, size // 3))
    return image


def save(number: int, path: Path, kind: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number).save(path, kind)


def encoded(number: int) -> bytes:
    stream = io.BytesIO()
    picture(number).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), "utf-8")


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def make_gqa(folder: Path) -> None:
    """Five balanced questions, one unbalanced, in two groups."""
    questions = {}
    for number, (asked, answer, structural, group) in enumerate(
        [
            ("What color is the square?", "red", "query", "color"),
            ("What color is the corner?", "blue", "query", "color"),
            ("Is the square green?", "no", "verify", None),
            ("Is the corner red or white?", "white", "choose", "color"),
            ("Who is it?", "man", "query", "person"),
            ("Is there a dog?", "no", "verify", None),
        ]
    ):
        questions[f"2010{number}"] = {
            "question": asked,
            "imageId": f"n{number % 3}",
            "answer": answer,
            "fullAnswer": f"It is {answer}.",
            "isBalanced": number != 5,
            "groups": {"global": group, "local": f"10-{number}"},
            "types": {
                "structural": structural,
                "semantic": "attr" if number < 4 else "cat",
                "detailed": "categoryAttr",
            },
            "semantic": [
                {"operation": "select", "argument": "square (0)", "dependencies": []},
                {"operation": "query", "argument": "color" if number else "name", "dependencies": [0]},
            ],
        }
    write(folder / "data" / "testdev_balanced_questions.json", questions)
    for number in range(3):
        save(number, folder / "data" / "images" / f"n{number}.jpg")


def make_pope(folder: Path) -> None:
    """Four questions a category over two pictures, yes and no in turn; a stray file beside."""
    names = [f"COCO_val2014_{number:012d}.jpg" for number in (42, 73)]
    for place, category in enumerate(("random", "popular", "adversarial")):
        rows = [
            {
                "question_id": number + 1,
                "image": names[number // 2],
                "text": f"Is there a {('kite', 'dog', 'cup', 'bed')[(number + place) % 4]} in the image?",
                "label": "no" if number % 2 else "yes",
            }
            for number in range(4)
        ]
        write(folder / "coco" / f"coco_pope_{category}.json", lines(rows))
    write(folder / "coco" / "README.md", "a stray file, which LLaVA's scorer did not allow\n")
    for number, name in enumerate(names):
        save(number, folder / "val2014" / name)


MME_SPLIT = ("artwork", "celebrity", "landmark", "posters", "scene")
MME_FLAT = (
    "existence",
    "count",
    "position",
    "color",
    "OCR",
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)


def make_mme(folder: Path, nested: bool = False) -> None:
    """Fourteen tasks of two pictures; five have folders for pictures and texts; blank lines, and two kinds of spacing.

    nested: one folder more above the tasks, as in some archives.
    """
    root = folder / "MME_Benchmark_release_version"
    root = root / "MME_Benchmark" if nested else root
    for place, task in enumerate((*MME_SPLIT, *MME_FLAT)):
        apart = task in MME_SPLIT
        for number in range(2):
            stem = f"{10 + number}" if apart else f"000{number + 1}"
            save(place + number, root / task / ("images" if apart else ".") / f"{stem}.{'jpg' if apart else 'png'}")
            gap = "  " if number else " "
            asked = [f"Is this {task} {number} {kind}?{gap}Please answer yes or no." for kind in ("one", "two")]
            text = f"{asked[0]}\tYes\n{asked[1]}\tNo\n" + ("\n" if number else "")
            write(root / task / ("questions_answers_YN" if apart else ".") / f"{stem}.txt", text)


TABLE_COLUMNS = (
    *("index", "question", "hint", "A", "B", "C", "D", "answer"),
    *("category", "image", "source", "l2-category", "comment", "split"),
)


def make_table(file: Path, words: tuple[str, str, str]) -> None:
    """MMBench's table: a question of four options in four rotations, one of two options and a hint in two rotations."""
    four = ["red", "dark blue", "blue", "green"]
    rows = []
    for turn in range(4):
        options = four[turn:] + four[:turn]
        rows.append([turn * ROTATION + 7, f"{words[0]}?", "nan", *options, "ABCD"[options.index("red")]])
    for turn in range(2):
        options = ["owl", "crab"][:: -1 if turn else 1]
        cells = [turn * ROTATION + 12, f'{words[1]} "exactly"?', words[2], *options, "", "nan"]
        rows.append([*cells, "AB"[options.index("owl")]])
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, delimiter="\t", lineterminator="\n")
        table.writerow(TABLE_COLUMNS)
        for number, row in enumerate(rows):
            kind = "attribute_recognition" if number < 4 else "object_localization"
            image = base64.b64encode(encoded(number)).decode()
            table.writerow([*row, kind, image, "made", "coarse" if number < 4 else "fine", "nan", "dev"])


def make_mmbench(folder: Path) -> None:
    make_table(folder / "mmbench_dev_20230712.tsv", ("Which color is the square", "Which animal", "Look at it."))


def make_mmbench_cn(folder: Path) -> None:
    make_table(folder / "mmbench_dev_cn_20231003.tsv", ("方块是什么颜色", "是哪种动物", "请看图。"))


def make_scienceqa(folder: Path) -> None:
    """Five test questions, three with a picture; one of the validation split."""
    problems = {}
    for number in range(6):
        problems[str(901 + number)] = {
            "question": f"Which color is number {number}?",
            "choices": ["red", "green", "blue", "white", "black"][: 2 + number % 4],
            "answer": number % 2,
            "hint": "" if number % 2 else "Look at the square.",
            "image": "image.png" if number in (0, 1, 3) else None,
            "subject": "natural science" if number < 3 else "social science",
            "grade": f"grade{1 + number % 3}",
            "lecture": "",
            "solution": "",
            "split": "test" if number < 5 else "val",
        }
    write(folder / "problems.json", problems)
    write(folder / "pid_splits.json", {"train": [], "val": ["906"], "test": ["901", "902", "903", "904", "905"]})
    for number in (0, 1, 3):
        save(number, folder / "images" / "test" / str(901 + number) / "image.png")


def humans(*answers: tuple[str, int]) -> list[str]:
    """Ten human answers: (answer, how often)."""
    return [answer for answer, often in answers for _ in range(often)]


def make_textvqa(folder: Path) -> None:
    """Four questions over three pictures, two of them about one picture; OCR tokens, one with a line break."""
    questions = [
        ("0a1b2c3d4e5f6071", "What brand is it?", humans(("acme", 6), ("Acme.", 2), ("acme co", 2))),
        ("0a1b2c3d4e5f6071", "What year is it?", humans(("1999", 10))),
        ("1a1b2c3d4e5f6072", "What does the sign say?", humans(("stop", 2), ("stop sign", 8))),
        ("2a1b2c3d4e5f6073", "What is the number?", humans(("seven", 3), ("7", 1), ("unknown", 6))),
    ]
    data = [
        {"question_id": 34602 + number, "image_id": image, "question": asked, "answers": answers, "image_classes": []}
        for number, (image, asked, answers) in enumerate(questions)
    ]
    write(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "dataset_version": "0.5.1", "data": data})
    ocr = [
        {"image_id": "0a1b2c3d4e5f6071", "ocr_tokens": ["ACME", "19\n99"], "ocr_info": []},
        {"image_id": "1a1b2c3d4e5f6072", "ocr_tokens": ["STOP"], "ocr_info": []},
        {"image_id": "2a1b2c3d4e5f6073", "ocr_tokens": [], "ocr_info": []},
    ]
    write(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": ocr})
    for number, row in enumerate(ocr):
        save(number, folder / "train_images" / f"{row['image_id']}.jpg")


def make_vqav2(folder: Path) -> None:
    """Three questions of test-dev2015, five of test2015, three of val2014 with answers."""

    def questions(name: str, ids: list[int]) -> None:
        rows = [{"image_id": one // 1000, "question": f"What is {one}?", "question_id": one} for one in ids]
        write(folder / f"v2_OpenEnded_mscoco_{name}_questions.json", {"questions": rows, "data_type": "mscoco"})

    questions("test-dev2015", [1000, 1001, 2000])
    questions("test2015", [1000, 1001, 2000, 3000, 3001])
    questions("val2014", [4000, 4001, 5000])
    annotations = [
        _vqav2_annotation(4000, humans(("yes", 10)), "yes/no", "is the"),
        _vqav2_annotation(4001, humans(("2", 7), ("two", 3)), "number", "how many"),
        _vqav2_annotation(5000, humans(("t-shirt", 2), ("shirt", 8)), "other", "what"),
    ]
    write(folder / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    for number in (1, 2, 3):
        save(number, folder / "test2015" / f"COCO_test2015_{number:012d}.jpg")
    for number in (4, 5):
        save(number, folder / "val2014" / f"COCO_val2014_{number:012d}.jpg")


def _vqav2_annotation(question_id: int, answers: list[str], answer_type: str, question_type: str) -> dict[str, Any]:
    records = [
        {"answer": answer, "answer_confidence": "yes", "answer_id": number + 1} for number, answer in enumerate(answers)
    ]
    return {
        "question_id": question_id,
        "image_id": question_id // 1000,
        "question_type": question_type,
        "answer_type": answer_type,
        "multiple_choice_answer": answers[0],
        "answers": records,
    }


def make_vizwiz(folder: Path) -> None:
    """Three questions of test, three of val with answers."""
    for split in ("test", "val"):
        rows: list[dict[str, Any]] = []
        for number in range(3):
            name = f"VizWiz_{split}_{number:08d}.jpg"
            rows.append({"image": name, "question": f"What is this, number {number}?"})
            save(number, folder / split / name)
        if split == "val":
            for row, answers, kind in zip(
                rows,
                [humans(("unanswerable", 8), ("cup", 2)), humans(("cup", 4), ("mug", 6)), humans(("yes", 10))],
                ["unanswerable", "other", "yes/no"],
                strict=True,
            ):
                row["answers"] = [{"answer": answer, "answer_confidence": "maybe"} for answer in answers]
                row |= {"answer_type": kind, "answerable": int(kind != "unanswerable")}
        write(folder / f"{split}.json", rows)


def make_seed(folder: Path) -> None:
    """Four questions about pictures (files without ending), two about videos."""
    types = {"Scene Understanding": 1, "Instance Identity": 2, "Action Recognition": 10}
    rows = []
    for number in range(6):
        video = number >= 4
        kind = 10 if video else 1 + number % 2
        rows.append(
            {
                "question_id": str(101669 + number) if number else "v12",
                "question_type_id": kind,
                "data_type": "video" if video else "image",
                "data_id": f"clip{number}.webm" if video else f"{number}_000",
                "question": f"What is in number {number}?",
                "answer": "ABCD"[number % 4],
                **{f"choice_{letter}": f"{letter} {number}" for letter in "abcd"},
            }
        )
        if not video:
            save(number, folder / "SEED-Bench-image" / rows[-1]["data_id"], "PNG")
        else:
            save(number, folder / "SEED-Bench-video-image" / f"{kind}_{rows[-1]['question_id']}.png")
    write(folder / "SEED-Bench.json", {"question_type": types, "questions": rows})


def make_ai2d(folder: Path) -> None:
    rows = [
        {
            "question_id": number,
            "image": f"{number}.png",
            "question": f"Which label is part {number}?",
            "options": ["stem", "root", "leaf", "bud"],
            "answer": str(number % 4) if number % 2 else number % 4,
        }
        for number in range(4)
    ]
    write(folder / "test.jsonl", lines(rows))
    for number in range(4):
        save(number, folder / "images" / f"{number}.png")


def make_mmmu(folder: Path) -> None:
    """Two multiple-choice questions (one of six options), two open ones."""
    rows = [
        ("validation_Art_Theory_1", "Which? <image 1>", "['oil', 'ink', 'chalk', 'clay']", "B", "multiple-choice"),
        ("validation_Math_2", "Which is <image 1>?", "['1', '2', '3', '4', '5', '6']", "F", "multiple-choice"),
        ("validation_Math_3", "How much is <image 1>?", "[]", "3.14", "open"),
        ("validation_Biology_4", "What is <image 1>?", "[]", "['cell wall', 'wall']", "open"),
    ]
    names = ("id", "question", "options", "answer", "question_type", "image")
    write(
        folder / "validation.jsonl",
        lines([dict(zip(names, (*row, f"{row[0]}.png"), strict=True)) for row in rows]),
    )
    for number, row in enumerate(rows):
        save(number, folder / "images" / f"{row[0]}.png")


def make_qbench(folder: Path) -> None:
    """Three questions of dev in English and in Chinese, one of test without an answer."""
    english = [
        ("Is the picture sharp?", ["Yes", "No"], "No", 0, 0),
        ("What is wrong?", ["Blur", "Noise", "Nothing"], "Blur", 1, 0),
        ("How bright is the corner?", ["Dark", "Medium", "Bright"], "Bright", 2, 3),
    ]
    chinese = [("图像清晰吗?", ["是", "否"], "否", 0, 0)]
    for name, rows in (("llvisionqa_dev", english), ("质衡-问答-验证集", chinese)):
        content = [
            {
                "img_path": f"{number}.jpg",
                "question": asked,
                "candidates": candidates,
                "correct_ans": right,
                "question_type": kind,
                "question_concern": concern,
            }
            for number, (asked, candidates, right, kind, concern) in enumerate(rows)
        ]
        write(folder / f"{name}.json", content)
        if name == "llvisionqa_dev":
            write(folder / "llvisionqa_test.json", [{k: v for k, v in content[0].items() if k != "correct_ans"}])
    for number in range(3):
        save(number, folder / "images_llvisionqa" / f"{number}.jpg")


MAKERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "gqa": ("gqa", make_gqa),
    "mmbench": ("mmbench", make_mmbench),
    "mmbench_cn": ("mmbench_cn", make_mmbench_cn),
    "mme": ("MME", make_mme),
    "pope": ("pope", make_pope),
    "sqa": ("scienceqa", make_scienceqa),
    "vqav2": ("vqav2", make_vqav2),
    "textvqa": ("textvqa", make_textvqa),
    "vizwiz": ("vizwiz", make_vizwiz),
    "seed": ("seed_bench", make_seed),
    "ai2d": ("ai2d", make_ai2d),
    "mmmu": ("mmmu", make_mmmu),
    "qbench": ("qbench", make_qbench),
}


def make_data_tree(root: Path, names: tuple[str, ...] = tuple(MAKERS)) -> Path:
    """The benchmarks of these names under `root`, in the folders that LLaVA's scripts use."""
    for name in names:
        folder, make = MAKERS[name]
        make(root / folder)
    return root


def write_answers(path: Path, rows: list[dict[str, Any]], reply: Callable[[dict[str, Any]], str | None]) -> Path:
    """An answers file to the rows of a question file; a reply of None leaves the question out.

    The rows are LLaVA's (question_id, text), ScienceQA's (id, conversations), or MMBench's as `mmbench.build` says.
    """
    answers = []
    for row in rows:
        text = reply(row)
        if text is not None:
            prompt = row["text"] if "text" in row else row["conversations"][0]["value"]
            question_id = row.get("question_id", row.get("id"))
            answers.append({"question_id": question_id, "prompt": prompt, "text": text, "metadata": {}})
    write(path, lines(answers))
    return path
