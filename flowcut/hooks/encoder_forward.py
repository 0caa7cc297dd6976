"""One forward of a vision encoder: the tokens that remain, and what the pruner is shown of each layer.

While the rows of a batch differ in length they lie one after the other in one packed sequence (`Segments` of
`flowcut.hooks.attention`), or, if little of it is padding, as a batch that is masked (`PaddedRows`): see
docs/decisions/0004. From the layer on that features are read after, and in the encoder's output, a batch is [B, S, D]
again; if a method leaves rows of different length there, the shorter ones are padded at their end and masked. So are
the hidden states that a caller asks for, of all layers.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from flowcut.hooks.attention import AttentionInputsCaptured, PaddedRows, Segments
from flowcut.hooks.call_context import KnownRows
from flowcut.hooks.merge_before_mlp import LayerContext, TokenSizes, merge_of
from flowcut.hooks.parts import Encoder
from flowcut.hooks.row_layout import RowLayout, little_padding
from flowcut.hooks.shown_encoder_layer import ShownEncoderLayer
from flowcut.pruner import CLS, Cut, Pruner, Question, Rows, View, valid_mask
from flowcut.pruner.cut import on_device
from flowcut.pruner.padding import Padding
from flowcut.trace import Trace


class EncoderForward:
    """One forward of an encoder whose rows are a batch [B, S, D]: the remaining tokens, and what the pruner notes."""

    def __init__(
        self, pruner: Pruner, encoder: Encoder, signals: bool, known: KnownRows | None, args: Any, kwargs: Any
    ):
        self.pruner = pruner
        self.encoder = encoder
        self.shape = encoder.shape
        self.known = known
        self.trace = Trace()
        self.memory: dict[str, Any] = {}
        self.signals = signals
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self.scaling = 0.0
        self.cut: Cut | None = None
        self.positions: Tensor | None = None
        self.counts: tuple[int, ...] = ()
        self.masks: dict[str, Any] = {}
        self.known_layout: RowLayout | None = None
        self.groups: tuple[int, ...] = ()
        self.grids: tuple[tuple[int, int], ...] = ()
        self.question: Question | None = None
        self.pixels: Any = kwargs.get("pixel_values", args[0] if args else None)
        attended = kwargs.get("patch_attention_mask")
        padded = attended is not None and not bool(attended.all())
        self.attended: Tensor | None = attended.flatten(1).bool() if padded else None
        self.packed = False
        self.unpadded: dict[int, list[int]] = {}
        self.padded: dict[int, Padding] = {}
        self.mask: Any = None
        self.token_sizes: TokenSizes | None = None
        self.context: LayerContext | None = None
        self.capturing = False
        self.compile = False

    def observes(self, module: nn.Module) -> bool:
        return any(module is attention for attention in self.encoder.attentions)

    def observe(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> None:
        """Called by the tap, more than once if a layer attends in pieces. When all are there, the pruner is asked."""
        self.scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        if self.capturing:
            raise AttentionInputsCaptured(query, key, value, self.scaling)
        if not self.counts:
            self.start(query)
        if not self.reads():
            return
        self.seen.append((query.detach(), key.detach(), value.detach()))
        if not self.pruner.reads_hidden and self.complete():
            self.ask(None)

    def reads(self) -> bool:
        """Whether the pruner reads the layer under way."""
        return self.pruner.reads_layer(len(self.trace.entering), self.shape)

    def complete(self) -> bool:
        """Whether all of this layer's tokens have attended."""
        seen = sum(query.shape[2] for query, *_ in self.seen)
        return seen == (sum(self.lengths) if self.packed else max(self.lengths))

    @cached_property
    def rows(self) -> Rows:
        """What the rows are."""
        known = self.known or KnownRows()
        special, alone = self.encoder.num_forwarded_special_tokens, known.unpruned_tokens
        sizes = [height * width + special if alone is None else alone for height, width in self.grids]
        tiles = known.tiles or (1,) * len(sizes)
        whole: dict[int, int] = {}
        for group, size in zip(self.groups, sizes, strict=True):
            whole[group] = whole.get(group, 0) + size
        each = zip(self.groups, tiles, sizes, strict=True)
        unpruned = tuple(whole[group] if count > 1 else size for group, count, size in each)
        return Rows(self.groups, tiles, self.grids, unpruned)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, special ones included."""
        return [self.encoder.num_prefix_tokens + count for count in self.counts]

    @cached_property
    def numbers(self) -> Tensor:
        """[R, 1], 0, 1, .."""
        assert self.positions is not None
        return torch.arange(len(self.counts), device=self.positions.device)[:, None]

    @cached_property
    def special(self) -> Tensor:
        """[R, prefix], -prefix .. -1: columns of the special tokens, counted from the first patch."""
        assert self.positions is not None
        columns = torch.arange(-self.encoder.num_prefix_tokens, 0, device=self.positions.device)
        return columns.expand(len(self.counts), -1)

    @property
    def layout(self) -> RowLayout:
        """Where the rows lie, for as long as their lengths stay the same."""
        assert self.positions is not None
        if self.known_layout is None:
            self.known_layout = RowLayout(self.lengths, self.positions.device)
        return self.known_layout

    def start(self, query: Tensor) -> None:
        """Learn from the first layer's queries [R, H, S, d] how many rows there are."""
        number, length = query.shape[0], query.shape[2] - self.encoder.num_prefix_tokens
        self.counts = (length,) * number
        groups = self.known.groups if self.known is not None else None
        self.groups = tuple(range(number)) if groups is None else groups
        patch = getattr(self.encoder.model.config, "patch_size", None)
        sides = (patch, patch) if isinstance(patch, int) else patch
        grid = (1, length)
        if sides is not None and isinstance(self.pixels, Tensor):
            grid = (self.pixels.shape[-2] // sides[0], self.pixels.shape[-1] // sides[1])
        if self.encoder.cell is not None:
            grid = tokens_of(grid, self.encoder.cell)
        elif grid[0] * grid[1] != length:
            grid = (1, length)
        self.grids = (grid,) * number

    def after_layer(self, layer: int, hidden: Tensor) -> Tensor:
        """The layer's output, shortened if the pruner says so."""
        if self.pruner.reads_hidden and self.reads():
            self.ask(hidden)
        cut, self.cut = self.cut, None
        self.trace.entering.append(self.counts)
        padded = isinstance(self.mask, PaddedRows)
        self.trace.computed.append((max(self.counts),) * len(self.counts) if padded else self.counts)
        if cut is not None:
            hidden = self.shorten(cut, hidden, layer)
        elif self.packed and layer >= self.shape.feature_layer:
            hidden = self.arrange(hidden.flatten(0, -2), layer)
        if self.packed and hidden.ndim == 3:
            self.unpadded[layer] = self.lengths
        elif isinstance(self.mask, PaddedRows):
            self.padded[layer] = self.mask.padding
            if layer == self.shape.feature_layer:
                hidden = hidden.masked_fill(self.mask.padding.beyond[..., None], 0)
        self.trace.leaving.append(self.counts)
        return hidden

    def ask(self, hidden: Tensor | None) -> None:
        """Show the layer under way to the pruner."""
        with torch.no_grad():
            self.cut = cut = self.pruner.vision(self.view(len(self.trace.entering), hidden))
            if cut is not None and cut.before_mlp:
                assert self.context is not None, "a pruner that merges there has to say merges_before_mlp = True"
                counts = cut.counts or (cut.keep.shape[1],) * len(self.counts)
                sizes, prefix = self.sizes().sizes, self.encoder.num_prefix_tokens
                self.context.merge = merge_of(cut, sizes, prefix, self.counts, counts, self.packed)

    def sizes(self) -> TokenSizes:
        """What the tokens are made of, from the first merge on."""
        assert self.positions is not None
        if self.token_sizes is None:
            entered = max((*self.trace.entering, self.counts)[0])
            self.token_sizes = TokenSizes.of(self.positions, self.counts, entered)
        return self.token_sizes

    def attention_inputs(self, number: int, hidden: Tensor) -> tuple[list[Tensor], float]:
        """[q, k, v], each [R, H, S, d], and the scaling, that layer `number` would attend with if it got `hidden`.

        The layer is called, and stopped where its attention would begin: its norm, projections, biases and adapters
        are the family's own, and nothing of them is copied.
        """
        if number >= len(self.encoder.layers):
            raise ValueError(f"no layer follows layer {number - 1}, the last one of this encoder")
        self.capturing = True
        try:
            self.call_layer(number, hidden)
            raise AssertionError("the layer ran without calling its tapped attention")
        except AttentionInputsCaptured as captured:
            seen, scaling = [captured.query, captured.key, captured.value], captured.scaling
        finally:
            self.capturing = False
        if self.packed:
            seen = [self.unpack(tensor[0]).transpose(1, 2) for tensor in seen]
        return seen, scaling

    def call_layer(self, number: int, hidden: Tensor) -> None:
        """Call a layer out of turn, past its hooks."""
        self.encoder.layers[number].forward(hidden, attention_mask=self.mask)

    def view(self, layer: int, hidden: Tensor | None) -> View:
        assert self.seen, "the layer ran without calling its tapped attention"
        if self.positions is None:
            device, patches = self.seen[0][0].device, max(self.counts)
            self.positions = torch.arange(patches, device=device).expand(len(self.counts), patches)
        pieces = list(zip(*self.seen, strict=True))
        query, key, value = (p[0] if len(p) == 1 else torch.cat(p, dim=2) for p in pieces)
        self.seen, states = [], hidden
        if self.packed:
            query, key, value = (self.unpack(tensor[0]).transpose(1, 2) for tensor in (query, key, value))
            if hidden is not None:
                states = pad_sequence(list(hidden.flatten(0, -2).split(self.lengths)), batch_first=True)
        return View(
            layer=layer,
            layers=self.encoder.depth,
            q=query,
            k=key,
            v=value,
            scaling=self.scaling,
            counts=self.counts,
            positions=self.positions,
            rows=self.rows,
            shape=self.shape,
            source=ShownEncoderLayer(self, states, hidden),
            memory=self.memory,
            masks=self.masks,
            compile=self.compile,
            attended=self.attended,
        )

    def unpack(self, tokens: Tensor) -> Tensor:
        """[H, sum S, d] -> [R, S, H, d], padded at the end."""
        return self.layout.pad(tokens.transpose(0, 1))

    def shorten(self, cut: Cut, hidden: Tensor, layer: int) -> Tensor:
        """Apply a cut to a layer's output; one gather over all rows."""
        assert self.positions is not None
        sizes = self.token_sizes if cut.into is None and cut.sources is None else self.sizes()
        self.trace.mixed = self.trace.mixed or (cut.hidden is not None and cut.sources is None)
        before, prefix = self.counts, self.encoder.num_prefix_tokens
        counts = cut.counts or (cut.keep.shape[1],) * len(before)
        self.positions = self.positions.gather(1, cut.keep if cut.hidden is None else cut.keep.clamp_min(0))
        if cut.hidden is not None:
            self.positions = self.positions.masked_fill(cut.keep == CLS, CLS)
        self.trace.kept[layer] = [p[:count] for p, count in zip(self.positions, counts, strict=True)]
        if cut.hidden is None and counts == before and all(count == cut.keep.shape[1] for count in counts):
            return hidden
        merge = None
        if sizes is not None:
            if cut.into is not None and not cut.before_mlp:
                merge = merge_of(cut, sizes.sizes, prefix, before, counts, self.packed)
            sizes.update(cut, before, counts)
        starts = self.layout.starts if self.packed else np.arange(len(before)) * hidden.shape[1]
        after = self.masks.get("after") if cut.counts is not None else None
        self.counts, self.known_layout = counts, None
        self.masks = {} if after is None or after.lengths != self.lengths else {"padding": after}
        batch = merge is None and cut.hidden is None and not self.packed and self.attended is None
        if self.attended is not None:
            self.attended = self.attended.gather(1, cut.keep)
        if batch and (len(set(counts)) == 1 or self.pads(layer)):
            self.mask = None
            if len(set(counts)) > 1:
                if "padding" not in self.masks:
                    self.masks["padding"] = Padding(self.lengths, hidden.device)
                self.mask = PaddedRows(self.masks["padding"])
            patches = hidden[:, prefix:][self.numbers, cut.keep]
            return torch.cat([hidden[:, :prefix], patches], dim=1) if prefix else patches
        if merge is not None:
            flat = merge(hidden.flatten(0, -2))
        elif cut.hidden is None:
            self.kept_flat = self.places(cut.keep, starts)
            flat = hidden.flatten(0, -2).index_select(0, self.kept_flat)
        else:
            special = [hidden.flatten(0, -2)[start : start + prefix] for start in starts]
            new = [tokens[:count] for tokens, count in zip(cut.hidden.to(hidden.dtype), counts, strict=True)]
            flat = torch.cat([part for pair in zip(special, new, strict=True) for part in pair])
        return self.arrange(flat, layer)

    def pads(self, layer: int) -> bool:
        """Whether rows that differ in length after a layer stay a batch, with padding, and are not packed."""
        ours = self.encoder.forward is None and layer < self.shape.feature_layer and little_padding(self.lengths)
        return ours and self.encoder.model.config._attn_implementation in PaddedRows.implementations

    def places(self, keep: Tensor, starts: np.ndarray) -> Tensor:
        """Where special and kept tokens [R, K] lie in a flattened batch whose rows begin at `starts`."""
        prefix, columns = self.encoder.num_prefix_tokens, keep
        if prefix:
            columns = torch.cat([self.special, keep], dim=1)
        shift = starts[:, None] + prefix
        if len(shift) > 1:
            columns = columns + on_device(shift, keep.device)
        elif shift[0, 0]:
            columns = columns + int(shift[0, 0])
        ragged = len(set(self.lengths)) > 1
        return columns.flatten().index_select(0, self.layout.packed) if ragged else columns.flatten()

    def arrange(self, flat: Tensor, layer: int) -> Tensor:
        """Rows one after the other [tokens, D] -> the shape that the next layer gets."""
        lengths, masked = self.lengths, self.attended is not None and not bool(self.attended.all())
        self.mask, self.packed = None, False
        if len(set(lengths)) == 1 and not masked:
            return flat.view(len(lengths), lengths[0], -1)
        if layer < self.shape.feature_layer and not masked:
            self.mask, self.packed = Segments(lengths), True
            return flat[None]
        hidden = pad_sequence(list(flat.split(lengths)), batch_first=True)
        valid = valid_mask(lengths, max(lengths), flat.device)
        if self.attended is not None:
            seen = pad(self.attended, (self.encoder.num_prefix_tokens, 0), value=True)
            valid = seen if valid is None else seen & valid
        from transformers.masking_utils import create_bidirectional_mask  # not before a model is there

        self.mask = create_bidirectional_mask(
            config=self.encoder.model.config, inputs_embeds=hidden, attention_mask=valid
        )
        return hidden

    def before_layer(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """What the next layer has to be called with, if not with what the encoder gives it."""
        mask = self.mask
        given = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        if mask is None and given is not None and self.trace.kept:
            return args[:1], {**kwargs, "attention_mask": None}  # the encoder's own is of the whole picture
        if self.pruner.merges_before_mlp:
            mask = given if mask is None else mask
            sizes, prefix = self.token_sizes, self.encoder.num_prefix_tokens
            log_sizes = None if sizes is None else sizes.log_sizes(prefix, self.counts, self.packed)
            mask = self.context = LayerContext(mask, log_sizes)
        return None if mask is None else (args[:1], {**kwargs, "attention_mask": mask})

    def batched(self, output: Any) -> Any:
        """The encoder's output with the hidden states of all layers as batches [R, S, D], 0 on padding."""
        if not (self.unpadded or self.padded):
            return output
        if isinstance(output, tuple):
            return tuple(self.batch_of(part) if isinstance(part, tuple) else part for part in output)
        if getattr(output, "hidden_states", None) is not None:
            output.hidden_states = self.batch_of(output.hidden_states)
        return output

    def batch_of(self, states: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        """`batched` of a tuple of hidden states, of which one came before the first layer."""
        batches = list(states)
        for layer, lengths in self.unpadded.items():
            packed = states[layer + 1] if layer + 1 < len(states) else None
            if packed is not None and packed.shape[:2] == (1, sum(lengths)):
                batches[layer + 1] = pad_sequence(list(packed[0].split(lengths)), batch_first=True)
        for layer, padding in self.padded.items():
            batch = states[layer + 1] if layer + 1 < len(states) else None
            if batch is not None and batch.shape[:2] == padding.beyond.shape:
                batches[layer + 1] = batch.masked_fill(padding.beyond.to(batch.device)[..., None], 0)
        return tuple(batches)

    def finish(self) -> Trace:
        """After the last layer: the trace, complete for this encoder."""
        if self.token_sizes is not None:
            self.trace.sources = list(self.token_sizes.sources)
            self.trace.merged_before_mlp = self.pruner.merges_before_mlp
        rows = self.rows
        self.trace.unpruned_tokens, self.trace.budgets = rows.unpruned_tokens, tuple(rows.budgets(self.pruner.budget))
        final = self.trace.final
        if final:
            if self.trace.kept and len({len(places) for places in final}) == 1:
                even = torch.stack(final)  # nothing is copied from the host, so that a CUDA graph can hold it
                self.trace.place(list(torch.stack([self.numbers.expand_as(even), even], dim=2)))
                return self.trace
            places = torch.cat(final)
            owners = np.repeat(np.arange(len(final)), [len(places) for places in final])
            tokens = torch.stack([on_device(owners, places.device), places], dim=1)
            self.trace.place(list(tokens.split([len(places) for places in final])))
        return self.trace


def tokens_of(grid: tuple[int, int], cell: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of cells in a grid of patches.

    Raises:
        ValueError: the grid is not square, or no whole number of cells.
    """
    if grid[0] != grid[1] or grid[0] % cell[0] or grid[1] % cell[1]:
        raise ValueError(
            f"a picture of {grid[0]} x {grid[1]} patches is no square of whole cells of {cell[0]} x {cell[1]} patches, "
            "which this model makes its tokens of; resize it as the model's image processor does"
        )
    return grid[0] // cell[0], grid[1] // cell[1]
