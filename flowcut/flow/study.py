"""A study: what was recorded of a model on some pictures, on disk as arrays.npz and study.json, and the numbers of it.

Figures are drawn from a study alone, so one that was saved can be drawn again without the model.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from flowcut.flow import measures
from flowcut.flow.measures import Array
from flowcut.flow.record import ImageFlow, WatchedRun, record, watch
from flowcut.flow.subject import Subject
from flowcut.pruner import Budget, Pruner
from flowcut.registry import parse_pruner

Recorded = TypeVar("Recorded", ImageFlow, WatchedRun)


@dataclass
class Run:
    """A pruner at work on the pictures; shapes [I, ...] of `flowcut.flow.record.WatchedRun`.

    Attributes:
        label: for legends. pruner: its text.
        answers: one per picture; none without a question.
    """

    label: str
    pruner: str
    strength: Array
    kept: NDArray[np.bool_]
    answers: list[str] = field(default_factory=list)

    def steps(self, image: int) -> list[tuple[int, NDArray[np.integer]]]:
        """(layer, patches left) for each layer of one picture that patches were dropped after."""
        there = [*(~np.isnan(self.strength[image])), self.kept[image]]
        changes = [layer for layer in range(len(there) - 1) if (there[layer] != there[layer + 1]).any()]
        return [(layer, np.flatnonzero(there[layer + 1])) for layer in changes]


@dataclass
class Study:
    """Recordings of I pictures.

    Attributes:
        model, question: what was looked at and asked ("" for nothing).
        names: of the pictures. pictures: [I, H, W, 3], uint8, as the encoder saw them.
        grid: rows and columns of patches. special: special tokens ahead of the patches.
        read_after: the layer whose output goes to the language model.
        chosen: patches whose attention rows are kept in `flow.maps`.
        flow: `ImageFlow` with a first axis for the pictures.
        answers: without a pruner, one per picture.
        runs: the pruner looked at first, then those it is compared with.
    """

    model: str
    question: str
    names: list[str]
    pictures: NDArray[np.uint8]
    grid: tuple[int, int]
    special: int
    read_after: int
    chosen: list[int]
    flow: ImageFlow
    answers: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    @property
    def layers(self) -> int:
        return self.flow.inflow.shape[1]

    @property
    def relay(self) -> str:
        """The token that stands for the whole image, in words."""
        return "CLS" if self.special else "the mean of all tokens (this encoder has no CLS)"

    @property
    def places(self) -> measures.Whole:
        return measures.coordinates(self.grid)

    def save(self, folder: Path) -> None:
        """Write arrays.npz, study.json and one CSV of flows a picture."""
        arrays: dict[str, Any] = {"pictures": self.pictures, **{f"flow/{k}": v for k, v in self.flow._asdict().items()}}
        facts = {name: getattr(self, name) for name in _FACTS}
        facts["runs"] = [{"label": run.label, "pruner": run.pruner, "answers": run.answers} for run in self.runs]
        for number, run in enumerate(self.runs):
            arrays |= {f"run{number}/strength": run.strength, f"run{number}/kept": run.kept}
        np.savez_compressed(folder / "arrays.npz", **arrays)
        (folder / "study.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
        for image in range(len(self.names)):
            self._write_flow(folder / f"flow_{image}.csv", image)

    def _write_flow(self, path: Path, image: int) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["layer", "token", "inflow", "outflow"])
            pairs = zip(self.flow.inflow[image], self.flow.outflow[image], strict=True)
            for layer, (sources, targets) in enumerate(pairs):
                flows = zip(sources.tolist(), targets.tolist(), strict=True)
                writer.writerows([layer, token, *flow] for token, flow in enumerate(flows))

    @classmethod
    def load(cls, folder: Path) -> Study:
        """Read what `save` wrote.

        Raises:
            ValueError: there is no study in that folder.
        """
        if not (folder / "study.json").is_file() or not (folder / "arrays.npz").is_file():
            raise ValueError(f"{folder} has no study.json and arrays.npz; give the folder of an earlier --out")
        facts = json.loads((folder / "study.json").read_text("utf-8"))
        with np.load(folder / "arrays.npz") as arrays:
            flow = ImageFlow(*(arrays[f"flow/{name}"] for name in ImageFlow._fields))
            runs = [
                Run(**run, strength=arrays[f"run{number}/strength"], kept=arrays[f"run{number}/kept"])
                for number, run in enumerate(facts.pop("runs"))
            ]
            pictures = arrays["pictures"]
        return cls(**{**facts, "grid": tuple(facts["grid"])}, pictures=pictures, flow=flow, runs=runs)


_FACTS = ("model", "question", "names", "grid", "special", "read_after", "chosen", "answers")


def compared_with(budget: Budget, depth: int) -> list[str]:
    """What a pruner is compared with by default: one early cut by FlowCut's score, and two late ones by attention."""
    early = depth // 2 + 1  # layers from the end
    return [
        f"flowcut:budget={budget},interval={depth + 1},last_layer={-early}",
        f"fastervlm:budget={budget}",
        f"visionzip:budget={budget}",
    ]


