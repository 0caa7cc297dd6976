"""FlowCut's importance of a layer's patches, as pure functions of tensors: equations 1, 4 and 5.

Between two selections the tokens stay the same. So a layer is only looked at when it runs (`Looks.add`: two products
and a mean, written side by side), and all layers since the last selection are rated together when the next one comes
(`Looks.rate`), with a third of the operator calls. `layer_score` does both at once for one layer, to be compiled.

Shapes: K kinds of rows (attention, and semantic relevance where it counts), L layers, B samples, H heads, N tokens, n
patches, d entries per head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowcut import scores

Query = tuple[Tensor, Tensor, float]
"""The global token's entry [B, H, d], what it is multiplied with [B, H, N, d], and the scale of the products."""


class Rating(NamedTuple):
    """Scores of some layers.

    Attributes:
        rows: [K, L, B, N], rows of the global token's attention and of semantic relevance, averaged over heads.
        shares: [K, L, B, n], the same over patches alone, with sum 1.
        share: [L, B, n], the sum of the shares that count; None if none does.
        strength: [L, B, n], or None if it does not count.
    """

    rows: Tensor
    shares: Tensor
    share: Tensor | None
    strength: Tensor | None

    @property
    def score(self) -> Tensor:
        """[L, B, n], equation 5."""
        if self.share is None or self.strength is None:
            only = self.strength if self.share is None else self.share
            assert only is not None, "at least one criterion counts"
            return only
        return self.share * self.strength

    def factors(self, at: int) -> tuple[Tensor | None, Tensor | None]:
        """Share and strength [B, n] of layer number `at` of them, whose product is its score."""
        return tuple(None if part is None else part[at] for part in (self.share, self.strength))  # type: ignore

    def signals(self, at: int, patches: int) -> dict[str, Tensor]:
        """What there is to record of layer number `at` of them, [B, n] each."""
        told = dict(zip(("attention", "semantic"), self.rows[:, at, :, -patches:], strict=False))
        if self.strength is not None:
            told["value"] = self.strength[at]
        return told | {"score": self.score[at]}


class Looks:
    """What the next selection needs of the layers before it: products and means, each written where it is read.

    Attributes:
        products: for each kind [L, ..] of `scores.row_products`; one tensor [K, L, ..] where kinds have equal shapes.
        means: [L, B, n, d], value vectors averaged over heads; None if their strength does not count.
        layers: which layers were looked at.
    """

    def __init__(self, number: int, attention: Query, semantic: Query | None, values: Tensor | None):
        """For `number` layers like this one; see `add`."""
        kinds = [kind for kind in (attention, semantic) if kind is not None]
        shapes, new = [scores.products_shape(keys) for _, keys, _ in kinds], attention[1].new_empty
        if len(set(shapes)) == 1:
            self.products: Tensor | list[Tensor] = new((len(kinds), number, *shapes[0]), dtype=torch.float32)
        else:
            self.products = [new((number, *shape), dtype=torch.float32) for shape in shapes]
        sizes = None if values is None else (number, len(values), *values.shape[2:])
        self.means = None if sizes is None else new(sizes, dtype=torch.float32)
        self.batch = len(attention[0])
        self.layers: list[int] = []

    def add(
        self, layer: int, attention: Query, semantic: Query | None, values: Tensor | None, bias: Tensor | None
    ) -> None:
        """Look at a layer.

        Args:
            attention, semantic: see `Query`; None if semantic relevance does not count.
            values: [B, H, n, d] of the patches; None if their strength does not count.
            bias: [B, N], what is added to logits: -inf on padding; None for nothing.
        """
        at = len(self.layers)
        self.layers.append(layer)
        for query, products in zip((attention, semantic), self.products, strict=False):
            if query is not None:
                scores.row_products(*query, bias, out=products[at])
        if values is not None and self.means is not None:
            torch.mean(values, dim=1, dtype=torch.float32, out=self.means[at])

    def rate(self, patches: int, by_attention: bool) -> Rating:
        """Rate the layers; see `rate`."""
        return rate(self.products, self.means, self.batch, patches, by_attention)


def rate(
    products: Tensor | Sequence[Tensor], means: Tensor | None, batch: int, patches: int, by_attention: bool
) -> Rating:
    """Rate layers that had the same tokens, `patches` at the end of them; by_attention: whether attention counts."""
    if isinstance(products, Tensor):
        rows = scores.row_weights(products, batch)
    else:
        rows = torch.stack([scores.row_weights(kind, batch) for kind in products])
    shares = scores.normalise(rows[..., -patches:])
    counted = shares if by_attention else shares[1:]
    strength = None if means is None else torch.linalg.vector_norm(means, ord=1, dim=-1)
    share = counted.sum(dim=0) if len(counted) > 1 else counted[0] if len(counted) else None
    return Rating(rows, shares, share, strength)


def layer_score(
    attention: Query,
    semantic: Query | None,
    values: Tensor | None,
    bias: Tensor | None,
    patches: int,
    by_attention: bool,
) -> Rating:
    """Look at a layer and rate it by itself; arguments of `Looks.add` and `rate`."""
    kinds = [scores.row_products(*kind, bias)[None] for kind in (attention, semantic) if kind is not None]
    means = None if values is None else scores.head_mean(values)[None]
    return rate(kinds, means, len(attention[0]), patches, by_attention)
