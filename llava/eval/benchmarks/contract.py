"""The interface of benchmarks: from annotations to a question file, and from answers to scores. One file per benchmark.

    folder --build--> question file --(an answering program)--> answers file
    folder --load--> samples --read: joined with the answers by id--> score each --> aggregate

`score` and `aggregate` are pure. A question without an answer has the score None, which is excluded from every mean and
counted in `missing`; a mean over no scores is None and printed "-". All values are percentages unless a benchmark says
otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from llava.eval.benchmarks.join import Join, join, read_answers
from llava.eval.files import Row, absent, read_rows, write_rows
from llava.eval.judge.protocol import JudgeProtocol
from llava.eval.questions import subset
from llava.eval.sample import Sample, Score
from llava.given import home_path

PROGRAMS = {
    "loader": "llava.eval.model_vqa_loader",
    "vqa": "llava.eval.model_vqa",
    "science": "llava.eval.model_vqa_science",
    "mmbench": "llava.eval.model_vqa_mmbench",
}


@dataclass(frozen=True)
class Need:
    """A required file or folder in the benchmark's folder.

    paths: alternatives; `*`, `**` are allowed. asking: needed to answer the questions, not to score answers.
    gigabytes: of what comes from the source, roughly; None where it is not known.
    """

    paths: tuple[str, ...]
    purpose: str
    source: str
    optional: bool = False
    asking: bool = False
    gigabytes: float | None = None

    def met(self, folder: Path) -> bool:
        return any(next(iter(folder.glob(path)), None) is not None for path in self.paths)


@dataclass(frozen=True)
class Split:
    """One set of questions.

    question_file: LLaVA's name for it, in the benchmark's folder. images: the folder of its images, the first of
    these that exists; none where the pictures are in the question file. published: the number of questions of the
    published numbers, None if unknown. label: added to every number of a split that is not the published one.
    """

    name: str
    question_file: str
    images: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()
    published: int | None = None
    label: str = ""


class Prepared(NamedTuple):
    """A complete question file. built: False if it existed already. absent: images that do not exist."""

    question_file: Path
    images: Path | None
    questions: int
    built: bool
    absent: list[str]


def by_id(row: Row) -> Hashable:
    """An answer's key where ids are unique. LLaVA writes some ids as numbers that the annotations have as text."""
    return str(row["question_id"])


