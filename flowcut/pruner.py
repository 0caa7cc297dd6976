"""The contract between a pruning method and the model it is attached to.

A method is a frozen dataclass derived from `Pruner`. After every layer of the vision encoder it is shown a `View` and
answers with a `Cut`, or with None to leave the layer alone. It never touches the model; `flowcut.attach` does.

What every pruner has to honour (tests/flowcut/test_laws.py holds all of them to it):

1. a budget not below the number of tokens changes nothing, to the last bit;
2. exactly `budget` visual tokens reach the language model;
3. kept indices ascend, and special tokens ahead of the patches (CLS) always stay;
4. a sample's result does not depend on its batch mates (unless a field asks for it, as `batch_coupling="max"`);
5. whatever has to live from one layer to the next lies in `view.memory`, which dies with the forward.

Shapes: B samples (encoder rows: images, tiles or frames), H heads, S tokens in the layer, n visual tokens among them,
d entries per head, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class View:
    """What a pruner may see of one layer. Rows with fewer visual tokens than the longest are padded at their end.

    Attributes:
        layer, layers: this layer's number from 0, and how many layers the encoder has.
        q, k, v: [B, H, S, d], after position encoding, as the attention function received them (q not yet scaled).
        scaling: what the attention multiplies q·k with, 1/sqrt(d).
        hidden: [B, S, D], the layer's output, which a cut shortens.
        prefix: how many special tokens stand ahead of the visual ones (1 for CLIP's CLS, 0 for SigLIP).
        positions: [B, n], where each visual token lay in the original patch grid, row-major from 0.
        counts: visual tokens of each row, padding not counted; plain integers.
        groups: number of the image group of each row. Rows of one group (tiles of one image, frames of one video)
            may decide together; rows of different groups must not.
        reserved: special tokens that travel on to the language model and so count in the budget (CLS with LLaVA's
            `cls_patch`).
        memory: the pruner's own notebook for this forward.
    """

    layer: int
    layers: int
    q: Tensor
    k: Tensor
    v: Tensor
    scaling: float
    hidden: Tensor
    prefix: int
    positions: Tensor
    counts: tuple[int, ...]
    groups: tuple[int, ...]
    reserved: int = 0
    memory: dict[str, Any] = field(default_factory=dict)
    recorder: Callable[[str, Tensor, View], None] | None = None

    @property
    def valid(self) -> Tensor | None:
        """[B, n], True where a visual token is real; None when no row is padded."""
        return valid_mask(self.counts, self.positions.shape[1], self.positions.device)

    @property
    def key_valid(self) -> Tensor | None:
        """[B, S], the same with the special tokens in front; None when no row is padded."""
        valid = self.valid
        if valid is None:
            return None
        return torch.cat([valid.new_ones(valid.shape[0], self.prefix), valid], dim=1)

    def visual(self, tokens: Tensor) -> Tensor:
        """The visual part of a [..., S, d] tensor: [..., n, d]."""
        return tokens[..., self.prefix :, :]

    def global_token(self, tokens: Tensor) -> Tensor:
        """[B, H, S, d] -> [B, H, d]: the CLS token, or where there is none the mean of all tokens (section 3.1)."""
        if self.prefix:
            return tokens[:, :, 0]
        valid = self.valid
        if valid is None:
            return tokens.mean(dim=2)
        weight = valid[:, None, :, None].to(tokens.dtype)
        return (tokens * weight).sum(dim=2) / weight.sum(dim=2)

    def record(self, name: str, values: Tensor) -> None:
        """Leave an intermediate result ([B] or [B, n]) in the trace; does nothing unless attached with signals=True."""
        if self.recorder is not None:
            self.recorder(name, values, self)


@dataclass
class Cut:
    """A pruner's answer: which visual tokens of each row stay.

    Attributes:
        keep: [B, K] indices into the layer's own visual tokens, ascending in each row.
        counts: how many entries of each row are meant; None when all K are. What lies beyond is padding.
        hidden: [B, K, D] to stand in for the kept tokens' hidden states, for methods that merge; None to take them as
            they are.
    """

    keep: Tensor
    counts: tuple[int, ...] | None = None
    hidden: Tensor | None = None

    @classmethod
    def best(cls, score: Tensor, counts: Sequence[int], valid: Tensor | None = None) -> Cut:
        """Keep the `counts[b]` highest of each row of score [B, n]; among equals the lower position wins."""
        if valid is not None:
            score = score.masked_fill(~valid, -torch.inf)
        longest = max(counts)
        keep = score.argsort(dim=1, descending=True, stable=True)[:, :longest]
        full = valid_mask(counts, longest, score.device)
        if full is None:
            return cls(keep.sort(dim=1).values)
        keep = keep.masked_fill(~full, score.shape[1] - 1 + longest).sort(dim=1).values
        return cls(keep.masked_fill(~full, 0), tuple(counts))


@dataclass
class Trace:
    """What happened in the last forward of the encoder. Counts leave out special tokens such as CLS.

    Attributes:
        kept: {layer: [original patch positions, one LongTensor per sample]}, for each layer after which the pruner
            selected.
        entering: [layer][sample], visual tokens that went into each layer.
        leaving: [layer][sample], visual tokens that came out of it.
        signals: {layer: {name: values}}, with attach(..., signals=True). Per-token signals are lists with one tensor
            per sample, per-sample ones a [B] tensor.
    """

    kept: dict[int, list[Tensor]] = field(default_factory=dict)
    entering: list[tuple[int, ...]] = field(default_factory=list)
    leaving: list[tuple[int, ...]] = field(default_factory=list)
    signals: dict[int, dict[str, Any]] = field(default_factory=dict)

    def path(self, sample: int = 0) -> list[int]:
        """How many visual tokens of one sample went into each layer; what `flowcut.cost.cost_of` takes."""
        return [counts[sample] for counts in self.entering]

    @property
    def final(self) -> list[Tensor]:
        """Original positions of the visual tokens that left the encoder, one LongTensor per sample."""
        if self.kept:
            return self.kept[max(self.kept)]
        return [torch.arange(count) for count in (self.entering[0] if self.entering else ())]


@dataclass(frozen=True)
class Pruner:
    """A token pruning method with its settings. Derive a frozen dataclass and answer `vision`.

    Attributes:
        budget: visual tokens that reach the language model, per image.

    Raises:
        ValueError: the budget is not a whole number of at least 1.
    """

    budget: int

    def __post_init__(self) -> None:
        if isinstance(self.budget, bool) or not isinstance(self.budget, int) or self.budget < 1:
            raise ValueError(f"budget={self.budget!r} is not a whole number of tokens >= 1; try budget=64")

    def vision(self, view: View) -> Cut | None:
        """Asked after each encoder layer; None leaves the layer's output as it is."""
        return None


def valid_mask(counts: Sequence[int], length: int, device: torch.device) -> Tensor | None:
    """[B, length], True for the first counts[b] of each row; None when every row is full."""
    if min(counts) == length:
        return None
    return torch.arange(length, device=device) < torch.tensor(counts, device=device)[:, None]
