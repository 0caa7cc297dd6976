"""VisionZip (Yang et al., CVPR 2025, "VisionZip: Longer is Better but Not Necessary in Vision Language Models",
arXiv 2412.04467).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from flowcut.pruner import CLS, Cut, ModelShape, OneCut, View


@dataclass(frozen=True)
class VisionZip(OneCut):
    """Keep the patches with the highest CLS attention, and merge the rest into a few contextual tokens.

    Done once, after the layer LLaVA reads its features from (the last but one). The CLS token is sent to the language
    model as the first of the dominant tokens and counts in the budget. Of the remaining patches every step-th is a
    target, the others join the target of the most similar key (head mean, cosine), and a contextual token is its target
    plus the mean of those that joined. Contextual tokens follow the dominant ones, so kept indices do not ascend.

    Among the tiles of LLaVA-NeXT, contextual tokens stand where their targets stood and CLS tokens come last; the
    released code appends both.

    Encoders without a CLS token: the mean of all tokens takes its place, and no extra token is sent on; the paper does
    not cover them.

    Attributes:
        budget: visual tokens that reach the language model, per image (an anyres tile gets its share).
        contextual: how many of them are contextual tokens. None takes the paper's: 30 of 192, 20 of 128, 10 of 64,
            5 of 32, and 5/32 of any other budget, rounded, at least 1.

    Raises:
        ValueError: `contextual` leaves no dominant token, or comes with a budget that is a share.
    """

    name: ClassVar[str] = "visionzip"
    reference: ClassVar[str] = "VisionZip, arXiv 2412.04467"
    reads_hidden: ClassVar[bool] = True

    contextual: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.contextual is not None and isinstance(self.budget, float):
            raise ValueError(
                f"contextual={self.contextual} is a fixed number of tokens, but budget={self.budget} is a share, which "
                "differs between images; leave contextual out, or give a whole number as budget"
            )
        if self.contextual is not None and not 0 <= self.contextual < self.budget:
            raise ValueError(f"contextual={self.contextual} is not in 0 ... {self.budget - 1}, below the budget")

    def check(self, shape: ModelShape) -> None:
        shape.refuse_merging("VisionZip")

    def split(self, tokens: int) -> tuple[int, int]:
        """-> dominant (CLS included), contextual."""
        published = {192: 30, 128: 20, 64: 10, 32: 5}
        contextual = self.contextual if tokens == self.budget else None
        if contextual is None:
            contextual = published.get(tokens, max(round(tokens * 5 / 32), 1)) if tokens > 1 else 0
        return tokens - contextual, contextual

    def select(self, view: View, counts: Sequence[int]) -> Cut:
        score = view.global_attention()
        view.record("score", score)
        keys = view.visual(view.k).float().mean(dim=1)
        states = view.visual(view.hidden)
        keeps, states_kept, sources = [], [], []
        for number, (count, target) in enumerate(zip(view.counts, counts, strict=True)):
            patches = torch.arange(count, device=score.device)
            if count <= target:
                keeps.append(patches)
                states_kept.append(states[number, :count])
                sources.append(patches)
                continue
            dominant, contextual = self.split(target)
            sends_cls = bool(view.shape.num_prefix_tokens) and not view.shape.num_forwarded_special_tokens
            best = score[number, :count].argsort(descending=True, stable=True)[: dominant - sends_cls].sort().values
            rest = patches[torch.isin(patches, best, invert=True)]
            keep, hidden = [best], [states[number, best]]
            if sends_cls:
                keep.insert(0, best.new_full((1,), CLS))
                hidden.insert(0, view.hidden[number, :1])
            if contextual:
                anchors, nearest, merged = _merge(rest, keys[number], states[number], contextual)
                keep.append(anchors)
                hidden.append(merged)
            keeps.append(torch.cat(keep))
            states_kept.append(torch.cat(hidden))
            if view.recording:
                into = patches.new_full((count,), -1)
                into[best] = torch.arange(len(best), device=into.device) + sends_cls
                if contextual:
                    into[anchors] = torch.arange(contextual, device=into.device) + dominant
                    into[rest[torch.isin(rest, anchors, invert=True)]] = nearest + dominant
                sources.append(into)
        return Cut.rows(keeps, states_kept, sources=sources if view.recording else None)


def _merge(rest: Tensor, keys: Tensor, states: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the patches `rest` into `number` of them.

    Returns:
        [number], the targets among `rest`; for each of the others the number of the target that it goes into; and
        [number, D], each target's state plus the mean of those that go into it.
    """
    step = max(1, len(rest) // number)
    is_target = torch.zeros(len(rest), dtype=torch.bool, device=rest.device)
    is_target[torch.arange(0, len(rest), step, device=rest.device)[:number]] = True
    targets, others = rest[is_target], rest[~is_target]
    unit = normalize(keys, dim=-1)
    nearest = (unit[others] @ unit[targets].T).argmax(dim=1)
    total = torch.zeros(len(targets), states.shape[-1], dtype=states.dtype, device=states.device)
    total = total.index_add(0, nearest, states[others])
    joined = torch.bincount(nearest, minlength=len(targets)).clamp_min(1)
    return targets, nearest, states[targets] + total / joined[:, None].to(states.dtype)
