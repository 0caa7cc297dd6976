"""What evaluations lack, found without running them: files of benchmarks and models, their sources and sizes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from llava.eval.answering.evaluate import EvaluationSpec
from llava.eval.prepare import look, report_absent, report_needs, sizes_of
from llava.forecast import WEIGHTS, missing_weights, size, total
from llava.given import HUB_NAME

TOWER = "openai/clip-vit-large-patch14-336"
"""The vision tower of LLaVA-1.5, whose checkpoints do not include it."""
HUB = "https://huggingface.co/"


class Found(NamedTuple):
    """missing: benchmarks that lack files. sizes: gigabytes of each missing download, by its source; None where that is
    not known. questions: of each benchmark.
    """

    missing: list[str]
    sizes: dict[str, float | None]
    questions: dict[str, int]


def report_missing(specs: Iterable[EvaluationSpec]) -> Found:
    """Print everything that these evaluations need and what of it is missing. Each benchmark and model is told once."""
    found = Found([], {}, {})
    every = list(specs)
    for spec in {spec.benchmark: spec for spec in every}.values():
        _benchmark(spec, found)
    models = [spec.model for spec in every if spec.answering.server is None]
    models += [spec.answering.model_base for spec in every if spec.answering.model_base]
    models += [TOWER for name in models if name in WEIGHTS and "llava-v1.5" in name][:1]
    absent = missing_weights(models)
    for name in absent:
        if not HUB_NAME.fullmatch(name):
            raise ValueError(f"{name} is not a folder; give a checkpoint's folder, or a Hub name such as org/model")
    for name in dict.fromkeys(models):
        where = f"; downloaded at first use from {HUB}{name}, {size(absent[name])}" if name in absent else ""
        print(f"  {'MISSING' if name in absent else 'found':8} {name}: model{where}")
    found.sizes.update({HUB + name: gigabytes for name, gigabytes in absent.items()})
    print(f"missing downloads: {len(found.sizes)}, {total(found.sizes.values())}")
    return found


def _benchmark(spec: EvaluationSpec, found: Found) -> None:
    bench, folder, split = spec.bench, spec.folder, spec.chosen_split
    questions = split.published or 0
    if report_needs(bench, folder, split):
        prepared = look(bench, folder, split)
        report_absent(prepared)
        questions = prepared.questions
        found.missing.extend([bench.name] if prepared.absent else [])
    else:
        found.missing.append(bench.name)
        found.sizes.update(sizes_of(bench.missing(folder, split)))
    found.questions[bench.name] = questions if spec.limit is None else min(questions, spec.limit)
