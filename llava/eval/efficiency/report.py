"""Computes the rows of an efficiency report, and a table, from the times of batches."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llava.eval.efficiency.answer_costs import ModelSizes, flops_of, mean, mean_gflops, mean_tokens, spread
from llava.eval.models.reply import Reply

DIGITS = 4


class Variant(NamedTuple):
    """One measured combination. attention: transformers' name of the implementation."""

    pruner: str
    batch: int
    attention: str

    @property
    def unpruned(self) -> Variant:
        return self._replace(pruner="none")


class Trial(NamedTuple):
    """Milliseconds per question of one batch.

    encode: vision tower, up to the projector. projector: the projector. prefill: the language model's first pass.
    decode: everything after it. total: from pixels on the device to the end of the answer. ttft: the part of total up
    to the first logits. reading: from the picture's file to pixels. wall: everything, from file to text, including
    attaching the pruner.
    """

    encode: float
    projector: float
    prefill: float
    decode: float
    total: float
    ttft: float
    reading: float
    wall: float

    @classmethod
    def of(cls, reply: Reply, reading: float, wall: float) -> Trial:
        """reply: any of the batch. reading, wall: milliseconds per question."""
        projector = reply.projector_ms or 0.0
        values = (reply.encode_ms - projector, projector, reply.prefill_ms, reply.decode_ms)
        times = (*values, reply.ms, reply.ms - reply.decode_ms, reading, wall)
        return cls(*(round(value, DIGITS) for value in times))


class Power(NamedTuple):
    """The power of a loop over the questions, including idle time of the GPU. watts: mean."""

    watts: float
    joules_per_question: float

    def row(self) -> dict[str, float]:
        kilowatt_hours = self.joules_per_question * 1000 / 3.6e6
        return {
            "watts": round(self.watts, 1),
            "joules_per_question": round(self.joules_per_question, 3),
            "kwh_per_1000_questions": round(kilowatt_hours, 6),
        }


class VariantResult(NamedTuple):
    """The measurements of a variant: a trial for each batch, a reply for each question, and separate measurements.

    answer_tokens: for each question. peak_memory_mb: activations of one batch. power: None if not measured.
    """

    trials: list[Trial]
    replies: list[Reply]
    answer_tokens: list[int]
    peak_memory_mb: float
    power: Power | None = None


def speed_up(own: Sequence[float], unpruned: Sequence[float]) -> dict[str, float] | None:
    """Speed-up: ratio of the medians, and quartiles over pairs of trials on the same questions.

    None for a stage that did not run.
    """
    pairs = [before / after for before, after in zip(unpruned, own, strict=True) if before > 0 and after > 0]
    middle = statistics.median(own)
    if not pairs or not middle:
        return None
    quartiles = spread(pairs, DIGITS)
    del quartiles["mean"]
    return {"ratio": round(statistics.median(unpruned) / middle, DIGITS), **quartiles}


def row_of(
    variant: Variant,
    result: VariantResult,
    unpruned: VariantResult,
    sizes: ModelSizes,
    merges_before_mlp: bool,
    price_per_hour: float | None,
) -> dict[str, Any]:
    """A row of the report; `raw` has its trials, by stage."""
    raw = {stage: [getattr(trial, stage) for trial in result.trials] for stage in Trial._fields}
    before = {stage: [getattr(trial, stage) for trial in unpruned.trials] for stage in Trial._fields}
    answers = [reply.metadata() for reply in result.replies]
    seconds = {stage: sum(raw[stage]) * variant.batch / 1000 for stage in ("wall", "reading")}
    price = None
    if price_per_hour is not None:
        price = round(price_per_hour * seconds["wall"] / 3600 * 1000 / len(answers), 6)
    return {
        **variant._asdict(),
        "questions": len(answers),
        "ms": {stage: spread(times, DIGITS) for stage, times in raw.items()},
        "speed_up": {stage: speed_up(raw[stage], before[stage]) for stage in raw},
        "loop_seconds": round(seconds["wall"], 3),
        "reading_seconds": round(seconds["reading"], 3),
        "peak_memory_mb": round(result.peak_memory_mb, 3),
        "tokens": mean_tokens(answers),
        "gflops": mean_gflops(flops_of(answers, sizes, merges_before_mlp)),
        "answer_tokens": mean(result.answer_tokens, 2),
        "power": result.power.row() if result.power else None,
        "price_per_1000_questions": price,
        "raw": raw,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as text: medians in milliseconds per question, speed-ups as ratios of medians."""
    stages = ("encode", "projector", "prefill", "decode", "ttft", "total", "wall")
    wide = max(len(row["pruner"]) for row in rows)
    titles = [f"{'pruner':{wide}}", "batch", f"{'attention':17}", *(f"{stage:>9}" for stage in stages)]
    lines = [" ".join([*titles, " ttft x", "total x", "peak MB", "visual", "  GFLOPs"])]
    for row in rows:
        times = [f"{row['ms'][stage]['median']:9.2f}" for stage in stages]
        ratios = [f"{row['speed_up'][stage]['ratio']:7.2f}" for stage in ("ttft", "total")]
        rest = [f"{row['peak_memory_mb']:7.1f}", f"{row['tokens']['llm']:6.1f}", f"{row['gflops']['total']:8.2f}"]
        head = [f"{row['pruner']:{wide}}", f"{row['batch']:5}", f"{row['attention']:17}"]
        lines.append(" ".join([*head, *times, *ratios, *rest, *_extras(row)]))
    return "\n".join(lines)


def _extras(row: Mapping[str, Any]) -> list[str]:
    power, price = row["power"], row["price_per_1000_questions"]
    told = [f"  {power['watts']:.0f} W, {power['joules_per_question']:.2f} J a question"] if power else []
    return told + ([f"  {price:.4f} for 1000 questions"] if price is not None else [])
