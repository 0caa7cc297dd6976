"""What a pruner may see of one encoder layer.

Shapes: R images (encoder rows: images, tiles or frames), H heads, S tokens in the layer, n visual tokens among them,
d entries per head, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from flowcut import scores
from flowcut.pruner.budget import Budget, whole_budget
from flowcut.pruner.cells import cell_numbers
from flowcut.pruner.cut import Cut, valid_mask
from flowcut.pruner.padding import Padding
from flowcut.pruner.question import Question
from flowcut.pruner.shape import EncoderShape
from flowcut.pruner.source import EncoderSource


class _Earlier(NamedTuple):
    """An earlier layer that had the same tokens, as `record` needs to know it."""

    layer: int
    counts: tuple[int, ...]


@dataclass
class LayerView:
    """The fields that the views of an encoder layer and of a decoder layer share; each view says what they mean."""

    layer: int
    layers: int
    q: Tensor
    k: Tensor
    v: Tensor
    scaling: float
    counts: tuple[int, ...]
    positions: Tensor
    source: Any
    memory: dict[str, Any] = field(default_factory=dict, kw_only=True)
    masks: dict[str, Any] = field(default_factory=dict, kw_only=True, repr=False)
    """What follows from `counts` alone: made when it is first asked for, and shared by layers with the same counts."""
    compile: bool = field(default=False, kw_only=True)
    """Whether scores are to be computed by compiled functions (`flowcut.pruner.fused`), where a method has some."""
    stack: ClassVar[str] = "encoder"
    """What the layer is of, for messages."""

    @property
    def valid(self) -> Tensor | None:
        """[R, n], True where a visual token is real; None when no row is padded."""
        if "valid" not in self.masks:
            self.masks["valid"] = valid_mask(self.counts, self.positions.shape[1], self.positions.device)
        return self.masks["valid"]

    @property
    def hidden(self) -> Tensor:
        """The layer's output, [rows, S, D], which a cut shortens.

        Raises:
            ValueError: the pruner did not say that it reads it (`reads_hidden`).
        """
        return self.source.hidden

    def next_layer(self) -> Any:
        """The same tokens as the next layer would see them: a view with its number, q, k and v.

        For pruners with `reads_hidden`; costs that layer's norm and projections, no attention. In a decoder, training
        with sharded weights (ZeRO-3) then needs an image on every rank, because all have to gather the same weights.

        Raises:
            ValueError: the layer is the last one, or an encoder attends in pieces (Qwen2-VL).
        """
        return self.source.next_layer(self)

    def numbers(self, values: Tensor) -> list[float]:
        """Values [N] that follow from the layer's attention, as Python numbers, to count by.

        Raises:
            ValueError: one of them is not finite, because the attention is not.
        """
        found = values.tolist()
        if not all(map(math.isfinite, found)):
            raise ValueError(
                f"the attention of {self.stack} layer {self.layer} is not finite in {self.q.dtype}; run the model in "
                "bfloat16 or float32, or look for NaN in its weights and inputs"
            )
        return found

    def record(self, name: str, values: Tensor, layer: int | None = None) -> None:
        """Leave an intermediate result ([R] or [R, n]) in the trace; does nothing unless attached with signals=True.

        Args:
            layer: an earlier layer that the result is of, if it had the same tokens; None for this one.
        """
        self.source.record(name, values, self if layer is None else _Earlier(layer, self.counts))

    @property
    def recording(self) -> bool:
        """Whether `record` keeps anything; where making what it is given takes time, ask before."""
        return getattr(self.source, "signals", self) is not None


@dataclass(frozen=True)
class Rows:
    """What the rows of an encoder's batch are.

    Attributes:
        groups: number of the image group of each row. Rows of one group (tiles of one image, frames of one video)
            may decide together; rows of different groups must not.
        tiles: for each row, over how many rows its image is spread: 1, or the number of anyres tiles.
        grids: rows and columns of each row's whole grid, counted in tokens of the language model (patches, in Qwen2-VL
            merge groups), which are numbered row by row.
        unpruned_tokens: for each row, the language model's tokens that its image or video frame has where nothing is
            dropped: all patches (merge groups) of all its tiles together, tokens on their padding too and none that
            end image rows, and forwarded special ones. What a budget that is a share refers to.
    """

    groups: tuple[int, ...]
    tiles: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    unpruned_tokens: tuple[int, ...]

    def budgets(self, budget: Budget) -> list[int]:
        """`budget` as a whole number for each row; a share is one of the row's unpruned tokens."""
        return [whole_budget(budget, tokens) for tokens in self.unpruned_tokens]

    def share(self, budget: Budget, shape: EncoderShape) -> list[int]:
        """How many patches each row may keep so that its image has `budget` tokens in the language model.

        A budget that is a share becomes a number by `budgets`; the special tokens in it leave room for one patch.
        An anyres image's budget is spread evenly over its tiles, the first ones taking what does not divide.
        """
        seen: dict[int, int] = {}
        shares = []
        for group, tiles, whole in zip(self.groups, self.tiles, self.budgets(budget), strict=True):
            number = seen[group] = seen.get(group, -1) + 1
            tokens = whole // tiles + (number < whole % tiles) if tiles > 1 else whole
            shares.append(max(tokens - shape.num_forwarded_special_tokens, 1) * shape.patches_per_token)
        return shares


