"""The contract between a pruning method and the model it is attached to.

A method is a frozen dataclass derived from `Pruner`. After every layer of the vision encoder it is shown a `View`,
after every layer of the language model that sees an image a `LanguageView`; it answers with a `Cut`, or with None to
leave the layer alone. It never touches the model; `flowcut.attach` does.

What every pruner has to honour (tests/flowcut/test_laws.py holds all of them to it):

1. a budget not below the number of tokens changes nothing, to the last bit;
2. exactly `budget` visual tokens (a share: that of the image's own number, see `whole_budget`) reach the language
   model, or its last layers where the method cuts there, or an average layer of it where the method says so;
3. kept indices ascend unless the method merges, and special tokens ahead of the patches (CLS) and text always stay;
4. a sample's result does not depend on its batch mates (unless a field asks for it, as `batch_coupling="max"`);
5. whatever has to live from one layer to the next lies in `view.memory`, which dies with the forward.

Shapes: B samples, R images (encoder rows: images, tiles or frames), H heads, S tokens in the layer, n visual tokens
among them, d entries per head, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from flowcut.anatomy import Anatomy
    from flowcut.text import Question

CLS = -1
"""In place of a patch position: a visual token that is no patch, such as the CLS token where a method sends it on."""
Budget: TypeAlias = int | float
"""Visual tokens of an image, >= 1; or, as a float between 0 and 1, the share of its own number of them."""


def whole_budget(budget: Budget, tokens: int) -> int:
    """A budget as a whole number: a share of `tokens` is rounded to the nearest (halves to even), at least 1."""
    return max(round(budget * tokens), 1) if isinstance(budget, float) else budget


class LayerView:
    """What the views of an encoder layer and of a decoder layer have in common."""

    layer: int
    states: Tensor | None
    positions: Tensor
    counts: tuple[int, ...]
    own: tuple[int, ...]
    recorder: Callable[[str, Tensor, Any], None] | None

    def budgets(self, budget: Budget) -> list[int]:
        """`budget` as a whole number for each row; a share is one of the row's `own` tokens."""
        if isinstance(budget, int):
            return [budget] * len(self.counts)
        return [whole_budget(budget, tokens) for tokens in self.own]

    @property
    def valid(self) -> Tensor | None:
        """[R, n], True where a visual token is real; None when no row is padded."""
        return valid_mask(self.counts, self.positions.shape[1], self.positions.device)

    @property
    def hidden(self) -> Tensor:
        """The layer's output, [rows, S, D].

        Raises:
            ValueError: the pruner did not say that it reads it.
        """
        if self.states is None:
            raise ValueError(
                "set reads_hidden = True on the pruner's class: it is asked before this layer has an output"
            )
        return self.states

    def record(self, name: str, values: Tensor) -> None:
        """Leave an intermediate result ([R] or [R, n]) in the trace; does nothing unless attached with signals=True."""
        if self.recorder is not None:
            self.recorder(name, values, self)


