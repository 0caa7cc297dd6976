"""Recoverable Compression (Chen et al., AAAI 2025, "Recoverable Compression: A Multimodal Vision Token Recovery
Mechanism Guided by Text Information", arXiv 2409.01179).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from flowcut.methods.prumerge import attention_of_next_layer
from flowcut.pruner import CLS, Cut, ModelShape, OneCut, View, needed

NEIGHBOURS, CLUSTER_NEIGHBOURS = 20, 10
"""Neighbours by which outliers are told: of visual and text scores, and of the scores of the rest."""
MEMBERS = 32
"""Patches that are added to a cluster's centre."""
TEXT_WEIGHT = 50
"""What the text score is multiplied with beside the cosine of keys, when a centre looks for its members."""
OUTLIER = 1.5
"""A local outlier factor above it makes an outlier."""


class Parts(NamedTuple):
    """How many tokens are picked by sight and by text, and how many cluster centres there are."""

    sight: int
    text: int = 0
    centres: int = 0

    @property
    def tokens(self) -> int:
        """In all: where there is a cluster, one more token sums up the rest."""
        return sum(self) + (self.centres > 0)


@dataclass(frozen=True)
class RCom(OneCut):
    """Keep the outliers of CLS attention and of similarity to the question, and merge the rest into a few clusters.

    1. Visual score: the CLS row of the attention of the layer after the features, heads not split (as LLaVA-PruMerge).
    As many of the highest stay as the scores have outliers. 2. Text score of the others: cosine of patch and question
    in CLIP's shared space, over the root of its width; again as many as there are outliers. 3. Of the rest, outliers of
    the visual score become centres; to each the 32 patches are added, weighted by their visual score, that are likest
    by the cosine of keys plus 50 times the text score; centres are among the candidates. 4. One more token sums up all
    that are no centres, weighted likewise. Outliers are told by the local outlier factor (20 neighbours, for centres
    10), which is computed here as scikit-learn does. Picked tokens keep their order, clusters follow by falling score.

    The paper lets the scores decide how many tokens there are and publishes no setting for a given number. With
    `adaptive` this is so, and the budget is an upper limit only. Otherwise exactly `budget` tokens come out, in which
    the three parts have the shares that the outliers give them.

    Against the released code: text scores are taken from the features that LLaVA reads, not from a second run of CLIP's
    vision tower to its end; the text (the first line of the question, as released) is read to its end token, not to the
    end of its padding; the number of centres is the share of outliers times the number of patches (there: times the
    width), and a centre's key is its own (there: that of another patch, by a slip of an index). Every image decides by
    itself; there the batch decides together.

    Positions: consecutive in the language model, as published.
    Families: without a CLS token the mean of all tokens looks in its place, which the paper does not cover. Every
    anyres tile and video frame works by itself; among tiles centres stand where their patch stood and the last token of
    each tile comes at the end. `condition` needs the text tower's CLIP as vision encoder.

    Attributes:
        budget: visual tokens that reach the language model, per image or video frame; see `adaptive`.
        condition: whether the question is asked (steps 2 and 3).
        adaptive: whether the scores decide how many tokens there are, up to the budget.
        text_tower: folder or Hub name of the CLIP whose text encoder reads the question; None looks beside the vision
            tower.

    Raises:
        ValueError: the question is missing, or read by another CLIP than the vision tower; when attached to a model
            that merges 2 x 2 patches itself (Qwen2-VL), or that has taken out its encoder's last layer.
    """

    name: ClassVar[str] = "rcom"
    reference: ClassVar[str] = "Recoverable Compression, arXiv 2409.01179"
    reads_hidden: ClassVar[bool] = True

    condition: bool = True
    adaptive: bool = False
    text_tower: str | None = None

    @property
    def reads_question(self) -> bool:
        return self.condition

    def check(self, shape: ModelShape) -> None:
        shape.refuse_merging("RCom")
        shape.need_last_layer("RCom")

    def select(self, view: View, counts: Sequence[int]) -> Cut:
        visual, keys = attention_of_next_layer(view)
        keys, states = view.visual(keys), view.visual(view.hidden)
        text = torch.zeros_like(visual)
        if self.condition:
            question = needed(view.question, "RCom").first_lines()
            cosines = question.cosines(states, view.rows.groups, layer_norm=False)
            text = torch.stack([pieces[0] for pieces in cosines]) * question.tower.width**-0.5
            view.record("text", text)
        view.record("visual", visual)
        kept, merged = [], []
        for number, (count, target) in enumerate(zip(view.counts, counts, strict=True)):
            tokens = Tokens(*(tensor[number, :count] for tensor in (visual, text, keys, states)))
            if count > target:
                parts = self.split(tokens.visual, tokens.text, target)
                keep, hidden = compress(tokens, *choose(tokens.visual, tokens.text, parts))
            else:
                keep, hidden = torch.arange(count, device=visual.device), tokens.states
            kept.append(keep)
            merged.append(hidden.to(states.dtype))
        return Cut.rows(kept, merged)

    def split(self, visual: Tensor, text: Tensor, target: int) -> Parts:
        """How many tokens each part has: by outliers, and so that there are `target`, or with `adaptive` at most."""
        count = len(visual)
        by_sight = int(count * outlier_share(visual, NEIGHBOURS))
        found = Parts(by_sight)
        if self.condition:
            dulled = text.scatter(0, choose(visual, text, found).sight, float(text.min()))
            found = Parts(by_sight, int((count - by_sight) * outlier_share(dulled, NEIGHBOURS)))
        chosen = choose(visual, text, found)
        left = visual[_others(count, torch.cat([chosen.sight, chosen.text]))]
        centres = min(int(count * outlier_share(left, CLUSTER_NEIGHBOURS)), len(left) - 1)
        found = found._replace(centres=centres) if centres > 0 else found
        if not sum(found):
            found = Parts(1)
        return found if self.adaptive and found.tokens <= target else _scaled(found, target)