@dataclass
class View(LayerView):
    """One encoder layer. Rows with fewer visual tokens than the longest are padded at the end.

    Attributes:
        layer, layers: this layer's number from 0, and how many layers the encoder has.
        q, k, v: [R, H, S, d], after position encoding, as the attention function received them (q not yet scaled).
        scaling: what the attention multiplies q·k with, 1/sqrt(d).
        counts: visual tokens of each row, padding not counted; plain integers.
        positions: [R, n], where each visual token lay in the original patch grid, row-major from 0 (Qwen2-VL: in the
            order of its processor, 2 x 2 merge groups one after the other).
        rows: what the rows are.
        shape: the encoder in plain numbers.
        source: the forward under way.
        memory: the pruner's own notebook for this forward.
        attended: [R, n], False for patches of a tile's padding, which no token attends to; None where all are attended.
    """

    rows: Rows
    shape: EncoderShape
    source: EncoderSource
    attended: Tensor | None = None

    @property
    def question(self) -> Question | None:
        """What is asked about the images, where the caller says so with `flowcut.asked`."""
        return self.source.question

    @property
    def padding(self) -> Padding | None:
        """Where rows have padding, special tokens in front of them; None when no row has."""
        if "padding" not in self.masks:
            lengths = [self.shape.num_prefix_tokens + count for count in self.counts]
            self.masks["padding"] = Padding.of(lengths, self.positions.device)
        return self.masks["padding"]

    def padding_after(self, counts: Sequence[int]) -> Padding | None:
        """The same once `counts[r]` patches of each row are left."""
        self.masks["after"] = Padding.of([self.shape.num_prefix_tokens + n for n in counts], self.positions.device)
        return self.masks["after"]

    @property
    def key_bias(self) -> Tensor | None:
        """[R, S], float32: what is added to an attention's logits at each key: -inf where `key_valid` is False."""
        if self.attended is None:
            return None if self.padding is None else self.padding.bias
        if "key_bias" not in self.masks:
            valid = self.key_valid
            assert valid is not None
            zeros = torch.zeros(valid.shape, device=valid.device)
            self.masks["key_bias"] = zeros.masked_fill(~valid, -torch.inf)
        return self.masks["key_bias"]

    @property
    def key_valid(self) -> Tensor | None:
        """[R, S], the tokens that are attended to, special ones in front; None when all are."""
        valid, prefix = self._attended, self.shape.num_prefix_tokens
        if valid is None or not prefix:
            return valid
        if "key_valid" not in self.masks:
            self.masks["key_valid"] = torch.cat([valid.new_ones(valid.shape[0], prefix), valid], dim=1)
        return self.masks["key_valid"]

    @property
    def _attended(self) -> Tensor | None:
        valid, attended = self.valid, self.attended
        return valid if attended is None else attended if valid is None else valid & attended

    def visual(self, tokens: Tensor) -> Tensor:
        """The visual part of a [..., S, d] tensor: [..., n, d]."""
        return tokens[..., self.shape.num_prefix_tokens :, :]

    def global_token(self, tokens: Tensor) -> Tensor:
        """[R, H, S, d] -> [R, H, d]: the CLS token, or where there is none the mean of all tokens (section 3.1)."""
        if self.shape.num_prefix_tokens:
            return tokens[:, :, 0]
        valid, wide = self._attended, torch.float32  # a sum of many would not fit into float16
        if valid is None:
            return tokens.mean(dim=2, dtype=wide)
        weight = valid[:, None, :, None].to(wide)
        return (tokens * weight).sum(dim=2) / weight.sum(dim=2)

    def global_attention(self) -> Tensor:
        """[R, n]: what the global token attends to among the visual tokens: one row of the layer's attention.

        Softmax over special and visual tokens, mean over heads.
        """
        row = scores.softmax_row(self.global_token(self.q), self.k, self.scaling, self.key_valid).mean(dim=1)
        return row[:, self.shape.num_prefix_tokens :]

    @property
    def projected(self) -> Tensor:
        """[R, n / patches_per_token, D'], float32: the visual tokens as the language model would get them now.

        For pruners with `reads_hidden`. In an encoder alone they are the layer's output. Computed at each access; what
        the projector says of any layer but `shape.feature_layer` means nothing.
        """
        states = self.visual(self.hidden)
        if self.shape.cell is not None:
            states = states[torch.arange(len(states), device=states.device)[:, None], self.patch_order]
        return self.source.project(states).float()

    # From here on: tokens of the language model, which several patches together may become.

    @property
    def token_valid(self) -> Tensor | None:
        """[R, n / patches_per_token], `valid` for the tokens of `projected`."""
        return None if self.valid is None else self.valid[:, :: self.shape.patches_per_token]

    @property
    def token_numbers(self) -> Tensor:
        """[R, n / patches_per_token]: which token of its row's whole grid (`Rows.grids`) each token is, row by row."""
        if self.shape.cell is None:
            return self.positions[:, :: self.shape.patches_per_token] // self.shape.patches_per_token
        return self._cells().gather(1, self.patch_order)[:, :: self.shape.patches_per_token]

    @property
    def patch_order(self) -> Tensor:
        """[R, n], the visual tokens in the order of the tokens they become, `patches_per_token` each; padding last."""
        rows, length = self.positions.shape
        if self.shape.cell is None:
            return torch.arange(length, device=self.positions.device).expand(rows, length)
        cells = self._cells()
        if self.valid is not None:
            cells = cells.masked_fill(~self.valid, torch.iinfo(cells.dtype).max)
        return cells.argsort(dim=1, stable=True)

    def _cells(self) -> Tensor:
        """[R, n], the number of the cell of its row's grid that each patch lies in."""
        assert self.shape.cell is not None
        columns = torch.tensor([grid[1] for grid in self.rows.grids], device=self.positions.device)[:, None]
        return cell_numbers(self.positions, columns, self.shape.cell)

    def per_token(self, values: Tensor) -> Tensor:
        """[R, n] or [R, n, D] -> [R, n / patches_per_token, ..]: means over the patches that become one token."""
        size = self.shape.patches_per_token
        if size == 1:
            return values
        if self.shape.cell is not None:
            values = values[torch.arange(len(values), device=values.device)[:, None], self.patch_order]
        return values.unflatten(1, (-1, size)).mean(dim=2)

    def best(self, score: Tensor, counts: Sequence[int]) -> Cut:
        """Keep the `counts[r]` patches of highest score [R, n]; those of one token stay together, by their mean."""
        size = self.shape.patches_per_token
        if size == 1:
            prefix, after = self.shape.num_prefix_tokens, self.padding_after(counts)
            if self.padding is not None:
                score = score.masked_fill(self.padding.beyond[:, prefix:], -torch.inf)
            return Cut.best(score, counts, beyond=None if after is None else after.beyond[:, prefix:])
        tokens = [count // size for count in counts]
        return self.as_patches(Cut.best(self.per_token(score), tokens, self.token_valid))

    def as_patches(self, cut: Cut) -> Cut:
        """A cut among tokens of the language model (as in `projected`) as one among patches."""
        size = self.shape.patches_per_token
        if size == 1:
            return cut
        keep = (cut.keep[:, :, None] * size + torch.arange(size, device=cut.keep.device)).flatten(1)
        counts = None if cut.counts is None else tuple(count * size for count in cut.counts)
        if self.shape.cell is None:
            return Cut(keep, counts)
        keep = self.patch_order.gather(1, keep)  # the tower keeps patches in raster order
        return Cut.first(keep, counts or (keep.shape[1],) * len(keep))