def label_of(text: str, depth: int) -> str:
    """A pruner's text for legends; FlowCut with a single selection says where."""
    pruner = parse_pruner(text)
    name = text.partition(":")[0]
    interval, last = getattr(pruner, "interval", 0), getattr(pruner, "last_layer", None)
    if name.startswith("flowcut") and interval > depth:
        return f"one cut after layer {depth + (-3 if last is None else last)}"
    return name


def pruner_for_encoders(text: str) -> Pruner:
    """Read a pruner that cuts in the encoder without being told a question.

    Raises:
        ValueError: it is none of those.
    """
    pruner = parse_pruner(text)
    if pruner is None or type(pruner).vision is Pruner.vision:
        raise ValueError(
            f"pruner {text} cuts nothing in the encoder, so there is no flow to compare; try flowcut:budget=64"
        )
    if pruner.reads_question:
        raise ValueError(f"pruner {text} needs the question, which an encoder does not get; try flowcut:budget=64")
    return pruner


def spread_patches(grid: tuple[int, int]) -> list[int]:
    """Three patches in different parts of a grid: a quarter, half and three quarters down its diagonal."""
    rows, columns = grid
    return [rows * part // 4 * columns + columns * part // 4 for part in (1, 2, 3)]


def make_study(
    subject: Subject,
    images: Sequence[tuple[str, Image.Image]],
    pruners: Sequence[str],
    question: str = "",
    chosen: Sequence[int] | None = None,
    tick: Callable[[], object] = lambda: None,
) -> Study:
    """Record pictures (name and RGB image), nothing cut and with each pruner.

    Args:
        pruners: texts; the first one is the one looked at.
        question: asked about every picture, with each pruner and without.
        chosen: patches whose attention is drawn; three of them by default.
        tick: called after each picture's run with a pruner, or with none.

    Raises:
        ValueError: pictures whose patches form different grids, a patch that is not there, or pruners that do not fit.
    """
    parsed = [pruner_for_encoders(text) for text in pruners]
    pixels = [subject.pixels(image) for _, image in images]
    grids = [subject.grid(one) for one in pixels]
    if len(set(grids)) > 1:
        raise ValueError(
            f"the pictures have grids of {sorted(set(grids))} patches; give pictures of one shape at a time"
        )
    rows, columns = grids[0]
    chosen = spread_patches(grids[0]) if chosen is None else list(chosen)
    if not all(0 <= patch < rows * columns for patch in chosen):
        raise ValueError(f"--patches {chosen} are not all among the patches 0 ... {rows * columns - 1} of this encoder")
    encoder, depth = subject.encoder.model, subject.encoder.depth

    def each(run: Callable[[Tensor], Recorded]) -> list[Recorded]:
        found = []
        for one in pixels:
            found.append(run(one))
            tick()
        return found

    flows = each(lambda one: record(encoder, one, chosen))
    shown = [image for _, image in images]
    study = Study(
        model=subject.name,
        question=question,
        names=[name for name, _ in images],
        pictures=np.stack([subject.picture(one) for one in pixels]),
        grid=grids[0],
        special=subject.encoder.num_prefix_tokens,
        read_after=subject.feature_layer,
        chosen=chosen,
        flow=ImageFlow(*(np.stack(parts) for parts in zip(*flows, strict=True))),
        answers=subject.answers(question, shown, "none") if question else [],
    )
    labels = [label_of(text, depth) for text in pruners]
    for text, pruner, label in zip(pruners, parsed, labels, strict=True):
        watched = each(partial(watch, encoder, pruner=pruner))
        strength, kept = (np.stack(parts) for parts in zip(*watched, strict=True))
        answers = subject.answers(question, shown, text) if question else []
        study.runs.append(Run(text if labels.count(label) > 1 else label, text, strength, kept, answers))
    return study