class Tokens(NamedTuple):
    """An image's patches: visual and text scores [n], keys and hidden states [n, D]."""

    visual: Tensor
    text: Tensor
    keys: Tensor
    states: Tensor


class Chosen(NamedTuple):
    """Numbers of the patches picked by sight, by text, and as centres, each by falling score."""

    sight: Tensor
    text: Tensor
    centres: Tensor


def choose(visual: Tensor, text: Tensor, parts: Parts) -> Chosen:
    """The best of scores [n], each among those not chosen before; the lower of equals first."""
    sight = visual.argsort(descending=True, stable=True)[: parts.sight]
    recovered = text.scatter(0, sight, -torch.inf).argsort(descending=True, stable=True)[: parts.text]
    picked = torch.cat([sight, recovered])
    centres = visual.scatter(0, picked, -torch.inf).argsort(descending=True, stable=True)[: parts.centres]
    return Chosen(sight, recovered, centres)


def compress(tokens: Tokens, sight: Tensor, text: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers [T] of the tokens that come out (CLS for the sum of the rest) and their hidden states [T, D]."""
    keep = torch.cat([sight, text]).sort().values
    if not len(centres):
        return keep, tokens.states[keep]
    rest = _others(len(tokens.visual), keep)
    keys, states = normalize(tokens.keys[rest].float(), dim=-1), tokens.states[rest].float()
    weight = tokens.visual[rest]
    where = torch.searchsorted(rest, centres)
    likeness = keys[where] @ keys.T + TEXT_WEIGHT * tokens.text[rest]
    likeness = likeness.scatter(1, where[:, None], -torch.inf)
    members = likeness.topk(min(MEMBERS, len(rest) - 1), dim=1).indices
    clusters = states[where] + (states[members] * weight[members, None]).sum(dim=1)
    summary = (states * weight.scatter(0, where, 0)[:, None]).sum(dim=0, keepdim=True)
    hidden = torch.cat([tokens.states[keep].float(), clusters, summary])
    return torch.cat([keep, centres, keep.new_full((1,), CLS)]), hidden


def _others(count: int, numbers: Tensor) -> Tensor:
    """Those of 0 ... count - 1 that are not among the numbers, ascending."""
    return torch.ones(count, dtype=torch.bool, device=numbers.device).scatter(0, numbers, False).nonzero()[:, 0]


def _scaled(parts: Parts, target: int) -> Parts:
    """Parts in (nearly) the same proportion that come to `target` tokens."""
    for whole, total in ((parts, target - 1), (parts._replace(centres=0), target), (Parts(1), target)):
        if not sum(whole):
            continue
        exact = [total * part / sum(whole) for part in whole]
        shares = [int(share) for share in exact]
        by_loss = sorted(range(3), key=lambda part: shares[part] - exact[part])
        for part in by_loss[: total - sum(shares)]:
            shares[part] += 1
        if Parts(*shares).tokens == target:
            return Parts(*shares)
    raise AssertionError(f"{target} tokens cannot be shared out")


def outlier_share(values: Tensor, neighbours: int) -> float:
    """The share of values [n] whose local outlier factor (Breunig et al., SIGMOD 2000) is above 1.5.

    A value's density is one over its mean distance to its nearest neighbours, where a neighbour's own distance to its
    farthest neighbour counts at least; the factor is the neighbours' mean density over its own.
    """
    count = len(values)
    neighbours = min(neighbours, count - 1)
    if neighbours < 1:
        return 0.0
    line = values.double().sort().values  # on a line, neighbours lie side by side
    around = pad(line, (neighbours, neighbours), value=torch.inf).unfold(0, 2 * neighbours + 1, 1)
    distance = (around - line[:, None]).abs()
    distance[:, neighbours] = torch.inf
    near, place = distance.sort(dim=1, stable=True)
    near, index = (
        near[:, :neighbours],
        torch.arange(count, device=line.device)[:, None] + place[:, :neighbours] - neighbours,
    )
    reach = torch.maximum(near, near[index, -1])
    density = 1 / (reach.mean(dim=1) + 1e-10)
    factor = density[index].mean(dim=1) / density
    return int((factor > OUTLIER).sum()) / count
