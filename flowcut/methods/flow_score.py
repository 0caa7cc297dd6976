"""FlowCut's importance of a layer's patches, as pure functions of tensors: equations 1, 4 and 5.

Between two selections the tokens stay the same. So a layer is only looked at when it runs (`look`: two products and a
mean), and all layers since the last selection are rated together when the next one comes (`rate`), with a third of the
operator calls. `layer_score` does both at once for one layer, to be compiled.

Shapes: K kinds of rows (attention, and semantic relevance where it counts), L layers, B samples, H heads, N tokens, n
patches, d entries per head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowcut import scores


class Look(NamedTuple):
    """What the next selection needs of a layer.

    Attributes:
        logits: for each kind [B, H, N].
        mean: [B, n, d], value vectors averaged over heads; None if their strength does not count.
    """

    logits: list[Tensor]
    mean: Tensor | None


class Rating(NamedTuple):
    """Scores of some layers.

    Attributes:
        rows: [K, L, B, N], rows of the global token's attention and of semantic relevance, averaged over heads.
        shares: [K, L, B, n], the same over patches alone, with sum 1.
        strength: [L, B, n], or None.
        score: [L, B, n], equation 5.
    """

    rows: Tensor
    shares: Tensor
    strength: Tensor | None
    score: Tensor

    def layers(self) -> list[Rating]:
        """Each layer by itself."""
        numbers = range(len(self.score))
        return [
            Rating(
                self.rows[:, at : at + 1],
                self.shares[:, at : at + 1],
                None if self.strength is None else self.strength[at : at + 1],
                self.score[at : at + 1],
            )
            for at in numbers
        ]


def look(
    attention: tuple[Tensor, Tensor, float], semantic: tuple[Tensor, Tensor, float] | None, values: Tensor | None
) -> Look:
    """Look at a layer.

    Args:
        attention, semantic: the global token's entry [B, H, d], what it is multiplied with [B, H, N, d], and the scale
            of the products; None if semantic relevance does not count.
        values: [B, H, n, d] of the patches; None if their strength does not count.
    """
    logits = [scores.row_logits(*attention)]
    if semantic is not None:
        logits.append(scores.row_logits(*semantic).expand_as(logits[0]))
    return Look(logits, None if values is None else scores.head_mean(values))


def rate(looks: Sequence[Look], valid_BN: Tensor | None, patches: int, by_attention: bool) -> Rating:
    """Rate layers that had the same tokens, `patches` at the end of them; by_attention: whether attention counts."""
    kinds = [logits for kind in zip(*(seen.logits for seen in looks), strict=True) for logits in kind]
    rows = scores.mean_rows(kinds, valid_BN).unflatten(0, (-1, len(looks)))
    shares = scores.normalise(rows[..., -patches:])
    counted = shares if by_attention else shares[1:]
    means = [seen.mean for seen in looks if seen.mean is not None]
    strength = torch.linalg.vector_norm(torch.stack(means), ord=1, dim=-1) if means else None
    if not len(counted):
        assert strength is not None, "at least one criterion counts"
        return Rating(rows, shares, strength, strength)
    score = counted.sum(dim=0) if len(counted) > 1 else counted[0]
    return Rating(rows, shares, strength, score if strength is None else score * strength)


def layer_score(
    attention: tuple[Tensor, Tensor, float],
    semantic: tuple[Tensor, Tensor, float] | None,
    values: Tensor | None,
    valid_BN: Tensor | None,
    patches: int,
    by_attention: bool,
) -> Rating:
    """Look at a layer and rate it by itself; arguments of `look` and `rate`."""
    return rate([look(attention, semantic, values)], valid_BN, patches, by_attention)
