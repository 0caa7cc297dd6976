"""The cost of answers: FLOPs by formula from their measured tokens, means over tokens, spread of times.

An answer is the `metadata` of an answer line: `llava.eval.models.reply.Reply` without its text.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from flowcut.cost import Cost, cost_of, prefill_flops

PARTS = ("encoder", "projector", "prefill", "total")


class ModelSizes(NamedTuple):
    """The inputs of the formulas for a model: two configs, and the number of linear layers of its projector."""

    vision: Any
    language: Any
    projector_layers: int

    @classmethod
    def of(cls, model: Any) -> ModelSizes:
        """The sizes of one of this repository's LLaVA models."""
        depth = sum(isinstance(part, nn.Linear) for part in model.get_model().mm_projector.modules())
        return cls(model.get_vision_tower().config, model.config, depth)


def flops_of(answers: Sequence[Mapping[str, Any]], sizes: ModelSizes, merges_before_mlp: bool = False) -> list[Cost]:
    """Each answer's FLOPs up to its first new token.

    An answer's tokens are sums over its tiles and pictures, and assumed to be spread evenly over them; see `cost_of`.
    merges_before_mlp: whether encoder layers merge ahead of their MLP (`Pruner.merges_before_mlp`).
    """
    return [_flops(answer, sizes, merges_before_mlp) for answer in answers]


def _flops(answer: Mapping[str, Any], sizes: ModelSizes, merges_before_mlp: bool) -> Cost:
    vision, language, tokens, text = sizes.vision, sizes.language, answer["tokens"], answer["text_tokens"]
    if not tokens:  # no picture: neither encoder nor projector runs
        return Cost(0.0, 0.0, prefill_flops(language, [text] * language.num_hidden_layers))
    tiles = tokens[0] // (vision.image_size // vision.patch_size) ** 2
    return cost_of(
        vision,
        language,
        text,
        tokens[:-1],
        answer.get("language_tokens") or answer["visual_tokens"],
        sizes.projector_layers,
        tokens[1:] if merges_before_mlp else None,
        tiles,
        # after the encoder, padding of tiles is removed or newline tokens are inserted
        tokens[-1] if tiles > 1 else None,
    )


def costs_of(answers: Sequence[Mapping[str, Any]], sizes: ModelSizes | None, merges_before_mlp: bool) -> dict[str, Any]:
    """Means of tokens and GFLOPs over answers, and their measured times in ms; None without answers.

    sizes: None where there is no formula for the model; GFLOPs are then None. merges_before_mlp: see `flops_of`.
    """
    if not answers:
        return {"tokens": None, "gflops": None, "ms": None}
    stages = {name: spread([one[f"{name}_ms"] for one in answers]) for name in ("encode", "prefill")}
    return {
        "tokens": mean_tokens(answers),
        "gflops": None if sizes is None else mean_gflops(flops_of(answers, sizes, merges_before_mlp)),
        "ms": {**spread([one["ms"] for one in answers]), **stages},
    }


def mean_gflops(costs: Sequence[Cost]) -> dict[str, float]:
    return {part: mean([getattr(cost, part) / 1e9 for cost in costs], 4) for part in PARTS}


def mean_tokens(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Visual and text tokens that the language model read, and visual tokens of the layers of both parts.

    Both common means are given: SparseVLM counts the outputs of a layer, FLOPs follow from its inputs. An
    answer without a picture counts with 0 tokens; where no answer has one, those of the encoder are None.
    """
    depth = max(len(one["tokens"]) for one in answers)
    layers = [
        statistics.fmean(column) for column in zip(*(one["tokens"] or [0] * depth for one in answers), strict=True)
    ]
    return {
        "llm": mean([one["visual_tokens"] for one in answers], 2),
        "llm_inputs": mean([statistics.fmean(decoder_tokens(one)) for one in answers], 2),
        "llm_outputs": mean([statistics.fmean(_left(decoder_tokens(one))) for one in answers], 2),
        "text": mean([one["text_tokens"] for one in answers], 2),
        "encoder_inputs": mean(layers[:-1], 2) if layers else None,
        "encoder_outputs": mean(layers[1:], 2) if layers else None,
        "by_layer": [round(value, 2) for value in layers],
    }


def decoder_tokens(answer: Mapping[str, Any]) -> list[int]:
    """Visual tokens that enter each layer of the language model; one number without cuts there."""
    return answer.get("language_tokens") or [answer["visual_tokens"]]


def _left(entering: list[int]) -> list[int]:
    """Visual tokens that leave each layer, which enter the next one. A cut after the last layer has no effect."""
    return [*entering[1:], entering[-1]]


def mean(values: Sequence[float], digits: int) -> float:
    return round(statistics.fmean(values), digits)


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Mean and quartiles."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    names = ("p25", "median", "p75")
    return {
        "mean": mean(values, digits),
        **{name: round(quartile, digits) for name, quartile in zip(names, quartiles, strict=True)},
    }
