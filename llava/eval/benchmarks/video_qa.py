"""Zero-shot video question answering (TGIF, MSVD, MSRVTT) as Video-ChatGPT and Video-LLaVA do it.

Questions and answers are two official files that belong together by question id. A language model decides for each
answer whether it matches (accuracy = yes / (yes + no)) and how well, 0 to 5. The published judge is an unknown version
of gpt-3.5-turbo, and versions differ by 20 points on TGIF: compare only scores of the same judge. The prompt is our
own. Without a judge there is no score; "exact" and "contained" match are other metrics, which only compare the right
answer's words.
"""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from llava.eval.benchmarks.contract import Benchmark, Need, Split
from llava.eval.benchmarks.join import Join, join
from llava.eval.benchmarks.runs import NOT_JUDGED, contains, mean_of, offline, over_runs, percent_of_runs, values_of
from llava.eval.benchmarks.tally import counts
from llava.eval.files import Row, field_of, read_json, read_rows, write_rows
from llava.eval.judge.protocol import JudgeProtocol, Message, fill
from llava.eval.media.frames import SUFFIXES
from llava.eval.metrics.vqa_normalise import m4c
from llava.eval.sample import Sample, Score
from llava.given import home_path

SOURCE = "https://github.com/PKU-YuanGroup/Video-LLaVA/blob/main/TRAIN_AND_VALIDATE.md"
QUESTIONS, ANSWERS = "test_q.json", "test_a.json"
HIGHEST = 5
_DICTIONARY = re.compile(r"\{[^{}]*\}")

SYSTEM = """You grade answers to questions about videos. You are given a question, the correct answer and a predicted \
answer, and decide whether the prediction means the same as the correct answer.
- What counts is that the meaning fits, not the wording.
- Synonyms and paraphrases are matches.
- Judge whether the prediction is correct when measured against the correct answer."""
USER = """Grade this answer to a question about a video.

Question: $question
Correct Answer: $answer
Predicted Answer: $prediction

Reply with a Python dictionary and nothing else: no comment, no explanation. It has two keys. 'pred' is the string \
'yes' if the prediction matches, else the string 'no'. 'score' is an integer, not a string, from 0 (no match at all) \
to 5 (perfect match). An example of such a reply: {'pred': 'no', 'score': 1}."""


@dataclass(frozen=True)
class VideoBenchmark(Benchmark):
    """A benchmark whose answers may also be Video-LLaVA's `id, question, answer, pred`; scoring needs no videos."""

    def read(self, folder: Path, answers_file: str | Path, split: Split) -> Join:
        rows = read_rows(home_path(answers_file), "answers")
        return join(samples_of(folder, rows), [answer_line(row) for row in rows], self.answer_key)


def questions(folder: Path) -> list[Row]:
    return read_json(folder / QUESTIONS)


def truths(file: Path) -> dict[str, str | None]:
    """Question id -> right answer; None where the file has two different ones."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in read_json(file):
        found[str(field_of(row, "question_id", ANSWERS))].add(str(field_of(row, "answer", ANSWERS)))
    return {name: next(iter(own)) if len(own) == 1 else None for name, own in found.items()}


def build(folder: Path, split: Split) -> list[Row]:
    """The bare questions; `image` is the video's path in the videos' folder."""
    found = files_by_name(folder / place for place in split.images)
    return [
        {
            "question_id": field_of(row, "question_id", QUESTIONS),
            "image": found.get(row["video_name"], row["video_name"] + SUFFIXES[0]),
            "text": field_of(row, "question", QUESTIONS),
            "category": "default",
        }
        for row in questions(folder)
    ]


def files_by_name(places: Iterable[Path]) -> dict[str, str]:
    """Name without extension -> file name, in the first of the folders that exists."""
    place = next((place for place in places if place.is_dir()), None)
    files = [file for file in place.iterdir() if file.suffix.lower() in SUFFIXES] if place else []
    files.sort(key=lambda file: SUFFIXES.index(file.suffix.lower()), reverse=True)  # the first extension wins
    return {file.stem: file.name for file in files}


def load(folder: Path, split: Split, rows: list[Row]) -> list[Sample]:
    return samples_of(folder, [])


def samples_of(folder: Path, answers: Sequence[Row]) -> list[Sample]:
    """The questions with their truths, found by id. `extra`: (question, whether the answer line has another truth).

    Raises ValueError when the two files have no question in common.
    """
    right = truths(folder / ANSWERS)
    claimed = {str(row["id"]): row["answer"] for row in answers if "id" in row and "answer" in row}
    samples = []
    for row in questions(folder):
        name = str(field_of(row, "question_id", QUESTIONS))
        truth = right.get(name)
        wrong_claim = truth is not None and claimed.get(name, truth) != truth
        samples.append(Sample(row["question_id"], (name,), truth, extra=(row["question"], wrong_claim)))
    if samples and all(sample.truth is None for sample in samples):
        raise ValueError(f"{folder / ANSWERS} answers none of the questions of {QUESTIONS}; take both of one release")
    return samples


def answer_line(row: Row) -> Row:
    """An answer line of LLaVA or Video-LLaVA in LLaVA's format. Raises ValueError when it is neither."""
    if "pred" in row and "id" in row:
        row = {"question_id": row["id"], "prompt": row.get("question"), "text": row["pred"]}
    if not isinstance(row.get("text"), str) or "question_id" not in row:
        raise ValueError(
            f"an answer has neither question_id and text nor id and pred: {str(row)[:100]}; correct the file"
        )
    return row


