"""How a benchmark's cell is produced: its files are checked, its questions answered and scored, its JSON written."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from llava.eval.answering.evaluate import evaluate, question_file_of
from llava.eval.files import absent, read_json, write_atomic
from llava.eval.prepare import look
from scripts.tables.cells import identity
from scripts.tables.cells.document import make_document, read_document
from scripts.tables.cells.spec import CellSpec

logger = logging.getLogger(__name__)


def make_cell(spec: CellSpec) -> dict[str, Any]:
    """The cell's JSON. It is read where it is up to date; otherwise what is missing is answered and scored.

    Messages of the evaluation go to stderr. Answers that were made with other settings than the cell asks for are
    archived in a folder next to them.

    Raises:
        ValueError: files are missing, or the evaluation failed; the message is one line. Answers up to there are kept.
    """
    there = read_document(spec)
    if there is not None:
        return there
    refuse_fewer(spec)
    if lacking := missing_files(spec):
        raise ValueError(f"{spec.evaluation.folder} lacks {'; '.join(lacking)}")
    asked = question_file_of(spec.evaluation)
    archived = identity.archive_stale(spec, asked.question_file)
    if archived is not None:
        logger.warning("answers made with another model, pruner or setting were put aside: %s", archived)
    _evaluate(spec)
    made = make_document(spec)
    spec.file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(spec.file, json.dumps(made, ensure_ascii=False, indent=1) + "\n")
    return made


def refuse_fewer(spec: CellSpec) -> None:
    """Raise ValueError, one line, where a cell of a few questions would replace one of more."""
    if spec.limit is None or not spec.file.is_file():
        return
    before = read_json(spec.file).get("limit")
    if before is None or before > spec.limit:
        raise ValueError(
            f"{spec.file} was measured with --limit {before or '(all)'}, and {spec.limit} would replace it; ask as "
            f"many, or give another folder for the results"
        )


def missing_files(spec: CellSpec) -> list[str]:
    """What the benchmark lacks and where to get it, a line each; pictures of questions included."""
    bench, folder, split = spec.evaluation.bench, spec.evaluation.folder, spec.evaluation.chosen_split
    lacking = bench.missing(folder, split)
    if lacking:
        return [f"{' or '.join(one.paths)} ({one.purpose}), get it from {one.source}" for one in lacking]
    found = look(bench, folder, split)
    gone = found.absent
    if gone and spec.limit:
        gone = absent(bench.subset(bench.rows(folder, split), spec.limit), found.images)
    if not gone or spec.evaluation.skip_bad:
        return []
    return [f"{len(gone)} pictures of questions in {found.images}, such as {gone[0]}"]


def _evaluate(spec: CellSpec) -> None:
    """Answer the questions that have no answer yet, and score all of them. What is told of it goes to stderr.

    Raises:
        ValueError: the evaluation failed, or other machines still answer their share.
    """
    try:
        scored = evaluate(spec.evaluation, progress=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}; to continue: {spec.command}") from error
    if scored is None:
        raise ValueError(f"other nodes still answer; to continue after them: {spec.command}")
    print(*scored.notes, scored.table, sep="\n", file=sys.stderr)
