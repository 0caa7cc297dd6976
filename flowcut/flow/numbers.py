"""The numbers of a study: per layer, per pruner, and of the criteria, as plain values for JSON and CSV."""

from __future__ import annotations

import csv
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from flowcut.flow import measures
from flowcut.flow.measures import Array
from flowcut.flow.study import Run, Study

CRITERIA = ("attention", "similarity", "strength")


def per_layer(study: Study) -> list[dict[str, Any]]:
    """What changes with depth when nothing is cut: means over pictures, and some standard deviations (`_sd`)."""
    flow = study.flow
    entropy, ratio = measures.entropy(flow.attention)
    patch_sources = flow.inflow[:, :, study.special :]
    columns: dict[str, Array] = {
        "distance": measures.distances(flow.source, study.places).mean(axis=2),
        "entropy": entropy,
        "entropy_ratio": ratio,
        "agreement": flow.agreement,
        "to_special": flow.to_special,
        "source_is_special": (patch_sources < study.special).mean(axis=2),
        "distinct_sources": np.array([[len(np.unique(row)) for row in image] for image in flow.source], dtype=float),
    }
    rows: list[dict[str, Any]] = [{"layer": layer} for layer in range(study.layers)]
    for name, values in columns.items():
        summary = measures.over_images(values)
        for row, mean, deviation in zip(rows, summary.mean.tolist(), summary.deviation.tolist(), strict=True):
            row[name] = mean
            row[f"{name}_sd"] = deviation
    return rows


def criteria(study: Study) -> dict[str, Any]:
    """How far the three criteria agree at the layer that is read; means over pictures.

    `correlation`: Spearman's, of each pair. `low_...`: share of the `top` tokens of highest attention that lie in the
    lower half of another criterion, or of both (by chance: half, and a quarter where the two are independent).
    """
    top = int(study.runs[0].kept.sum(axis=1).max())
    values = {name: getattr(study.flow, name)[:, study.read_after] for name in CRITERIA}
    pairs = {
        f"{one}-{other}": [measures.rank_correlation(a, b) for a, b in zip(values[one], values[other], strict=True)]
        for one, other in combinations(CRITERIA, 2)
    }
    low = {
        "low_similarity": [values["similarity"]],
        "low_strength": [values["strength"]],
        "low_both": [values["similarity"], values["strength"]],
    }
    shares = {
        name: [
            measures.contradiction(score, [other[image] for other in others], top)
            for image, score in enumerate(values["attention"])
        ]
        for name, others in low.items()
    }
    return {
        "layer": study.read_after,
        "top": top,
        "correlation": {pair: float(np.mean(found)) for pair, found in pairs.items()},
        **{name: float(np.mean(found)) for name, found in shares.items()},
    }


def strength_lines(study: Study) -> dict[str, Array]:
    """Label -> [L], mean L1 norm of the value vectors of the tokens that entered each layer; mean over pictures."""
    lines = {"no pruning": study.flow.strength.mean(axis=(0, 2))}
    return lines | {run.label: np.nanmean(run.strength, axis=2).mean(axis=0) for run in study.runs}


def boxes(study: Study, run: Run) -> tuple[list[measures.Box], list[measures.Box]]:
    """Statistics of L1 norms of value vectors in each layer, over the patches of all pictures: before and after."""
    before = [measures.box(study.flow.strength[:, layer]) for layer in range(study.layers)]
    return before, [measures.box(run.strength[:, layer]) for layer in range(study.layers)]


def spreads(study: Study) -> dict[str, Any]:
    """Mean distance in patches between two patches kept, by label; "all patches" is what a random choice would have.

    `mean` and `sd` over pictures; `larger` is the share of pictures where the first pruner's is larger.
    """
    table = {run.label: np.array([measures.spread(study.places[kept]) for kept in run.kept]) for run in study.runs}
    first = table[study.runs[0].label]
    found = {
        label: {
            **{name: float(value) for name, value in measures.over_images(values)._asdict().items()},
            "larger": None if values is first else float((first > values).mean()),
        }
        for label, values in table.items()
    }
    whole = {"mean": measures.spread(study.places), "deviation": 0.0, "larger": None}
    return {"all patches": whole, **found}


def numbers_of(study: Study) -> dict[str, Any]:
    """Everything above, and how many patches entered each layer, for numbers.json."""
    special = study.special
    streams = {
        "inflow": [measures.main_stream(image[::-1]).tolist()[::-1] for image in study.flow.inflow],
        "outflow": [measures.main_stream(image).tolist() for image in study.flow.outflow],
    }
    return {
        "model": study.model,
        "pictures": study.names,
        "grid": list(study.grid),
        "special_tokens": special,
        "relay": study.relay,
        "layers": per_layer(study),
        "criteria": criteria(study),
        "spread": spreads(study),
        "value_strength": {label: values.tolist() for label, values in strength_lines(study).items()},
        "patches_entering": {
            run.label: (~np.isnan(run.strength)).sum(axis=2).mean(axis=0).tolist() for run in study.runs
        },
        "main_streams": streams,
        "answers": {"no pruning": study.answers, **{run.label: run.answers for run in study.runs}},
    }


def write_tables(study: Study, folder: Path) -> None:
    """layers.csv (see `per_layer`), and boxes.csv: one row a pruner and layer, "no pruning" first."""
    _write(folder / "layers.csv", per_layer(study))
    rows = []
    for run in study.runs:
        before, after = boxes(study, run)
        for label, found in (("no pruning", before), (run.label, after)):
            if label != "no pruning" or run is study.runs[0]:
                rows += [{"pruner": label, "layer": layer, **one._asdict()} for layer, one in enumerate(found)]
    _write(folder / "boxes.csv", rows)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
