"""The vision stage: shows every encoder layer to the pruner and shortens its output.

All state of a forward is one `Run`, born at the encoder's entrance. It is found through a context variable, so threads
do not meet, and nothing is left behind on the model.

While the rows of a batch differ in length they lie one after the other in one packed sequence (`flowcut.tap.Segments`),
docs/decisions/0004. From the layer on that features are read after, and in the encoder's output, a batch is [B, S, D]
again; if a method leaves rows of different length there, the shorter ones are padded at their end and masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.masking_utils import create_bidirectional_mask

from flowcut.ahead import Looked
from flowcut.merging import SLIP, BranchHooks, Ledger, Slip, merge_of
from flowcut.pruner import CLS, Cut, Pruner, View, valid_mask
from flowcut.stage import Stage
from flowcut.tap import VISION, Segments, tap
from flowcut.text import Question, question_about
from flowcut.trace import Trace

if TYPE_CHECKING:
    from flowcut.anatomy import Encoder
    from flowcut.attach import Handle


@dataclass
class Rows:
    """What the caller of an encoder knows about its rows; see `View` for `groups` and `tiles`.

    Attributes:
        skip: leave this call alone.
        alone: how many tokens a row is for the unpruned language model; None for as many as its grid has.
        trace: filled by the encoder's forward, if a pruner is attached.
    """

    groups: tuple[int, ...] | None = None
    tiles: tuple[int, ...] = ()
    skip: bool = False
    alone: int | None = None
    trace: Trace | None = None


_ROWS: ContextVar[Rows | None] = ContextVar("flowcut_rows", default=None)


@contextmanager
def rows(
    groups: Sequence[int] | None = None, spread: bool = False, skip: bool = False, alone: int | None = None
) -> Iterator[Rows]:
    """Tell an attached pruner, around a call of an encoder, which rows belong to one image.

    Args:
        groups: number of the image or video of each row; every row by itself if None.
        spread: whether the rows of a group are tiles that share one image's budget (else frames, with a budget each).
        skip: do not prune in this call.
        alone: how many tokens a row is for the unpruned language model, if not as many as its grid has.
    """
    known = Rows(None if groups is None else tuple(groups), skip=skip, alone=alone)
    if groups is not None:
        known.tiles = tuple(list(groups).count(group) if spread else 1 for group in groups)
    token = _ROWS.set(known)
    try:
        yield known
    finally:
        _ROWS.reset(token)


class Run:
    """One forward of an encoder whose rows are a batch [B, S, D]: what is left, and what the pruner notes."""

    def __init__(self, pruner: Pruner, encoder: Encoder, signals: bool, known: Rows | None, args: Any, kwargs: Any):
        self.pruner = pruner
        self.encoder = encoder
        self.known = known
        self.trace = Trace()
        self.memory: dict[str, Any] = {}
        self.signals = signals
        self.outer = VISION.get()
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self.scaling = 0.0
        self.cut: Cut | None = None
        self.positions: Tensor | None = None
        self.counts: tuple[int, ...] = ()
        self.groups: tuple[int, ...] = ()
        self.grids: tuple[tuple[int, int], ...] = ()
        self.question: Question | None = None
        self.pixels: Any = kwargs.get("pixel_values", args[0] if args else None)
        self.packed = False
        self.mask: Any = None
        self.ledger: Ledger | None = None
        self.slip: Slip | None = None
        self.looking = False

    def observes(self, module: nn.Module) -> bool:
        return any(module is attention for attention in self.encoder.attentions)

    def observe(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> None:
        """Called by the tap, more than once if a layer attends in pieces. When all are there, the pruner is asked."""
        self.scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        if self.looking:
            raise Looked(query, key, value, self.scaling)
        if self.positions is None:
            self.start(query)
        self.seen.append((query.detach(), key.detach(), value.detach()))
        if not self.pruner.reads_hidden and self.complete():
            self.ask(None)

    def complete(self) -> bool:
        """Whether all of this layer's tokens have attended."""
        seen = sum(query.shape[2] for query, *_ in self.seen)
        return seen == (sum(self.lengths) if self.packed else max(self.lengths))

    def note(self, name: str, values: Tensor, view: View) -> None:
        self.trace.note(name, values, view.layer, view.counts)

    @property
    def own(self) -> tuple[int, ...]:
        """See `View.own`."""
        alone = None if self.known is None else self.known.alone
        sizes = [height * width + self.encoder.reserved if alone is None else alone for height, width in self.grids]
        tiles = (self.known.tiles if self.known is not None else ()) or (1,) * len(sizes)
        whole: dict[int, int] = {}
        for group, size in zip(self.groups, sizes, strict=True):
            whole[group] = whole.get(group, 0) + size
        return tuple(
            whole[group] if count > 1 else size for group, count, size in zip(self.groups, tiles, sizes, strict=True)
        )

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, special ones included."""
        return [self.encoder.prefix + count for count in self.counts]

    def start(self, query: Tensor) -> None:
        """Learn from the first layer's queries [R, H, S, d] how many rows there are."""
        number, length = query.shape[0], query.shape[2] - self.encoder.prefix
        self.positions = torch.arange(length, device=query.device).expand(number, length)
        self.counts = (length,) * number
        groups = self.known.groups if self.known is not None else None
        self.groups = tuple(range(number)) if groups is None else groups
        patch = getattr(self.encoder.model.config, "patch_size", None)
        grid = (1, length)
        if isinstance(patch, int) and isinstance(self.pixels, Tensor):
            grid = (self.pixels.shape[-2] // patch, self.pixels.shape[-1] // patch)
        self.grids = (grid if grid[0] * grid[1] == length else (1, length),) * number

    def after_layer(self, layer: int, hidden: Tensor) -> Tensor:
        """The layer's output, shortened if the pruner says so."""
        if self.pruner.reads_hidden:
            self.ask(hidden)
        cut, self.cut = self.cut, None
        self.trace.entering.append(self.counts)
        if cut is not None:
            hidden = self.shorten(cut, hidden, layer)
        elif self.packed and layer >= self.encoder.whole_from:
            hidden = self.arrange(hidden.flatten(0, -2), layer)
        self.trace.leaving.append(self.counts)
        return hidden

    def ask(self, hidden: Tensor | None) -> None:
        """Show the layer under way to the pruner."""
        with torch.no_grad():
            self.cut = cut = self.pruner.vision(self.view(len(self.trace.entering), hidden))
            if cut is not None and cut.inside:
                assert self.slip is not None, "a pruner that merges inside has to say merges_inside = True"
                counts = cut.counts or (cut.keep.shape[1],) * len(self.counts)
                sizes = self.books().sizes
                self.slip.merge = merge_of(cut, sizes, self.encoder.prefix, self.counts, counts, self.packed)

    def books(self) -> Ledger:
        """What the tokens are made of, from the first merge on."""
        assert self.positions is not None
        if self.ledger is None:
            self.ledger = Ledger.of(self.positions, self.counts, max((*self.trace.entering, self.counts)[0]))
        return self.ledger

    def look_ahead(self, view: View, hidden: Tensor) -> View:
        """`View.following`: the next layer is called, and stopped where its attention would begin."""
        number = view.layer + 1
        if number >= len(self.encoder.layers):
            raise ValueError(f"no layer follows layer {view.layer}, the last one of this encoder")
        self.looking = True
        try:
            self.encoder.layers[number].forward(hidden, attention_mask=self.mask)
            raise AssertionError("the layer ran without calling its tapped attention")
        except Looked as looked:
            seen, scaling = [looked.query, looked.key, looked.value], looked.scaling
        finally:
            self.looking = False
        if self.packed:
            seen = [self.unpack(tensor[0]).transpose(1, 2) for tensor in seen]
        query, key, value = (tensor.to(view.q.device) for tensor in seen)
        return replace(view, layer=number, q=query, k=key, v=value, scaling=scaling, states=None, ahead=None)

    def view(self, layer: int, hidden: Tensor | None) -> View:
        assert self.positions is not None
        assert self.seen, "the layer ran without calling its tapped attention"
        pieces = list(zip(*self.seen, strict=True))
        query, key, value = (p[0] if len(p) == 1 else torch.cat(p, dim=2) for p in pieces)
        self.seen, given = [], hidden
        if self.packed:
            query, key, value = (self.unpack(tensor[0]).transpose(1, 2) for tensor in (query, key, value))
            if hidden is not None:
                hidden = pad_sequence(list(hidden.flatten(0, -2).split(self.lengths)), batch_first=True)
        return View(
            layer=layer,
            layers=self.encoder.depth,
            q=query,
            k=key,
            v=value,
            scaling=self.scaling,
            states=hidden,
            prefix=self.encoder.prefix,
            positions=self.positions,
            counts=self.counts,
            groups=self.groups,
            tiles=self.known.tiles if self.known is not None else (),
            unit=self.encoder.unit,
            two_stage=self.encoder.two_stage,
            last_layer=self.encoder.last_layer,
            reserved=self.encoder.reserved,
            memory=self.memory,
            recorder=self.note if self.signals else None,
            grids=self.grids,
            read_after=self.encoder.whole_from,
            project=self.encoder.project,
            question=self.question,
            sizes=None if self.ledger is None else self.ledger.sizes,
            ahead=None if given is None or self.encoder.unit > 1 else partial(self.look_ahead, hidden=given),
            own=self.own,
        )

    def unpack(self, tokens: Tensor) -> Tensor:
        """[H, sum S, d] -> [R, S, H, d], padded at the end."""
        return pad_sequence(list(tokens.transpose(0, 1).split(self.lengths)), batch_first=True)

    def starts(self, hidden: Tensor) -> list[int]:
        """Where each row begins when `hidden` is flattened to [tokens, D]."""
        if not self.packed:
            return [row * hidden.shape[1] for row in range(len(self.counts))]
        lengths = self.lengths
        return [sum(lengths[:row]) for row in range(len(lengths))]

    def shorten(self, cut: Cut, hidden: Tensor, layer: int) -> Tensor:
        """Apply a cut to a layer's output; one gather over all rows."""
        assert self.positions is not None
        ledger = self.ledger if cut.into is None else self.books()
        before, prefix = self.counts, self.encoder.prefix
        counts = cut.counts or (cut.keep.shape[1],) * len(before)
        self.positions = self.positions.gather(1, cut.keep.clamp_min(0)).masked_fill(cut.keep == CLS, CLS)
        self.trace.kept[layer] = [p[:count].clone() for p, count in zip(self.positions, counts, strict=True)]
        if cut.hidden is None and counts == before and all(count == cut.keep.shape[1] for count in counts):
            return hidden
        merge = None
        if ledger is not None:
            if cut.into is not None and not cut.inside:
                merge = merge_of(cut, ledger.sizes, prefix, before, counts, self.packed)
            ledger.update(cut, before, counts)
        starts = self.starts(hidden)
        ahead = torch.arange(prefix, device=hidden.device)
        index = [
            torch.cat([ahead + start, keep[:count] + (start + prefix)])
            for start, keep, count in zip(starts, cut.keep, counts, strict=True)
        ]
        if merge is not None:
            flat = merge(hidden.flatten(0, -2))
        elif cut.hidden is None:
            self.kept_flat = torch.cat(index)
            flat = hidden.flatten(0, -2)[self.kept_flat]
        else:
            special = [hidden.flatten(0, -2)[start : start + prefix] for start in starts]
            new = [tokens[:count] for tokens, count in zip(cut.hidden.to(hidden.dtype), counts, strict=True)]
            flat = torch.cat([part for pair in zip(special, new, strict=True) for part in pair])
        self.counts = counts
        return self.arrange(flat, layer)

    def arrange(self, flat: Tensor, layer: int) -> Tensor:
        """Rows one after the other [tokens, D] -> the shape that the next layer gets."""
        lengths = self.lengths
        self.mask, self.packed = None, False
        if len(set(lengths)) == 1:
            return flat.view(len(lengths), lengths[0], -1)
        if layer < self.encoder.whole_from:
            self.mask, self.packed = Segments(lengths), True
            return flat[None]
        hidden = pad_sequence(list(flat.split(lengths)), batch_first=True)
        valid = valid_mask(lengths, max(lengths), flat.device)
        self.mask = create_bidirectional_mask(
            config=self.encoder.model.config, inputs_embeds=hidden, attention_mask=valid
        )
        return hidden

    def before_layer(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """What the next layer has to be called with, if not with what the encoder gives it."""
        mask = self.mask
        if self.pruner.merges_inside:
            if mask is None:
                mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
            ledger = self.ledger
            sizes = None if ledger is None else ledger.log_sizes(self.encoder.prefix, self.counts, self.packed)
            mask = self.slip = Slip(mask, sizes)
        return None if mask is None else (args[:1], {**kwargs, "attention_mask": mask})

    def finish(self) -> Trace:
        if self.ledger is not None:
            self.trace.sources = list(self.ledger.sources)
            self.trace.inside = self.pruner.merges_inside
        return self.trace


class EncoderStage(Stage):
    """Hooks on one encoder; they run outside of recomputation, and before transformers records hidden states."""

    def __init__(self, handle: Handle, encoder: Encoder):
        super().__init__()
        self.handle = handle
        self.encoder = encoder

    def install(self) -> None:
        self.undo.append(tap(self.encoder.attentions))
        self.around(self.encoder.model, self.enter, self.leave)
        for number, layer in enumerate(self.encoder.layers):
            self.undo.append(layer.register_forward_pre_hook(self.before_layer, with_kwargs=True).remove)
            self.undo.append(layer.register_forward_hook(_LayerHook(self, number), prepend=True).remove)
        if self.handle.pruner.merges_inside:
            hooks = BranchHooks()
            for first, last in self.encoder.branches:
                self.undo.append(first.register_forward_pre_hook(hooks.enter).remove)
                self.undo.append(last.register_forward_hook(hooks.leave).remove)

    def running(self) -> Any:
        """This encoder's forward under way, if any."""
        run = VISION.get()
        return run if run is not None and run.encoder is self.encoder else None

    @torch.compiler.disable
    def enter(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        known = _ROWS.get()
        if known is not None and known.skip:
            return
        pruner, signals = self.handle.pruner, self.handle.signals
        assert self.encoder.run is not None
        run = self.encoder.run(pruner, self.encoder, signals, known, args, kwargs)
        run.question = question_about(self.handle)
        VISION.set(run)

    @torch.compiler.disable
    def leave(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        run = self.running()
        if run is None:
            return
        VISION.set(run.outer)
        SLIP.set(None)
        if output is None:
            return
        trace = run.finish()
        trace.own = run.own
        trace.tokens = [
            torch.stack([torch.full_like(final, row), final], dim=1) for row, final in enumerate(trace.final)
        ]
        self.handle.trace = trace
        if run.known is not None:
            run.known.trace = trace
        features = self.encoder.feature_layer
        if features is not None and trace.kept and max(trace.kept) > features:
            raise ValueError(
                f"features are read after encoder layer {features} but tokens were cut after layer {max(trace.kept)}; "
                "let the pruner finish earlier (FlowCut: last_layer) or read a later feature layer"
            )

    @torch.compiler.disable
    def before_layer(
        self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        run = self.running()
        return None if run is None else run.before_layer(args, kwargs)


class _LayerHook:
    """After encoder layer `number`: let the forward's run shorten the output."""

    def __init__(self, stage: EncoderStage, number: int):
        self.stage = stage
        self.number = number

    @torch.compiler.disable
    def __call__(self, layer: nn.Module, args: tuple, output: Any) -> Any:
        run = self.stage.running()
        return None if run is None else run.after_layer(self.number, output)
