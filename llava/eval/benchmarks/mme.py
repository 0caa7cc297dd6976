"""MME: yes or no, two questions per picture, fourteen tasks; perception plus cognition. Scored offline.

The points of a task are 100 x (share of right questions + share of pictures with all questions right), at most 200.
Points, not percentages; one answer moves the total by 5 to 10.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from llava.eval.benchmarks.answer_formats import SHORT_ANSWER, short_answer
from llava.eval.benchmarks.contract import Benchmark, Need, Split
from llava.eval.benchmarks.tally import by_part, counts, percent, total
from llava.eval.files import Row, write_atomic
from llava.eval.sample import Sample, Score, scored

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TASKS = (*PERCEPTION, *COGNITION)
RELEASE = "MME_Benchmark_release_version"
ASK_YES_NO = "Please answer yes or no."
SOURCE = "by request: https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation"
_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})

TEST = Split(
    "test",
    "llava_mme.jsonl",
    (RELEASE,),
    (Need((RELEASE,), "pictures, questions and answers, a folder a task", SOURCE),),
    published=2374,
)


def task_root(folder: Path) -> Path:
    """The folder of the tasks' folders; some archives nest it in one or two more.

    Raises ValueError when there is no task below the folder.
    """
    levels = [folder, *sorted(folder.glob("*/")), *sorted(folder.glob("*/*/"))]
    best = max(levels, key=lambda level: sum((level / task).is_dir() for task in TASKS))
    if not any((best / task).is_dir() for task in TASKS):
        raise ValueError(f"{folder} has none of MME's tasks ({TASKS[0]}, ...); unpack {RELEASE} there")
    return best


def read_task(root: Path, task: str) -> list[Row]:
    """One task's questions: image (path from `root`), question, answer. Both of MME's layouts; blank lines are skipped.

    Raises ValueError for a line that is not `question TAB Yes|No`, and for a text file without a picture.
    """
    base = root / task
    pictures = base / "images" if (base / "images").is_dir() else base
    texts = base / "questions_answers_YN" if (base / "questions_answers_YN").is_dir() else base
    found = {file.stem: file for file in sorted(pictures.iterdir()) if file.suffix.lower() in _PICTURES}
    rows = []
    for file in sorted(texts.glob("*.txt")):
        for number, line in enumerate(file.read_text("utf-8-sig").split("\n"), start=1):
            if not line.strip():
                continue
            question, tab, answer = line.strip().rpartition("\t")
            if not tab or answer.strip().lower() not in ("yes", "no"):
                raise ValueError(f"{file} line {number} is not 'question TAB Yes|No'; unpack the archive again")
            if file.stem not in found:
                raise ValueError(f"{file} has no picture next to it in {pictures}; unpack the archive again")
            image = found[file.stem].relative_to(root).as_posix()
            rows.append({"image": image, "question": question.strip(), "answer": answer.strip().lower()})
    return rows


def questions(folder: Path) -> list[Row]:
    """All tasks' questions, tasks in order of their names."""
    root = task_root(folder / RELEASE)
    return [{"task": task, **row} for task in sorted(TASKS) if (root / task).is_dir() for row in read_task(root, task)]


def build(folder: Path, split: Split) -> list[Row]:
    return [
        {
            "question_id": row["image"],
            "image": row["image"],
            "text": short_answer(bare(row["question"])),
            "category": row["task"],
        }
        for row in questions(folder)
    ]


def bare(text: str) -> str:
    """A question without the sentences that ask for yes or no or for a short answer, white space folded."""
    return " ".join(text.replace(SHORT_ANSWER, " ").replace(ASK_YES_NO, " ").split())


def key_of(image: str, question: str) -> Hashable:
    """Task, picture and question text, wherever the task is in the path, and without the picture's extension."""
    path = PurePosixPath(image)
    task = next((part for part in path.parts if part in TASKS), path.parts[0])
    return task, path.name.split(".")[0], bare(question)


def answer_key(row: Row) -> Hashable:
    if "prompt" not in row:
        raise ValueError(f"the answer to {row['question_id']} has no prompt; MME's ids repeat, so it is needed")
    return key_of(str(row["question_id"]), row["prompt"])


