"""Q-Bench (LLVisionQA), dev: multiple choice about picture quality, in English and Chinese.

LLaVA's qbench.sh and qbench_zh.sh call a program that is not published; here the question file is an ordinary one, with
the prompt of that program. An answer is matched like MMBench's: letter, else the only option named.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.answer_formats import with_options
from llava.eval.benchmarks.contract import Benchmark, Need, Split
from llava.eval.benchmarks.tally import accuracy
from llava.eval.files import Row, field_of, read_json
from llava.eval.metrics.option_letter import LETTERS, infer_option
from llava.eval.sample import Sample, Score, scored

SOURCE = "https://huggingface.co/datasets/nanyangtu/LLVisionQA-QBench"
KINDS: dict[int | None, str] = {0: "yes-or-no", 1: "what", 2: "how"}
CONCERNS: dict[int | None, str] = {0: "distortion", 1: "other", 2: "in-context distortion", 3: "in-context other"}
# The second spelling is that of LLaVA's documentation.
_IMAGES = ("images_llvisionqa", "images_llviqionqa")
_ASK = {"en": "Choose between one of the options as follows:", "zh": "在下列选项中选择一个:"}


def _split(name: str, files: tuple[str, ...], published: int | None, label: str = "") -> Split:
    needs = (
        Need(files, "questions, with answers for dev", SOURCE),
        Need(_IMAGES, "pictures", f"{SOURCE} (images_llvisionqa.tar)", asking=True, gigabytes=2.2),
    )
    return Split(name, f"llava_qbench_{name}.jsonl", _IMAGES, needs, published, label)


SPLITS = (
    _split("dev", ("llvisionqa_dev.json",), 1495),
    _split("test", ("llvisionqa_test.json",), None, "test"),
    _split("dev-zh", ("质衡-问答-验证集.json", "llvisionqa_zh_dev.json"), None, "Chinese"),
    _split("test-zh", ("质衡-问答-测试集.json", "llvisionqa_zh_test.json"), None, "Chinese test"),
)


def official(folder: Path, split: Split) -> list[Row]:
    file = next(folder / name for name in split.needs[0].paths if (folder / name).is_file())
    return read_json(file)


def build(folder: Path, split: Split) -> list[Row]:
    ask = _ASK["zh" if split.name.endswith("zh") else "en"]
    return [
        {
            "question_id": number,
            "image": field_of(row, "img_path", "Q-Bench"),
            # The line break at the end is the original's.
            "text": with_options(f"{row['question']}\n{ask}", row["candidates"]) + "\n",
            "category": KINDS.get(row.get("question_type"), "default"),
        }
        for number, row in enumerate(official(folder, split))
    ]


def load(folder: Path, split: Split, rows: list[Row]) -> list[Sample]:
    return [_sample(number, row) for number, row in enumerate(official(folder, split))]


def _sample(number: int, row: Row) -> Sample:
    options = dict(zip(LETTERS, row["candidates"], strict=False))
    letters = {text: letter for letter, text in options.items()}
    right = row.get("correct_ans")
    if right is not None and right not in letters:
        raise ValueError(f"question {number} has the answer {right!r}, which is none of its options; download it again")
    parts = {"kind": KINDS.get(row.get("question_type")), "concern": CONCERNS.get(row.get("question_concern"))}
    return Sample(number, (str(number),), None if right is None else letters[right], parts, options)


def score(sample: Sample) -> Score:
    return scored(sample, lambda text: infer_option(text, sample.extra))


def aggregate(scores: Sequence[Score]) -> dict[str, Any]:
    return accuracy(scores, "kind", "concern")


BENCHMARK = Benchmark(
    name="qbench",
    title="Q-Bench",
    folders=("qbench",),
    splits=SPLITS,
    metric="accuracy",
    reported="not in the paper",
    max_new_tokens=1024,
    build=build,
    load=load,
    score=score,
    aggregate=aggregate,
)
