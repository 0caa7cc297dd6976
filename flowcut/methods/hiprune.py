"""HiPrune (Liu et al. 2025, "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language
Models", arXiv 2508.00553).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowcut import scores
from flowcut.pruner import Cut, ModelShape, OneCut, View

_GROUP = 5  # an anchor and its four neighbours


def around(anchors: Tensor, rows: int, columns: int, wrap: bool) -> Tensor:
    """Anchors [k] of a grid and their neighbours left, right, above and below, ascending, each once.

    wrap: find neighbours by number alone, so that the left one of a row's first patch is the last of the row above,
        and what lies outside of the grid is its first or last patch.
    """
    steps = anchors.new_tensor([[0, 0], [0, -1], [0, 1], [-1, 0], [1, 0]])
    if wrap:
        offsets = steps[:, 0] * columns + steps[:, 1]
        return (anchors[:, None] + offsets).clamp(0, rows * columns - 1).unique()
    places = torch.stack([anchors // columns, anchors % columns], dim=1)[:, None] + steps
    inside = ((places >= 0) & (places < places.new_tensor([rows, columns]))).all(dim=2)
    return (places[..., 0] * columns + places[..., 1])[inside].unique()


@dataclass(frozen=True)
class HiPrune(OneCut):
    """Keep the patches with high attention in a middle layer, their neighbours, and those with high attention last.

    Scores are the attention a patch receives, averaged over all heads and all queries, CLS among them. Anchors are
    the patches of highest score in the object layer, an `alpha` / 5 share of the budget, rounded; buffers their
    four neighbours on the grid; the rest of the budget are registers, by score in the layer LLaVA reads its
    features from (the last but one), after which the cut is made. Kept patches stay in their order; positions in
    the language model are renumbered.

    Released code (github.com/Danielement321/HiPrune, MIT): finds neighbours by number, so they wrap around the ends
    of rows, and the first or last patch is kept for neighbours outside of the grid; `wrap=False` looks at the grid.
    Counts layers from 1, here from 0. Materialises the attention of every layer; here the mean over queries is
    taken in pieces, which costs the same multiplications for two layers and no memory of N x N.

    Encoders without CLS work as they are. Tiles of an anyres image choose each for itself (released code too),
    frames of a video as well. In Qwen2-VL whole merge groups are chosen, by their mean score, in the vision
    encoder, whose middle layer scales with its depth; the released code there looks at attention of another kind,
    with object layer 16 of 32.

    Attributes:
        budget: visual tokens that reach the language model, per image (an anyres tile gets its share).
        alpha: share of the budget for anchors and buffers. Published: 0.1 for 192, 128 and 64.
        object_layer: layer that anchors are taken from, from 0. None takes the published one: 8 of 24 (3/8 of the
            way).
        wrap: find neighbours by number, as released, or else on the grid.

    Raises:
        ValueError: a field is out of range; the object layer does not lie ahead of the cut.
    """

    name: ClassVar[str] = "hiprune"
    reference: ClassVar[str] = "HiPrune, arXiv 2508.00553"

    alpha: float = 0.1
    object_layer: int | None = None
    wrap: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} is not a share in 0 ... 1; the paper's is 0.1")
        if self.object_layer is not None and self.object_layer < 0:
            raise ValueError(f"object_layer={self.object_layer} is not a layer's number >= 0; the paper's is 8 of 24")

    def check(self, shape: ModelShape) -> None:
        for encoder in shape.encoders:
            last = encoder.layers - 2
            if self.middle(encoder.layers) > last:
                raise ValueError(
                    f"object_layer={self.middle(encoder.layers)} is not before the cut after layer {last} "
                    f"of this encoder; use 0 ... {last}"
                )

    def middle(self, layers: int) -> int:
        """The object layer of an encoder of that many layers."""
        return max(layers * 3 // 8 - 1, 0) if self.object_layer is None else self.object_layer

    def vision(self, view: View) -> Cut | None:
        if view.layer == self.middle(view.layers) and self.goals(view) != list(view.counts):
            view.memory["middle"] = self.received(view)
        return super().vision(view)

    def received(self, view: View) -> Tensor:
        """[R, n / patches_per_token]: the attention that each token gets in the view's layer."""
        received = scores.attention_received(view.q, view.k, view.scaling, view.key_valid)
        received = received[:, view.shape.num_prefix_tokens :]
        view.record("score", received)
        return view.per_token(received)

    def select(self, view: View, counts: Sequence[int]) -> Cut:
        middle = view.memory["middle"]
        score = middle if self.middle(view.layers) == view.layer else self.received(view)
        places, rows, size = view.token_numbers, [], view.shape.patches_per_token
        for row, (count, left) in enumerate(zip(view.counts, counts, strict=True)):
            whole, tokens = count // size, left // size
            grid = view.rows.grids[row]
            rows.append(self.choose(middle[row, :whole], score[row, :whole], places[row, :whole], grid, tokens))
        return view.as_patches(Cut.rows(rows))

    def choose(self, middle: Tensor, deep: Tensor, places: Tensor, grid: tuple[int, int], tokens: int) -> Tensor:
        """Kept tokens of one image, ascending, from their scores [n] in both layers and their places on the grid."""
        anchors = middle.argsort(descending=True, stable=True)[: round(tokens * self.alpha / _GROUP)]
        near = torch.zeros(len(places), dtype=torch.bool, device=places.device)
        near[torch.isin(places, around(places[anchors], *grid, self.wrap))] = True
        # Where anchors and buffers are more than the budget, the anchors come first.
        first = deep.new_zeros(len(places)).index_fill(0, anchors, 1) + near
        order = deep.argsort(descending=True, stable=True)
        order = order[first[order].argsort(descending=True, stable=True)]
        return order[:tokens].sort().values