def load(folder: Path, split: Split, rows: list[Row]) -> list[Sample]:
    return [
        Sample(
            row["image"],
            (key_of(row["image"], row["question"]),),
            row["answer"],
            {"task": row["task"], "picture": f"{row['task']}/{Path(row['image']).stem}"},
            extra=row["question"],
        )
        for row in questions(folder)
    ]


def parse(text: str) -> str:
    """yes, no or other: the whole answer, else the word in its first four characters, yes before no."""
    said = text.lower()
    if said in ("yes", "no"):
        return said
    return next((word for word in ("yes", "no") if word in said[:4]), "other")


def score(sample: Sample) -> Score:
    return scored(sample, parse)


def task_points(scores: Sequence[Score]) -> dict[str, Any]:
    """One task: `value` in points, its two shares in percent, n. A picture counts once its questions are answered."""
    questions = percent(scores)
    pictures = [
        Score(own[0].question_id, float(all(one.value for one in own)))
        for own in by_part(scores, "picture").values()
        if all(one.value is not None for one in own)
    ]
    both = percent(pictures)
    value = total([questions["value"], both["value"]])
    return {"value": value, "accuracy": questions["value"], "accuracy_plus": both["value"], "n": questions["n"]}


def aggregate(scores: Sequence[Score]) -> dict[str, Any]:
    """Perception + cognition, as in the paper; each is None unless all its tasks have points."""
    tasks = {task: task_points(own) for task, own in by_part(scores, "task").items()}
    sums = {}
    for name, members in (("perception", PERCEPTION), ("cognition", COGNITION)):
        own = [tasks[task] for task in members if task in tasks]
        value = total(part["value"] for part in own) if len(own) == len(members) else None
        sums[name] = {"value": value, "n": sum(part["n"] for part in own)}
    main = total(part["value"] for part in sums.values())
    return {"main": main, **counts(scores), "parts": {"sum": sums, "task": tasks}}


def result_lines(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """Task -> the lines of the official tool's `<task>.txt`: picture.txt, question, truth, answer."""
    lines = defaultdict(list)
    for sample in samples:
        if sample.text is not None:
            cells = (f"{Path(str(sample.question_id)).stem}.txt", sample.extra, sample.truth.capitalize(), sample.text)
            lines[sample.parts["task"]].append("\t".join(re.sub(r"[\t\r\n]", " ", cell) for cell in cells))
    return dict(lines)


def write_results(samples: Sequence[Sample], folder: Path) -> Path:
    """One `<task>.txt` per task, the questions of a picture adjacent."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, lines in result_lines(samples).items():
        write_atomic(folder / f"{task}.txt", "".join(line + "\n" for line in lines))
    return folder


def read_results(folder: Path) -> list[Sample]:
    """Samples from a folder of `<task>.txt`. Raises ValueError when there is none, or a line is damaged."""
    files = [folder / f"{task}.txt" for task in TASKS if (folder / f"{task}.txt").is_file()]
    if not files:
        raise ValueError(f"{folder} has no <task>.txt of MME; convert_answer_to_mme.py writes them")
    samples = []
    for file in files:
        for number, line in enumerate(file.read_text("utf-8").split("\n"), start=1):
            if not line:
                continue
            cells = line.split("\t")
            if len(cells) != 4:
                raise ValueError(f"{file} line {number} has {len(cells)} cells, not 4; convert the answers again")
            picture, question, truth, text = cells
            parts = {"task": file.stem, "picture": f"{file.stem}/{picture}"}
            samples.append(Sample(picture, (picture, question), truth.lower(), parts, question, text))
    return samples


def export(folder: Path, split: Split, samples: Sequence[Sample], stem: Path) -> Path:
    return write_results(samples, stem.with_name(stem.name + ".mme"))


BENCHMARK = Benchmark(
    name="mme",
    title="MME",
    folders=("MME",),
    splits=(TEST,),
    metric="perception + cognition",
    reported="perception + cognition, points of 2,800",
    paper=1862.0,
    build=build,
    load=load,
    score=score,
    aggregate=aggregate,
    answer_key=answer_key,
    group=lambda row: key_of(row["image"], ""),
    export=export,
    images_of=lambda folder, split: task_root(folder / RELEASE),
)
