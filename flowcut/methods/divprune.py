"""DivPrune (Alvar et al., CVPR 2025, "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models",
arXiv 2503.02175).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from flowcut.pruner import Cut, OneCut, View


@dataclass(frozen=True)
class DivPrune(OneCut):
    """Keep the tokens that lie furthest apart: the greedy solution of the max-min diversity problem.

    The distance of two tokens is one minus the cosine of their *projected* embeddings, as the language model would get
    them. First comes the token with the largest distance to its nearest neighbour, then again and again the one whose
    nearest kept token is furthest away; `budget` of them, in their own order. One cut, after the layer that features
    are read from. It needs all pairs of tokens, but no attention, no CLS token and no text.

    Positions: consecutive in the language model, as published; with M-RoPE tokens keep their own.
    Families: in an encoder alone its features stand for the projected ones. Of an anyres image every tile chooses its
    share by itself, as every frame of a video does (the paper's code joins all tiles of an image). In Qwen2-VL tokens
    are those that come out of the merger. Nothing depends on the batch. Written from the paper's description; the
    released code (for non-commercial use only) was not looked at.

    Attributes:
        budget: visual tokens that reach the language model, per image or video frame. Any number; the paper reports
            ratios of the 576.

    Raises:
        ValueError: when a model projects features of several layers together.
    """

    name: ClassVar[str] = "divprune"
    reference: ClassVar[str] = "DivPrune, arXiv 2503.02175"
    reads_hidden: ClassVar[bool] = True
    at_feature_layer: ClassVar[bool] = True

    def select(self, view: View, counts: Sequence[int]) -> Cut:
        tokens = [count // view.shape.patches_per_token for count in counts]
        picks = furthest_apart(distances(view.projected), max(tokens), view.token_valid)
        return view.as_patches(Cut.first(picks, tokens))


def distances(tokens: Tensor) -> Tensor:
    """[R, n, n]: one minus the cosine of each pair of tokens [R, n, D], the same both ways to the last bit."""
    unit = normalize(tokens.float(), dim=-1)
    distance = 1 - unit @ unit.mT
    return (distance + distance.mT) / 2


def furthest_apart(distance: Tensor, number: int, valid: Tensor | None = None) -> Tensor:
    """[R, number] tokens in the order in which they are chosen, by distance [R, n, n]; the lower of equals first."""
    rows, length = distance.shape[:2]
    every = torch.arange(rows, device=distance.device)
    real = torch.ones(rows, length, dtype=torch.bool, device=distance.device) if valid is None else valid
    same = torch.eye(length, dtype=torch.bool, device=distance.device)
    nearest = distance.masked_fill(same | ~real[:, None], torch.inf).amin(dim=2)
    picks: list[Tensor] = []
    free = real.clone()
    for _ in range(number):
        pick = nearest.masked_fill(~free, -torch.inf).argmax(dim=1)
        free[every, pick] = False
        # From the second on only distances to what was chosen count.
        nearest = torch.minimum(nearest, distance[every, pick]) if picks else distance[every, pick]
        picks.append(pick)
    return torch.stack(picks, dim=1)