def messages(sample: Sample, texts: Mapping[str, str], attempt: int) -> list[Message]:
    question, _ = sample.extra
    user = fill(texts["user"], question=question, answer=sample.truth, prediction=sample.text or "")
    return [{"role": "system", "content": texts["system"]}, {"role": "user", "content": user}]


def parse(reply: str) -> list[Any] | None:
    """["yes" | "no", 0..5] from the first dictionary in the reply, Python's or JSON's; None if there is none.

    As in Video-ChatGPT, a `pred` that contains yes is a yes, and a score is cut to its integer part.
    """
    verdict = next(filter(None, map(_dictionary, _DICTIONARY.findall(reply))), {})
    said = str(verdict.get("pred", "")).lower()
    word = next((word for word in ("yes", "no") if word in said), None)
    try:
        points = int(float(verdict.get("score", "")))
    except (TypeError, ValueError, OverflowError):
        return None
    return [word, points] if word and 0 <= points <= HIGHEST else None


def _dictionary(text: str) -> dict[str, Any]:
    for read in (ast.literal_eval, json.loads):
        try:
            value = read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue  # the other notation
        if isinstance(value, dict):
            return value
    return {}


def score(sample: Sample) -> Score:
    """The share of the judge's runs that say yes, None without a judge. The parts include the verdicts, both matches,
    and whether the answer line has another truth than the official file."""
    _, wrong_claim = sample.extra
    if sample.text is None:
        return Score(sample.question_id, None, None, sample.truth, answered=False)
    said, verdicts = m4c(sample.text), values_of(sample)
    parts: dict[str, Any] = {"verdicts": verdicts, "wrong_claim": wrong_claim}
    if sample.truth is not None:
        truth = m4c(sample.truth)
        parts |= {"exact": float(said == truth), "contained": float(contains(said, truth))}
    return Score(sample.question_id, mean_of(_yes(verdicts)), said, sample.truth, parts)


def _yes(verdicts: Sequence[Any]) -> tuple[float | None, ...]:
    return tuple(None if verdict is None else float(verdict[0] == "yes") for verdict in verdicts)


def aggregate(scores: Sequence[Score]) -> dict[str, Any]:
    """Accuracy in percent; also the mean score, 0..5, and the matches that need no judge."""
    verdicts = [one.parts.get("verdicts", ()) for one in scores]
    accuracy = percent_of_runs([_yes(own) for own in verdicts])
    points = over_runs(verdicts, lambda values: fmean(value[1] for value in values) if values else None)
    untold = sum(one.truth is None for one in scores)
    misplaced = sum(bool(one.parts.get("wrong_claim")) for one in scores)
    labels = []
    if untold:
        labels.append(f"{untold} questions without a (single) answer in {ANSWERS} left out")
    if misplaced:
        labels.append(f"{misplaced} answer lines claim another truth than {ANSWERS}, which was used")
    return {
        "main": accuracy["value"],
        **counts(scores),
        "parts": {
            "accuracy": {"over runs": accuracy},
            "score": {"0 to 5": points},
            NOT_JUDGED: offline(scores, "exact", "contained"),
        },
        "labels": labels,
    }


def export(folder: Path, split: Split, samples: Sequence[Sample], stem: Path) -> Path:
    """Video-LLaVA's lines, each with its right answer."""
    file = stem.with_name(stem.name + ".video_qa.jsonl")
    rows = [
        {"id": one.question_id, "question": one.extra[0], "answer": one.truth, "pred": one.text}
        for one in samples
        if one.text is not None
    ]
    write_rows(rows, file)
    return file


JUDGE = JudgeProtocol(
    version="video-own-1",
    model="gpt-3.5-turbo",
    prompts={"user": USER, "system": SYSTEM},
    messages=messages,
    parse=parse,
    temperature=lambda attempt: None,  # the published scripts use the server's default
    attempts=5,
)


def video_benchmark(name: str, title: str, videos: tuple[str, ...], published: int, paper: float) -> VideoBenchmark:
    """One of the sets. videos: possible folders of the videos. paper: accuracy of Video-LLaVA-7B with all tokens."""
    folder = f"{name.upper()}_Zero_Shot_QA"
    needs = (
        Need((QUESTIONS,), "questions", SOURCE),
        Need((ANSWERS,), "right answers", SOURCE),
        Need(videos, "videos", SOURCE),
    )
    return VideoBenchmark(
        name=name,
        title=title,
        folders=(f"GPT_Zero_Shot_QA/{folder}", folder),
        splits=(Split("test", f"llava_{name}.jsonl", videos, needs, published),),
        metric="accuracy",
        reported="accuracy by gpt-3.5-turbo, of Video-LLaVA-7B",
        paper=paper,
        program="vqa",
        max_new_tokens=1024,
        build=build,
        load=load,
        score=score,
        aggregate=aggregate,
        export=export,
        judge=JUDGE,
    )
