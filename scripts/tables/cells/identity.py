"""The identity of a cell: what its answers follow from, and whether recorded answers match it. Loads no model."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from llava.eval.provenance import fingerprint, model_fingerprint
from llava.model.checkpoint import folder_here
from scripts.tables.cells.spec import CellSpec

_TEXTS = (".json", ".jsonl", ".txt", ".tsv", ".csv", ".parquet")


def model_hash(model: str, base: str | None) -> str | None:
    """Hash of the weights, as it is recorded with answers; None while they are not on this machine."""
    marks = []
    for name in filter(None, (model, base)):
        folder = folder_here(name)
        if folder is None or not (folder / "config.json").is_file():
            return None
        marks.append(model_fingerprint(folder))
    return "+".join(marks)


def data_hash(spec: CellSpec) -> str | None:
    """Hash of the split's question file and of the annotations for scoring; None without a question file."""
    evaluation = spec.evaluation
    if not evaluation.question_file.is_file():
        return None
    files = [evaluation.question_file]
    for need in evaluation.chosen_split.needs:
        if not (need.optional or need.asking):
            found: list[Path] = next(filter(None, (sorted(evaluation.folder.glob(path)) for path in need.paths)), [])
            files += [file for one in found for file in _texts(one)]
    return _hash(tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in dict.fromkeys(files)))


def _texts(path: Path) -> list[Path]:
    """The file itself, or the files of a folder that are not pictures."""
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix in _TEXTS)


@lru_cache(maxsize=256)
def _hash(states: tuple[tuple[Path, int, int], ...]) -> str:
    """Cached while the files' times and sizes stay the same, since the cells of a table share their data."""
    return fingerprint(file for file, _, _ in states)


def expected_settings(spec: CellSpec, question_file: Path | None = None) -> dict[str, Any]:
    """What must stand in the settings recorded with the answers, as far as it is known before the model is loaded."""
    settings = spec.evaluation.known_settings()
    marks = model_hash(spec.model, spec.evaluation.answering.model_base)
    if marks is not None:
        settings["model_hash"] = marks
    if question_file is not None:
        settings["questions"] = fingerprint([question_file])
    return settings


def expected(spec: CellSpec) -> dict[str, Any]:
    """What must stand in the identity of a cell's JSON, as far as it is known before the model is loaded."""
    identity = {**expected_settings(spec), **chosen(spec)}
    marks = data_hash(spec)
    return identity if marks is None else {**identity, "data_hash": marks}


def chosen(spec: CellSpec) -> dict[str, Any]:
    """The part of a cell's identity that follows from its specification alone.

    The judge is named where one is given. Without one, a number that was judged before stays valid.
    """
    split, judge = spec.evaluation.chosen_split, spec.evaluation.judge
    identity: dict[str, Any] = {"benchmark": spec.benchmark, "split": split.name, "limit": spec.limit}
    if judge.judges:
        prompt = fingerprint([judge.prompt]) if judge.prompt else None
        identity["judge"] = {"model": judge.model, "runs": judge.runs, "body": dict(judge.body), "prompt": prompt}
    return identity


def recorded_settings(spec: CellSpec) -> dict[str, Any]:
    """The settings recorded with the answers of all chunks that were joined.

    Raises:
        ValueError: the chunks were answered with different settings.
    """
    own = _chunks(spec)
    if not own or any(settings != own[0] for settings in own):
        raise ValueError(
            f"the chunks in {spec.evaluation.answers_folder} were not all answered with the same settings, on a CPU "
            f"and a GPU perhaps; remove the folder, and start again"
        )
    return own[0]


def is_stale(spec: CellSpec, question_file: Path | None = None) -> bool:
    """Whether there are answers that were made with other settings than the cell asks for."""
    wanted = expected_settings(spec, question_file)
    return any(own.get(name) != value for own in _chunks(spec) for name, value in wanted.items())


def archive_stale(spec: CellSpec, question_file: Path) -> Path | None:
    """Rename the folder of answers to <name>.<number> if they were made with other settings than the cell asks for.

    question_file: the one that will be asked. Returns the folder's new name, or None if it stays.
    """
    if not is_stale(spec, question_file):
        return None
    folder, number = spec.evaluation.answers_folder, 1
    while (archive := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return folder.rename(archive)


def _chunks(spec: CellSpec) -> list[dict[str, Any]]:
    """The settings of each chunk that exists, for the number of chunks that the cell is answered in now."""
    evaluation = spec.evaluation
    files = sorted(evaluation.answers_folder.glob(f"{evaluation.share.chunks}_*.settings.json"))
    read = [json.loads(file.read_text("utf-8")) for file in files]
    apart = ("chunk", "image_folder")  # a path would not be the same on another machine
    return [{name: value for name, value in one.items() if name not in apart} for one in read]