def row_id(row: Row) -> Hashable:
    return row["question_id"]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    folders: possible folder names under the data root. program: a key of PROGRAMS. reported: which number the
    paper prints, and `paper` its value for LLaVA-1.5-7B with all tokens. build: the question rows from the official
    annotations only. load: the samples of the rows of a question file, with truths if known.
    answer_key: the key by which an answer line is joined. group: questions that a subset must not separate. export:
    writes the upload file for a server. unpack: extracts pictures and rows from a data-set archive first. write: writes
    rows to a question file; its third argument is the whole question file, for tables with more columns than `build`
    returns. images_of: finds the images' folder where a list of names is not enough. judge: how a language model scores
    answers, for benchmarks that need one; `score` then finds its verdicts, if any, in the sample.
    """

    name: str
    title: str
    folders: tuple[str, ...]
    splits: tuple[Split, ...]
    metric: str
    reported: str
    build: Callable[[Path, Split], list[Row]]
    load: Callable[[Path, Split, list[Row]], list[Sample]]
    score: Callable[[Sample], Score]
    aggregate: Callable[[Sequence[Score]], dict[str, Any]]
    paper: float | None = None
    program: str = "loader"
    max_new_tokens: int = 128
    answer_key: Callable[[Row], Hashable] = by_id
    group: Callable[[Row], Hashable] = row_id
    export: Callable[[Path, Split, Sequence[Sample], Path], Path] | None = None
    unpack: Callable[[Path, Split], None] | None = None
    write: Callable[[list[Row], Path, Path], None] = field(default=lambda rows, path, _: write_rows(rows, path))
    images_of: Callable[[Path, Split], Path] | None = None
    judge: JudgeProtocol | None = None

    def split(self, name: str | None = None) -> Split:
        """The split of that name, the first one without a name. Raises ValueError for an unknown one."""
        for split in self.splits:
            if name in (None, split.name):
                return split
        known = ", ".join(split.name for split in self.splits)
        raise ValueError(f"{self.name} has no split {name!r}; give one of {known}")

    def folder(self, data: str | Path, split: Split) -> Path:
        """The benchmark's folder under the data root: the one with most of the required files."""
        candidates = [home_path(data) / name for name in self.folders]
        return max(candidates, key=lambda folder: (sum(need.met(folder) for need in split.needs), folder.is_dir()))

    def missing(self, folder: Path, split: Split, scoring: bool = False) -> list[Need]:
        """The missing files; for scoring only, pictures are not needed."""
        needed = [need for need in split.needs if not need.optional and not (scoring and need.asking)]
        return [need for need in needed if not need.met(folder)]

    def images(self, folder: Path, split: Split) -> Path | None:
        """The folder that image paths are relative to; None when pictures are in the question file."""
        if self.images_of is not None:
            return self.images_of(folder, split)
        places = [folder / place for place in split.images]
        return next((place for place in places if place.is_dir()), places[0] if places else None)

    def rows(self, folder: Path, split: Split) -> list[Row]:
        """The rows of the question file, built if there is none."""
        file = folder / split.question_file
        if file.is_file() and file.suffix in (".jsonl", ".json"):
            return read_rows(file)
        with self._official_form(folder):
            return self.build(folder, split)

    @contextmanager
    def _official_form(self, folder: Path) -> Iterator[None]:
        """Reports in one line that official files do not have the expected content."""
        try:
            yield
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            what = f"has no {error}" if isinstance(error, KeyError) else f"has another form ({error})"
            raise ValueError(
                f"an entry of {self.title}'s files in {folder} {what}; take the official files, of one release"
            ) from error

    def prepare(self, folder: Path, split: Split, limit: int | None = None, rebuild: bool = False) -> Prepared:
        """Make the question file. An existing one, LLaVA's for instance, is used unchanged.

        limit: write a file of this number of groups of questions, spread evenly, next to the whole one.
        rebuild: replace an existing file.
        Raises ValueError when a needed file is missing or damaged.
        """
        self.refuse_missing(folder, split)
        with self._official_form(folder):
            return self._prepare(folder, split, limit, rebuild)

    def _prepare(self, folder: Path, split: Split, limit: int | None, rebuild: bool) -> Prepared:
        if self.unpack is not None:
            self.unpack(folder, split)
        file = folder / split.question_file
        built = file.suffix != ".tsv" and (rebuild or not file.is_file())  # a table is its own question file
        if built:
            self.write(self.build(folder, split), file, file)
        rows = self.rows(folder, split)
        if limit is not None:
            rows = self.subset(rows, limit)
            whole, file = file, file.with_name(f"{file.stem}_limit_{limit}{file.suffix}")
            self.write(rows, file, whole)
            built = True
        images = self.images(folder, split)
        return Prepared(file, images, len(rows), built, absent(rows, images))

    def subset(self, rows: list[Row], limit: int) -> list[Row]:
        """The rows of `limit` groups, spread evenly over all."""
        chosen = set(subset(list(dict.fromkeys(self.group(row) for row in rows)), limit))
        return [row for row in rows if self.group(row) in chosen]

    def refuse_missing(self, folder: Path, split: Split, scoring: bool = False) -> None:
        if lacking := self.missing(folder, split, scoring):
            names = ", ".join(need.paths[0] for need in lacking)
            raise ValueError(
                f"{folder} lacks {names}; `python -m llava.eval.prepare {self.name} --check` says where to get it"
            )

    def read(self, folder: Path, answers_file: str | Path, split: Split) -> Join:
        """The benchmark's samples with their answers. Raises ValueError when the files do not belong together."""
        self.refuse_missing(folder, split, scoring=True)
        with self._official_form(folder):
            samples = self.load(folder, split, self.rows(folder, split))
        return join(samples, read_answers(answers_file), self.answer_key)

    def labels(self, split: Split, samples: int, missing: int, summary: Mapping[str, Any], subset: bool) -> list[str]:
        """The labels of a number that is not comparable to the published one."""
        labels = [split.label] if split.label else []
        if subset:
            labels.append("subset")
        elif missing:
            labels.append(f"incomplete: {missing} of {samples} unanswered")
        if split.published not in (None, samples):
            labels.append(f"{samples} questions, published {split.published}")
        return labels + list(summary.get("labels", ()))
