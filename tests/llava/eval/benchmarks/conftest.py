"""What the tests of benchmarks share."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from llava.eval.benchmarks.registry import benchmark
from llava.eval.sample import Sample
from tests.llava.eval.data_tree import MAKERS, write_answers

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def folder_of(tmp_path):
    """Makes the miniature of a benchmark -> (the benchmark, its split, its folder)."""

    def make(name: str, split: str | None = None, **options):
        bench = benchmark(name)
        folder = tmp_path / MAKERS[name][0]
        MAKERS[name][1](folder, **options)
        return bench, bench.split(split), folder

    return make


@pytest.fixture
def scored_with(tmp_path):
    """Answers a benchmark's questions by a function and scores them -> (summary, scores)."""

    def run(made, reply):
        bench, split, folder = made
        file = write_answers(tmp_path / "answers.jsonl", bench.rows(folder, split), reply)
        scores = [bench.score(sample) for sample in bench.read(folder, file, split).samples]
        return bench.aggregate(scores), scores

    return run


@pytest.fixture
def parser_pairs():
    """The golden pairs of one parser: (input as a Python literal, argument, output)."""

    def read(parser: str) -> list[tuple[str, str, str]]:
        with (GOLDEN / "golden_parsers.csv").open(encoding="utf-8", newline="") as file:
            return [tuple(row[1:]) for row in csv.reader(file) if row[0] == parser]

    return read


@pytest.fixture
def said():
    """A sample with an answer, made of one without."""

    def answer(sample: Sample, text: str | None) -> Sample:
        return replace(sample, text=text)

    return answer
