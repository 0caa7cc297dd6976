"""What a handle tells when it is printed: one line on what was attached, and what it did in the last forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any

from flowcut.cost import encoder_flops, merging_encoder_flops, patches_of
from flowcut.pruner import Pruner
from flowcut.trace import Trace


def brief(pruner: Pruner) -> str:
    """A pruner with its budget and those fields alone that differ from their defaults: "FlowCut(budget=64)"."""
    values = [(field.name, getattr(pruner, field.name), field.default) for field in fields(pruner)]
    said = [f"{name}={value!r}" for name, value, default in values if default is MISSING or value != default]
    return f"{type(pruner).__name__}({', '.join(said)})"


def summary(pruner: Pruner, model: str, encoder: Any, trace: Trace | None) -> str:
    """One line. model: name of its class; encoder: the vision encoder's config."""
    if trace is None:
        return f"{brief(pruner)} on {model}, no forward yet"
    name = type(pruner).__name__
    left = [len(tokens) for tokens in trace.tokens]
    if not left and trace.language is not None:  # given embeddings, whose images were encoded elsewhere
        left = list(trace.language.entering[0])
    if not _dropped(trace):
        kept = f"{name}, {_span(left)} of {_span(left)} tokens kept"
        above = len(trace.within_budget) == len(left)
        return f"{kept}: budget={pruner.budget} is not below them" if above else kept
    whole = _unpruned(trace, left)
    change = _span(left) if whole == left else f"{_span(whole)} -> {_span(left)}"
    several = len(set(whole)) > 1 or len(set(left)) > 1
    total = f" ({len(left)} images, {sum(whole)} -> {sum(left)} in total)" if several and whole != left else ""
    parts = [name, f"{change} tokens per image{total}"]
    if trace.language is not None and trace.language.kept:
        parts.append(f"{_span(trace.language.entering[-1])} in the language model's last layer")
    saved = encoder_saving(encoder, trace)
    if saved:
        parts.append(f"encoder FLOPs -{100 * saved:.0f} %")
    return ", ".join(parts)


def encoder_saving(encoder: Any, trace: Trace) -> float | None:
    """The share of the vision encoder's FLOPs that a trace did without, in the layers that ran.

    encoder: its config. None where no formula of `flowcut.cost` speaks of it: DINOv2, Qwen2.5-VL, stretched pictures.
    """
    merges = _has(encoder, "spatial_merge_size")
    if _has(encoder, "window_size") or (not merges and not _has(encoder, "intermediate_size", "image_size")):
        return None
    pruned = plain = 0.0
    rows = zip(zip(*trace.entering, strict=True), zip(*trace.leaving, strict=True), strict=True)
    for entering, leaving in rows:
        whole = entering[:1] * len(entering)
        if merges:
            pruned += merging_encoder_flops(encoder, entering, leaving[-1])
            plain += merging_encoder_flops(encoder, whole, whole[0])
        elif whole[0] != patches_of(encoder):
            return None
        else:
            pruned += encoder_flops(encoder, entering, mlp_path=leaving if trace.merged_before_mlp else None)
            plain += encoder_flops(encoder, whole)
    return 1 - pruned / plain if plain else None


def _has(config: Any, *names: str) -> bool:
    return all(hasattr(config, name) for name in names)


def _dropped(trace: Trace) -> bool:
    stages = [trace] if trace.language is None else [trace, trace.language]
    return any(stage.entering and stage.leaving[-1] != stage.entering[0] for stage in stages)


def _unpruned(trace: Trace, left: Sequence[int]) -> list[int]:
    """Tokens each image of `trace.tokens` has where nothing is dropped.

    Where the encoder dropped nothing they are those that are left, without the padding that a family takes off and with
    the tokens that end image rows.
    """
    if not trace.entering or trace.leaving[-1] == trace.entering[0]:
        return list(left)
    return [trace.unpruned_tokens[int(tokens[:, 0].max())] for tokens in trace.tokens]


def _span(numbers: Sequence[int]) -> str:
    """ "64", or "144-576" where they differ."""
    low, high = min(numbers, default=0), max(numbers, default=0)
    return str(low) if low == high else f"{low}-{high}"
