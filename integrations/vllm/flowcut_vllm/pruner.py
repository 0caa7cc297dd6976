"""Which pruner a server runs, which budget a request asks for, and what cannot be served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flowcut.attach import check_pruner
from flowcut.pruner import Budget, EncoderShape, ModelShape, Pruner
from flowcut.registry import pruner_from_config, pruner_to_text

FIELD = "flowcut"
"""The field of a model's config, and of a request's `mm_processor_kwargs`."""


def server_pruner(config: Any) -> Pruner | None:
    """The pruner that a model's config names; None if it names none, so that the model is served as it is.

    The field is there because the checkpoint was trained with a pruner, or by `--hf-overrides '{"flowcut": ...}'`.

    Raises:
        ValueError: it is no pruner.
    """
    value = getattr(config, FIELD, None)
    if value is None:
        return None
    try:
        return pruner_from_config(value)
    except ValueError as error:
        raise ValueError(f'field "{FIELD}" of the model\'s config: {error}') from error


def request_pruner(pruner: Pruner, given: object) -> Pruner:
    """The server's pruner with the budget that a request asks for.

    given: the field of the request's `mm_processor_kwargs`, {"budget": 64}; None for a request without one. It may name
        method and fields too, as a client does that must not be answered with another pruner: {"method": "flowcut",
        "budget": 64}. They have to be the server's.

    Raises:
        ValueError: anything else.
    """
    if given is None:
        return pruner
    if not isinstance(given, Mapping) or "budget" not in given:
        raise ValueError(f'"{FIELD}" of a request takes a budget, {{"budget": 64}}, not {_shown(given)}')
    budget: Any = given["budget"]
    if not isinstance(budget, int | float):
        raise ValueError(f"budget={_shown(budget)} is not a number; give a number of tokens, or a share such as 0.333")
    asked = replace(pruner, budget=budget)
    if set(given) != {"budget"} and pruner_from_config(dict(given)) != asked:
        raise ValueError(
            f"this server prunes with {pruner_to_text(pruner)}, and a request may change the budget alone, not to "
            f"{_shown(given)}"
        )
    return asked


def number_of(budget: Budget) -> float:
    """A budget as one number, as it travels beside an image; a whole one is at least 1 and a share below."""
    return float(budget)


def budget_of(number: float) -> Budget:
    """The budget that `number_of` wrote."""
    return int(number) if number >= 1 else number


def tokens_of(pruner: Pruner, unpruned: int) -> int:
    """How many tokens an image of so many unpruned ones has."""
    return min(pruner.tokens_of(unpruned), unpruned)


def check_served(pruner: Pruner, encoder: EncoderShape) -> None:
    """Whether a pruner can be served with a model that has such an encoder.

    Raises:
        ValueError: one line that says why not.
    """
    name = pruner.name or type(pruner).__name__
    if pruner.cuts_language(False):
        raise ValueError(
            f"{name} cuts inside the language model, whose layers share one KV cache layout in vLLM; use a method that "
            "cuts in the vision encoder, such as flowcut, or run it with transformers"
        )
    if pruner.reads_question:
        raise ValueError(
            f"{name} reads the question, but vLLM keeps an image's tokens for other questions; use a method or a "
            "setting that looks at the image alone, such as flowcut"
        )
    check_pruner(pruner, ModelShape((encoder,)))


def _shown(value: object) -> str:
    said = " ".join(repr(value).split())
    return said if len(said) <= 60 else f"{said[:57]}..."
