"""Where a benchmark's answers come from, and whether they are what a cell asks for; no model is loaded."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from llava.eval import launch
from llava.eval.judge import settings as judge_settings
from llava.eval.provenance import fingerprint, model_fingerprint
from llava.mm_utils import get_model_name_from_path

if TYPE_CHECKING:
    from scripts.tables.benchmark_cell import BenchmarkCell

_TEXTS = (".json", ".jsonl", ".txt", ".tsv", ".csv", ".parquet")


def folder_here(name_or_path: str) -> Path | None:
    """A checkpoint's folder if it is on this machine, else None; the network is not asked."""
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(name_or_path, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None  # not fetched yet, or a path of another machine


def model_hash(model: str, base: str | None) -> str | None:
    """As `llava.eval.models` notes it; None while weights are not on this machine."""
    marks = []
    for name in filter(None, (model, base)):
        folder = folder_here(name)
        if folder is None or not (folder / "config.json").is_file():
            return None
        marks.append(model_fingerprint(folder))
    return "+".join(marks)


def data_hash(cell: BenchmarkCell) -> str | None:
    """Over the question file of the split and the annotations that scores follow from; None without a question file."""
    if not cell.question_file.is_file():
        return None
    files = [cell.question_file]
    for need in cell.split.needs:
        if not (need.optional or need.asking):
            found: list[Path] = next(filter(None, (sorted(cell.folder.glob(path)) for path in need.paths)), [])
            files += [file for one in found for file in _texts(one)]
    return _hash(tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in dict.fromkeys(files)))


def _texts(path: Path) -> list[Path]:
    """The file, or a folder's files that are no pictures."""
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix in _TEXTS)


@lru_cache(maxsize=256)
def _hash(states: tuple[tuple[Path, int, int], ...]) -> str:
    """Remembered while the files' times and sizes stay: the cells of a table share their data."""
    return fingerprint(file for file, _, _ in states)


def expected_settings(cell: BenchmarkCell, question_file: Path | None = None) -> dict[str, Any]:
    """What must stand in the settings beside the answers, as far as it is known before the model is loaded."""
    told = cell.answering
    settings: dict[str, Any] = {
        "model": get_model_name_from_path(cell.model),
        "pruner": repr(cell.parsed_pruner) if cell.parsed_pruner else "none",
        **{name: getattr(told, name) for name in ("temperature", "top_p", "num_beams", "max_new_tokens", "seed")},
    }
    marks = model_hash(cell.model, told.model_base)
    if marks is not None:
        settings["model_hash"] = marks
    # The others have defaults that the scripts or the model decide about.
    for name in ("conv_mode", "dtype", "max_pixels"):
        if getattr(told, name) is not None:
            settings[name] = getattr(told, name)
    if question_file is not None:
        settings["questions"] = fingerprint([question_file])
    return settings


def expected(cell: BenchmarkCell) -> dict[str, Any]:
    """What must stand in the identity of a cell's JSON, as far as it is known before the model is loaded."""
    identity = {**expected_settings(cell), **chosen(cell)}
    marks = data_hash(cell)
    return identity if marks is None else {**identity, "data_hash": marks}


def chosen(cell: BenchmarkCell) -> dict[str, Any]:
    """The part of a cell's identity that the cell itself decides about.

    The judge is named where one is given: without one, a number that was judged before stays true.
    """
    identity: dict[str, Any] = {"benchmark": cell.benchmark, "split": cell.split.name, "limit": cell.limit}
    judge = judge_settings.settings_of(cell.arguments)
    if judge.judges:
        prompt = fingerprint([judge.prompt]) if judge.prompt else None
        identity["judge"] = {"model": judge.model, "runs": judge.runs, "body": dict(judge.body), "prompt": prompt}
    return identity


def recorded_settings(cell: BenchmarkCell) -> dict[str, Any]:
    """The settings beside the answers of all chunks that were joined.

    Raises ValueError when the chunks were answered with different ones.
    """
    own = _chunks(cell)
    if not own or any(settings != own[0] for settings in own):
        raise ValueError(
            f"the chunks in {cell.answers_folder} were not all answered with the same settings, on a CPU and a GPU "
            f"perhaps; remove the folder, and start again"
        )
    return own[0]


def put_aside(cell: BenchmarkCell, question_file: Path) -> Path | None:
    """Rename the folder of answers to <name>.<number> if they were made otherwise than the cell asks for.

    question_file: the one that will be asked. -> its new name, None if it stays.
    """
    wanted, folder = expected_settings(cell, question_file), cell.answers_folder
    if not any(own.get(name) != value for own in _chunks(cell) for name, value in wanted.items()):
        return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return folder.rename(aside)


def _chunks(cell: BenchmarkCell) -> list[dict[str, Any]]:
    """The settings of each chunk that is there, of as many as the cell would be answered in now."""
    chunks = launch.share(cell.arguments).chunks
    files = sorted(cell.answers_folder.glob(f"{chunks}_*.settings.json"))
    read = [json.loads(file.read_text("utf-8")) for file in files]
    return [{name: value for name, value in one.items() if name != "chunk"} for one in read]