@dataclass
class View(LayerView):
    """What a pruner may see of one encoder layer. Rows with fewer visual tokens than the longest are padded at the end.

    Attributes:
        layer, layers: this layer's number from 0, and how many layers the encoder has.
        q, k, v: [R, H, S, d], after position encoding, as the attention function received them (q not yet scaled).
        scaling: what the attention multiplies q·k with, 1/sqrt(d).
        states: [R, S, D], the layer's output, which a cut shortens; for pruners with `reads_hidden`, else None.
        prefix: how many special tokens stand ahead of the visual ones (1 for CLIP's CLS, 0 for SigLIP).
        positions: [R, n], where each visual token lay in the original patch grid, row-major from 0 (Qwen2-VL: in the
            order of its processor, 2 x 2 merge groups one after the other).
        counts: visual tokens of each row, padding not counted; plain integers.
        groups: number of the image group of each row. Rows of one group (tiles of one image, frames of one video)
            may decide together; rows of different groups must not.
        tiles: for each row, among how many rows its image is spread: 1, or the number of anyres tiles.
        unit: how many patches, one after the other, become one token of the language model (4 in Qwen2-VL).
        two_stage: whether this family's pruners are expected to cut again inside the language model.
        last_layer: layer after which a gradual method is to be done, counted from the encoder's end.
        reserved: special tokens that travel on to the language model and so count in the budget (CLS with LLaVA's
            `cls_patch`).
        memory: the pruner's own notebook for this forward.
        grids: rows and columns of each row's whole grid, counted in tokens of the language model (patches, in Qwen2-VL
            merge groups), which are numbered row by row.
        read_after: the layer whose output goes to the language model; in an encoder alone the last but one.
        project: what the model makes of visual hidden states [R, n, D]: [R, n / unit, D'], the language model's tokens;
            None in an encoder alone. See `projected`.
        question: what is asked about the images, where the caller says so with `flowcut.text.asked`; else None.
        sizes: [R, n], how many patches each visual token stands for; None while no cut has merged any.
        ahead: see `following`.
        own: for each row, the language model's tokens that its image or video frame has where nothing is dropped: all
            patches (merge groups) of all its tiles together, tokens on their padding too and none that end image rows,
            and `reserved` ones. What a budget that is a share refers to.
    """

    layer: int
    layers: int
    q: Tensor
    k: Tensor
    v: Tensor
    scaling: float
    states: Tensor | None
    prefix: int
    positions: Tensor
    counts: tuple[int, ...]
    groups: tuple[int, ...]
    tiles: tuple[int, ...] = ()
    unit: int = 1
    two_stage: bool = False
    last_layer: int = -3
    reserved: int = 0
    memory: dict[str, Any] = field(default_factory=dict)
    recorder: Callable[[str, Tensor, Any], None] | None = None
    grids: tuple[tuple[int, int], ...] = ()
    read_after: int | None = None
    project: Callable[[Tensor], Tensor] | None = None
    question: Question | None = None
    sizes: Tensor | None = None
    ahead: Callable[[View], View] | None = None
    own: tuple[int, ...] = ()

    def following(self) -> View:
        """The same tokens as the next layer would see them: its number, q, k and v.

        For pruners with `reads_hidden`; costs that layer's norm and projections, no attention.

        Raises:
            ValueError: the layer is the encoder's last, or the encoder attends in pieces (Qwen2-VL).
        """
        if self.ahead is None:
            raise ValueError("a following layer is shown to pruners with reads_hidden, and not in Qwen2-VL's encoders")
        return self.ahead(self)

    @property
    def key_valid(self) -> Tensor | None:
        """[R, S], the same with the special tokens in front; None when no row is padded."""
        valid = self.valid
        if valid is None:
            return None
        return torch.cat([valid.new_ones(valid.shape[0], self.prefix), valid], dim=1)

    def visual(self, tokens: Tensor) -> Tensor:
        """The visual part of a [..., S, d] tensor: [..., n, d]."""
        return tokens[..., self.prefix :, :]

    @property
    def projected(self) -> Tensor:
        """[R, n / unit, D'], float32: the visual tokens as the language model would get them after this layer.

        For pruners with `reads_hidden`. In an encoder alone they are the layer's output. Computed at each access; what
        the projector says of any layer but `read_after` means nothing.
        """
        states = self.visual(self.hidden)
        return (states if self.project is None else self.project(states)).float()

    @property
    def token_valid(self) -> Tensor | None:
        """[R, n / unit], `valid` for the tokens of `projected`."""
        return None if self.valid is None else self.valid[:, :: self.unit]

    def global_token(self, tokens: Tensor) -> Tensor:
        """[R, H, S, d] -> [R, H, d]: the CLS token, or where there is none the mean of all tokens (section 3.1)."""
        if self.prefix:
            return tokens[:, :, 0]
        valid = self.valid
        tokens = tokens.float()  # a sum of many would not fit into float16
        if valid is None:
            return tokens.mean(dim=2)
        weight = valid[:, None, :, None].to(tokens.dtype)
        return (tokens * weight).sum(dim=2) / weight.sum(dim=2)

    def share(self, budget: Budget) -> list[int]:
        """How many patches each row may keep so that its image has `budget` tokens in the language model.

        A budget that is a share becomes a number by `budgets`; the special tokens in it leave room for one patch.
        An anyres image's budget is spread evenly over its tiles, the first ones taking what does not divide.
        """
        seen: dict[int, int] = {}
        shares = []
        spread = self.tiles or (1,) * len(self.groups)
        for group, tiles, whole in zip(self.groups, spread, self.budgets(budget), strict=True):
            number = seen[group] = seen.get(group, -1) + 1
            tokens = whole // tiles + (number < whole % tiles) if tiles > 1 else whole
            shares.append(max(tokens - self.reserved, 1) * self.unit)
        return shares

    def once(self, budget: Budget, layer: int | None = None) -> list[int] | None:
        """How many patches each row keeps, for methods with a single cut: after `layer`, else after the last but one.

        None in every other layer, and where the budget leaves nothing to drop.
        """
        counts = [min(pair) for pair in zip(self.counts, self.share(budget), strict=True)]
        layer = self.layers - 2 if layer is None else layer
        return counts if self.layer == layer and counts != list(self.counts) else None

    def best(self, score: Tensor, counts: Sequence[int]) -> Cut:
        """Keep the `counts[r]` patches of highest score [R, n]; merge groups stay whole, by their mean score."""
        if self.unit == 1:
            return Cut.best(score, counts, self.valid)
        tokens = [count // self.unit for count in counts]
        return self.whole_units(Cut.best(self.per_token(score), tokens, self.token_valid))

    def per_token(self, values: Tensor) -> Tensor:
        """[R, n] or [R, n, D] -> [R, n / unit, ..]: means over what becomes one token of the language model."""
        return values if self.unit == 1 else values.unflatten(1, (-1, self.unit)).mean(dim=2)

    def whole_units(self, cut: Cut) -> Cut:
        """A cut among tokens of the language model (as in `projected`) as one among patches."""
        if self.unit == 1:
            return cut
        inside = torch.arange(self.unit, device=cut.keep.device)
        keep = (cut.keep[:, :, None] * self.unit + inside).flatten(1)
        return Cut(keep, None if cut.counts is None else tuple(count * self.unit for count in cut.counts))


@dataclass
class LanguageView(LayerView):
    """What a pruner may see of one decoder layer in a forward that brings images. One row per image.

    Attributes:
        layer, layers: this layer's number from 0, and how many layers the decoder has.
        q: [B, H, S, d] after position encoding, not yet scaled.
        k, v: [B, H', P + S, d], with P entries from the KV cache in front; H' divides H (grouped queries).
        scaling: what the attention multiplies q·k with, 1/sqrt(d).
        states: [B, S, D], the layer's output, which a cut shortens; for pruners with `reads_hidden`, else None.
        real: [B, P + S], False on padding; None when nothing is padded.
        columns: [R, n], where in its sample's S tokens each visual token of an image stands; padded at the end.
        positions: [R, n], the visual tokens' numbers among those of their image that entered the language model.
        counts: visual tokens of each image now.
        initial: visual tokens of each image that entered the language model.
        samples: the batch row that each image belongs to.
        last: [B], column of each sample's last real token: the last of the prompt, in training the last label.
        mrope: whether positions have axes for time, height and width (Qwen2-VL).
        two_stage: whether this family's pruners are expected to cut here.
        memory: the pruner's own notebook for this forward.
        rotary: (cos, sin), each [B or 1, S, d], with which this layer turned q and k; halves of a head turn together.
        embeddings: [B, S, D], what the language model was given; in its first layer only, else None.
        norm: the model's norm behind the last layer, for methods that compare states as its head would see them.
        ahead: see `following`.
        own: tokens of each image where nothing is dropped, counted as the encoder's view counts them (`View.own`);
            `initial` where no encoder of this forward told. For methods that cut in the encoder too; others take
            shares of `initial`.
    """

    layer: int
    layers: int
    q: Tensor
    k: Tensor
    v: Tensor
    scaling: float
    states: Tensor | None
    real: Tensor | None
    columns: Tensor
    positions: Tensor
    counts: tuple[int, ...]
    initial: tuple[int, ...]
    samples: tuple[int, ...]
    last: Tensor
    mrope: bool = False
    two_stage: bool = False
    memory: dict[str, Any] = field(default_factory=dict)
    recorder: Callable[[str, Tensor, Any], None] | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    embeddings: Tensor | None = None
    norm: Callable[[Tensor], Tensor] | None = None
    ahead: Callable[[LanguageView], LanguageView] | None = None
    own: tuple[int, ...] = ()

    def following(self) -> LanguageView:
        """The same tokens as the next layer would see them, for methods that rank in front of it: its number, q, k, v.

        For pruners with `reads_hidden`; costs that layer's norm and projections, no attention. Training with sharded
        weights (ZeRO-3) then needs an image on every rank, because all have to gather the same weights.
        """
        assert self.ahead is not None, "no decoder is under way"
        return self.ahead(self)

    @property
    def past(self) -> int:
        """Entries of the KV cache that stand in front of this forward's own keys."""
        return self.k.shape[2] - self.q.shape[2]

    def last_token(self, tokens: Tensor) -> Tensor:
        """[B, H', (P +) S, d] -> [R, H, d] at the last real token of each image's sample."""
        sample = torch.tensor(self.samples, device=tokens.device)
        offset = tokens.shape[2] - self.q.shape[2]
        return self._all_heads(tokens[sample, :, (self.last + offset)[sample]], 1)

    def visual(self, tokens: Tensor) -> Tensor:
        """[B, H', (P +) S, d] -> [R, H, n, d] at the visual tokens."""
        sample = torch.tensor(self.samples, device=tokens.device)[:, None]
        offset = tokens.shape[2] - self.q.shape[2]
        return self._all_heads(tokens[sample, :, self.columns + offset].transpose(1, 2), 1)

    def whole(self, tokens: Tensor) -> Tensor:
        """[B, H', P + S, d] -> [R, H, P + S, d]: all keys or values of each image's sample."""
        return self._all_heads(tokens[torch.tensor(self.samples, device=tokens.device)], 1)

    def _all_heads(self, tokens: Tensor, dim: int) -> Tensor:
        return tokens.repeat_interleave(self.q.shape[1] // tokens.shape[dim], dim=dim)


@dataclass
class Cut:
    """A pruner's answer: which visual tokens of each row stay.

    Attributes:
        keep: [R, K] indices into the layer's own visual tokens. Ascending, unless `hidden` is given: then any order,
            and in an encoder `CLS` for the CLS token, or for a summary of many, as a visual token of its own.
        counts: how many entries of each row are meant; None when all K are. What lies beyond is padding.
        hidden: [R, K, D] to stand in for the kept tokens' hidden states, for methods that merge; None to take them as
            they are. In a decoder what differs from the state it stands for passes no gradient back.
        renumber: in a decoder, count the positions of what is left anew; otherwise tokens keep theirs.
        into: [R, n], in an encoder, for methods that merge each token into one other: the entry of `keep` that each of
            the layer's visual tokens becomes part of, -1 to drop it. Entries of `keep` name themselves, in any order.
            What is left is the mean of what it is made of, weighted by sizes; gradients flow back to all of it.
        inside: merge between the layer's attention and its MLP, by a pruner with `merges_inside`; otherwise behind it.
        proportional: from the next layer on, a token counts in attention as many times as it has patches: the
            logarithm of its size is added at its key.
    """

    keep: Tensor
    counts: tuple[int, ...] | None = None
    hidden: Tensor | None = None
    renumber: bool = False
    into: Tensor | None = None
    inside: bool = False
    proportional: bool = False

    @classmethod
    def best(cls, score: Tensor, counts: Sequence[int], valid: Tensor | None = None, renumber: bool = False) -> Cut:
        """Keep the `counts[r]` highest of each row of score [R, n]; among equals the lower position wins."""
        if valid is not None:
            score = score.masked_fill(~valid, -torch.inf)
        longest = max(counts)
        keep = score.argsort(dim=1, descending=True, stable=True)[:, :longest]
        full = valid_mask(counts, longest, score.device)
        if full is None:
            return cls(keep.sort(dim=1).values, renumber=renumber)
        keep = keep.masked_fill(~full, score.shape[1] - 1 + longest).sort(dim=1).values
        return cls(keep.masked_fill(~full, 0), tuple(counts), renumber=renumber)

    @classmethod
    def first(cls, picks: Tensor, counts: Sequence[int]) -> Cut:
        """Keep the first `counts[r]` of picks [R, K], indices in the order they were chosen, no index twice."""
        return cls.rows([row[:count].sort().values for row, count in zip(picks, counts, strict=True)])

    @classmethod
    def rows(cls, rows: Sequence[Tensor]) -> Cut:
        """Keep these indices [K] of each row."""
        counts = tuple(len(row) for row in rows)
        return cls(pad_sequence(list(rows), batch_first=True), counts if len(set(counts)) > 1 else None)


@dataclass(frozen=True)
class Pruner:
    """A token pruning method with its settings. Derive a frozen dataclass and answer `vision`, `language` or both.

    A class that reads `view.hidden` says so with `reads_hidden = True`. The others are asked as soon as q, k and v are
    there, so that none of them has to be kept through the rest of the layer; the cut is made behind it all the same.

    Attributes:
        budget: visual tokens that reach the language model (its last layers, if the method cuts there), per image or
            video frame. A float between 0 and 1 is a share of each image's (frame's) own tokens, so that images of
            different size keep different numbers. Methods that cut in the encoder take it of `View.own`, where an
            image in tiles has the patches of all of them; methods that cut in the language model alone take it of
            what enters there, unpadded and with the tokens that end image rows.

    Raises:
        ValueError: the budget is neither a whole number of at least 1 nor a share between 0 and 1.
    """

    budget: Budget
    reads_hidden: ClassVar[bool] = False

    @property
    def merges_inside(self) -> bool:
        """Whether it merges between attention and MLP (`Cut.inside`); such a pruner reads no hidden states."""
        return False

    @property
    def reads_question(self) -> bool:
        """Whether it needs `view.question`: the caller then wraps each call of the model in `flowcut.text.asked`."""
        return False

    @property
    def keeps_groups(self) -> bool:
        """Whether patches that the model merges into one token stay or go together; see `View.best`."""
        return True

    @property
    def own_places(self) -> bool:
        """Whether what is left of an image keeps its own M-RoPE positions; else it takes the image's first ones."""
        return True

    def __post_init__(self) -> None:
        whole = isinstance(self.budget, int) and not isinstance(self.budget, bool) and self.budget >= 1
        if not whole and not (isinstance(self.budget, float) and 0 < self.budget < 1):
            raise ValueError(
                f"budget={self.budget!r} is not a whole number of tokens >= 1, nor a share of an image's own tokens "
                "between 0 and 1; try budget=64 or budget=0.333"
            )

    def tokens_of(self, tokens: int) -> int:
        """The budget of an image (or video frame) of so many tokens, as a whole number; see `whole_budget`."""
        return whole_budget(self.budget, tokens)

    def check(self, anatomy: Anatomy) -> None:
        """Called before attaching: raise a ValueError of one line if the method cannot work on this model."""

    def cuts_language(self, two_stage: bool) -> bool:
        """Whether `language` is to be asked at all; by default if it is overridden."""
        return type(self).language is not Pruner.language

    def vision(self, view: View) -> Cut | None:
        """Asked for each encoder layer; None leaves the layer's output as it is."""
        return None

    def language(self, view: LanguageView) -> Cut | None:
        """Asked for each decoder layer of a forward that brings images; None leaves the layer's output as it is."""
        return None


def valid_mask(counts: Sequence[int], length: int, device: torch.device) -> Tensor | None:
    """[R, length], True for the first counts[r] of each row; None when every row is full."""
    if min(counts) == length:
        return None
    return torch.arange(length, device=device) < torch.tensor(counts, device=device)[:, None]
