"""MM-Vet: 218 open questions about 16 combinations of six capabilities, graded from 0 to 1 by a language model.

The published judge is gpt-4-0613 with a table of graded examples. The table here has our own examples: for the
original prompt, give its file to `--judge-prompt`. Without a judge there is no score; "containment" is another metric,
which only compares the reference's words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.contract import Benchmark, Need, Split
from llava.eval.benchmarks.runs import contains, mean_of, offline, percent_of_runs, values_of
from llava.eval.benchmarks.tally import counts
from llava.eval.files import Row, field_of, read_json, write_json
from llava.eval.judge.protocol import JudgeProtocol, Message
from llava.eval.metrics.vqa_normalise import m4c
from llava.eval.sample import Sample, Score

SOURCE = "https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip"
ANNOTATION = "mm-vet.json"
AND, OR = "<AND>", "<OR>"
NOT_MMVET = "not MM-Vet"
_MINUS = re.compile(r"(?<!\w)-(?=\d)")  # m4c drops punctuation, including a number's sign

TABLE = f"""You grade the answers of AI models. Compare each prediction with the ground truth and give its correctness.
{AND} in a ground truth: the prediction is fully right only if it has every element. {OR} in a ground truth: any one of
the elements makes it fully right. The grade is one of 0.0 (all wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9 and
1.0 (all right). Fill in the last cell of the table, nothing else.

Question | Ground truth | Prediction | Correctness
--- | --- | --- | ---
Which numbers solve the equation on the board? | 2 {AND} -7 | y = 4 | 0.0
Which numbers solve the equation on the board? | 2 {AND} -7 | y = 2 | 0.5
Which numbers solve the equation on the board? | 2 {AND} -7 | y is -7 | 0.5
Which numbers solve the equation on the board? | 2 {AND} -7 | It is either -7 or 7. | 0.5
Which numbers solve the equation on the board? | 2 {AND} -7 | y = -7 and y = 2 | 1.0
What makes this cartoon funny? | Two neighbours compare their gardens. The one who never waters has tall flowers, \
while the one who works all day has bare soil. The joke is that effort and success do not go together, which the \
tired gardener's face underlines. | The cartoon shows two gardens. One has flowers and the other one does not, \
although its owner works a lot. | 0.4
What makes this cartoon funny? | Two neighbours compare their gardens. The one who never waters has tall flowers, \
while the one who works all day has bare soil. The joke is that effort and success do not go together, which the \
tired gardener's face underlines. | It plays with the contrast between hard work and its fruits: the busy gardener \
looks worn out before empty beds, and next door everything blooms without any care. We laugh because labour, against \
all expectation, is not what gets rewarded here. | 1.0
"""
AGAIN = "\nGive the grade of the last row as a number from 0.0 to 1.0: "

TEST = Split(
    "test",
    "llava-mm-vet.jsonl",
    ("images",),
    (
        Need((ANNOTATION,), "questions, reference answers, capabilities", SOURCE),
        Need(("images",), "pictures", SOURCE),
    ),
    published=218,
)


def official_rows(folder: Path) -> dict[str, Row]:
    """`v1_<number>` -> imagename, question, answer, capability."""
    return read_json(folder / ANNOTATION)


def number_of(name: str) -> int | str:
    """LLaVA's question id: 3 of v1_3."""
    tail = name.removeprefix("v1_")
    return int(tail) if tail.isdecimal() else name


def build(folder: Path, split: Split) -> list[Row]:
    return [
        {
            "image": field_of(row, "imagename", ANNOTATION),
            "text": field_of(row, "question", ANNOTATION),
            "category": "conv",
            "question_id": number_of(name),
        }
        for name, row in official_rows(folder).items()
    ]


def load(folder: Path, split: Split, rows: list[Row]) -> list[Sample]:
    return samples_of(official_rows(folder))


def samples_of(official: Mapping[str, Row]) -> list[Sample]:
    """The questions; `extra` is their text."""
    return [
        Sample(
            number_of(name),
            (str(number_of(name)), name),
            field_of(row, "answer", ANNOTATION),
            {"capabilities": tuple(sorted(set(field_of(row, "capability", ANNOTATION))))},
            extra=field_of(row, "question", ANNOTATION),
        )
        for name, row in official.items()
    ]


def messages(sample: Sample, texts: Mapping[str, str], attempt: int) -> list[Message]:
    """The table with a last row whose grade is missing; from the second attempt on with a simpler request."""
    truth = sample.truth.replace(AND, f" {AND} ").replace(OR, f" {OR} ")
    row = " | ".join([sample.extra, truth, sample.text or "", ""])
    return [{"role": "user", "content": f"{texts['table']}\n{row}" + (texts["again"] if attempt > 1 else "")}]


def parse(reply: str) -> float | None:
    """The grade before the first space, 0..1; None where there is none."""
    try:
        grade = float(reply.split(" ")[0])
    except ValueError:
        return None
    return grade if 0.0 <= grade <= 1.0 else None


def temperature(attempt: int) -> float:
    """0, 0, 0.5, 1, 1.5: the first retry has the same temperature as the first attempt."""
    return 0.5 * max(0, attempt - 2)


def containment(text: str, truth: str) -> float:
    """The share of the reference's elements that occur verbatim in the answer, for the best alternative."""
    said = _plain(text)
    return max(_share(said, alternative.split(AND)) for alternative in truth.split(OR))


def _share(said: str, elements: Sequence[str]) -> float:
    wanted = [_plain(element) for element in elements]
    return sum(contains(said, element) for element in wanted) / len(wanted)


def _plain(text: str) -> str:
    return m4c(_MINUS.sub("minus ", text))


def score(sample: Sample) -> Score:
    """The mean of the judge's grades, None without one; the grades and the containment among the parts."""
    if sample.text is None:
        return Score(sample.question_id, None, None, sample.truth, sample.parts, answered=False)
    grades = values_of(sample)
    parts = {**sample.parts, "grades": grades, "containment": containment(sample.text, sample.truth)}
    return Score(sample.question_id, mean_of(grades), None, sample.truth, parts)


def grades_by(scores: Sequence[Score], joined: bool) -> dict[str, dict[str, Any]]:
    """`percent_of_runs` by capability, or by combination of them (joined)."""
    groups: dict[str, list[Any]] = {}
    for one in scores:
        capabilities = one.parts["capabilities"]
        for name in ["_".join(capabilities)] if joined else capabilities:
            groups.setdefault(name, []).append(one.parts.get("grades", ()))
    return {name: percent_of_runs(groups[name]) for name in sorted(groups)}


def aggregate(scores: Sequence[Score]) -> dict[str, Any]:
    """The total, each capability, each combination: 100 times the mean grade, averaged over the judge's runs."""
    total = percent_of_runs([one.parts.get("grades", ()) for one in scores])
    return {
        "main": total["value"],
        **counts(scores),
        "parts": {
            "total": {"over runs": total},
            "capability": grades_by(scores, joined=False),
            "combination": grades_by(scores, joined=True),
            NOT_MMVET: offline(scores, "containment"),
        },
    }


def export(folder: Path, split: Split, samples: Sequence[Sample], stem: Path) -> Path:
    """The answers in the format of MM-Vet's own evaluator: `v1_<question id>` -> text."""
    file = stem.with_name(stem.name + ".mmvet.json")
    write_json({str(one.keys[1]): one.text for one in samples if one.text is not None}, file)
    return file


BENCHMARK = Benchmark(
    name="mmvet",
    title="MM-Vet",
    folders=("mm-vet", "mmvet"),
    splits=(TEST,),
    metric="mean grade",
    reported="total by gpt-4-0613",
    paper=31.1,
    program="vqa",
    max_new_tokens=1024,
    build=build,
    load=load,
    score=score,
    aggregate=aggregate,
    export=export,
    judge=JudgeProtocol(
        version="mmvet-own-1",
        model="gpt-4-0613",
        prompts={"table": TABLE, "again": AGAIN},
        messages=messages,
        parse=parse,
        max_tokens=3,
        temperature=temperature,
        attempts=5,
        fallback=0.0,
        runs=5,
    ),
)
