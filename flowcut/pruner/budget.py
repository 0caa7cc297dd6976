"""How many visual tokens an image may keep: a number, or a share of its own tokens."""

from __future__ import annotations

from typing import TypeAlias

Budget: TypeAlias = int | float
"""Visual tokens of an image, >= 1; or, as a float between 0 and 1, the share of its own number of them."""


def whole_budget(budget: Budget, tokens: int) -> int:
    """A budget as a whole number: a share of `tokens` is rounded to the nearest (halves to even), at least 1."""
    return max(round(budget * tokens), 1) if isinstance(budget, float) else budget
