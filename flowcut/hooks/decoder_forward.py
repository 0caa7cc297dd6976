"""One forward of a decoder that brings images: shows its layers to the pruner, and drops columns.

In the KV cache the layers then have different lengths. What is needed to go on with such a cache is noted on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowcut.compat import CACHE
from flowcut.hooks.attention import AttentionInputsCaptured
from flowcut.hooks.cache_notes import Entries, ShownImage, take_notes
from flowcut.hooks.cached_images import CachedImages, ImageRows, find_images, mark_images
from flowcut.hooks.layer_calls import LayerCalls, kind_of
from flowcut.hooks.packing import BY_POSITION, last_of, pack, restarts, tail_of
from flowcut.hooks.parts import Decoder
from flowcut.hooks.session import Session
from flowcut.hooks.shown_decoder_layer import ShownDecoderLayer
from flowcut.pruner import Cut, LanguageView, Layout
from flowcut.trace import StageTrace


class DecoderForward(LayerCalls):
    """One forward of a decoder that brings images: where they stand, and which columns remain."""

    def __init__(self, session: Session, decoder: Decoder, call: dict[str, Any], image_index: Tensor):
        super().__init__(session, decoder, call)
        self.capturing = False
        self.states: list[_State] = []
        self.tail = self.length
        self.seen: tuple[Tensor, Tensor, Tensor, float] | None = None
        self.cut: Cut | None = None
        self.memory: dict[str, Any] = {}
        self.refuse_packed()
        self.find_images(image_index)

    def refuse_packed(self) -> None:
        if bool(restarts(self.position_ids, self.real).any()):
            raise ValueError(
                "position_ids that restart or jump (packed samples) cannot follow tokens dropped inside the language "
                "model; give each sample its own row, or use a method that cuts in the encoder alone"
            )

    def find_images(self, image_index: Tensor) -> None:
        """Learn from image_index [B, S] where each image's tokens stand."""
        rows = find_images(image_index)
        self.images, self.samples, self.counts, self.columns = rows.images, rows.samples, rows.counts, rows.columns
        self.initial = self.counts
        self.unpruned_tokens = tuple(self.encoded(*entry) for entry in zip(self.images, self.counts, strict=True))
        self.positions = torch.arange(max(self.counts), device=self.device).expand(len(self.counts), -1)
        self.last = self.last_prompt_columns()
        self.trace = StageTrace()

    def last_prompt_columns(self) -> Tensor:
        """[B], the column of the last real token of each row's prompt."""
        width = self.width - self.after
        return last_of(None if self.real is None else self.real[:, :width], self.rows, width, self.device)

    def shown_entries(self, layer: int, cached: int, width: int) -> Tensor | None:
        """`real_entries` as pruners see them: what comes after the prompt does not count."""
        real = self.real_entries(layer, cached, width)
        if self.after:
            real = torch.ones(self.rows, cached + width, device=self.device, dtype=torch.bool) if real is None else real
            real = real.clone()
            real[:, cached + width - self.after :] = False
        return real

    def encoded(self, image: int, count: int) -> int:
        """`Layout.unpruned_tokens` of an image that enters with `count` tokens."""
        trace = self.session.trace
        if trace is None or image >= len(trace.tokens) or len(trace.tokens[image]) != count:
            return count  # its features came from elsewhere
        return trace.unpruned_tokens[int(trace.tokens[image][:, 0].max())]

    def observes(self, module: nn.Module) -> bool:
        return any(module is attention for attention in self.decoder.attentions)

    def observe(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        if self.capturing:
            raise AttentionInputsCaptured(query, key, value, scale)
        self.seen = (query.detach(), key.detach(), value.detach(), scale)
        if not self.session.pruner.reads_hidden:
            self.ask(None)

    def after_layer(self, layer: int, hidden: Tensor) -> Tensor:
        """The layer's output, shortened if the pruner says so."""
        assert self.trace is not None
        if self.session.pruner.reads_hidden:
            self.ask(hidden)
        cut, self.cut = self.cut, None
        self.trace.entering.append(self.counts)
        if cut is not None:
            hidden = self.shorten(cut, hidden, layer)
        self.trace.leaving.append(self.counts)
        return hidden

    def ask(self, hidden: Tensor | None) -> None:
        """Show the layer under way to the pruner."""
        assert self.trace is not None
        assert self.seen is not None, "the layer ran without calling its tapped attention"
        query, key, value, scaling = self.seen
        self.seen = None
        if not self.session.cuts_language:
            return
        number = len(self.trace.entering)
        width = query.shape[2]
        real = self.shown_entries(number, self.cached(number) - width if self.cache is not None else 0, width)
        if real is not None:  # the cache of a sliding layer holds the last of them only
            real = real[:, real.shape[1] - key.shape[2] :]
        view = LanguageView(
            layer=number,
            layers=len(self.decoder.layers),
            q=query,
            k=key,
            v=value,
            scaling=scaling,
            counts=self.counts,
            positions=self.positions,
            initial=self.initial,
            layout=Layout(self.columns, self.samples, self.last, real, self.unpruned_tokens),
            shape=self.session.shape,
            source=ShownDecoderLayer(self, hidden, self.rotary),
            memory=self.memory,
        )
        with torch.no_grad():
            self.cut = self.session.pruner.language(view)

    def shorten(self, cut: Cut, hidden: Tensor, layer: int) -> Tensor:
        assert self.trace is not None
        counts = cut.counts or (cut.keep.shape[1],) * len(self.counts)
        state = self.state(layer)  # of what layers up to this one hold, noted before it changes
        before, columns = self.columns, self.columns.gather(1, cut.keep)
        stays = torch.ones(hidden.shape[:2], dtype=torch.bool, device=self.device) if self.real is None else self.real
        stays = stays.clone()
        # Where a method merges, an image's tokens stand in the order of its answer, in the places of those that stay.
        places = torch.arange(hidden.shape[1], device=self.device).expand(self.rows, -1)
        source = places.clone()
        if cut.hidden is not None:
            self.trace.mixed = True
            hidden = hidden.clone()
        for row, sample in enumerate(self.samples):
            stays[sample, before[row, : self.counts[row]]] = False
            kept = columns[row, : counts[row]]
            stays[sample, kept] = True
            if cut.hidden is not None:
                replacement = cut.hidden[row, : counts[row]].to(hidden.dtype)
                changed = (replacement != hidden[sample, kept].detach()).any(dim=-1)
                hidden[sample, kept[changed]] = replacement[changed]
                slots = kept.sort().values
                source[sample, slots] = kept
                columns[row, : counts[row]] = slots
        self.positions = self.positions.gather(1, cut.keep)
        self.counts = counts
        self.trace.kept[layer] = [p[:count].clone() for p, count in zip(self.positions, counts, strict=True)]
        if bool(stays.all()) and torch.equal(source, places):
            return hidden
        if self.wanted is not None and self.wanted.by_position:
            raise ValueError(BY_POSITION)
        self.states.append(state)
        self.tail = min(self.tail, tail_of(stays, self.real))
        index, real, place = pack(stays, self.real, self.decoder.from_start)
        index = source.gather(1, index)
        self.made = {}
        self.columns = place[torch.tensor(self.samples, device=self.device)[:, None], columns]
        self.index = index if self.index is None else self.index.gather(1, index)
        self.real = None if bool(real.all()) else real
        self.last = self.last_prompt_columns()
        self.renumber = cut.renumber and not self.decoder.mrope
        hidden = hidden[torch.arange(self.rows, device=self.device)[:, None], index]
        return hidden if self.real is None else hidden.masked_fill(~real[..., None], 0)

    def attention_inputs(self, number: int, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, float, Any]:
        """q, k, v, scaling and position embeddings that layer `number` would attend with if it got `hidden`.

        The layer is called with the remaining tokens, and stopped where its attention would begin. Its KV cache is
        read, not written; k and v hold the cached entries in front.
        """
        embeddings = self.given_to(hidden, kind_of(self.decoder.model.config, number))
        if self.index is not None or self.past.of_layer(number) is not None:
            _, embeddings = self.surroundings(number, hidden)
        call: dict[str, Any] = {**self.call, "position_embeddings": embeddings, "position_ids": None}
        call |= {"attention_mask": None, CACHE: None, "use_cache": False}
        self.capturing = True
        try:
            self.decoder.layers[number].forward(hidden, **call)
            raise AssertionError("the layer ran without calling its tapped attention")
        except AttentionInputsCaptured as captured:
            seen = captured
        finally:
            self.capturing = False
        query, key, value = (tensor.to(hidden.device) for tensor in (seen.query, seen.key, seen.value))
        if self.cache is not None and self.cached(number):
            entry = self.cache.layers[number]
            held = entry.keys.shape[2] if entry.keys.ndim == 4 else 0
            if held != self.cached(number):
                raise ValueError(
                    f"a method that reads the next layer needs its earlier keys, which a {type(entry).__name__} does "
                    "not keep unchanged; use a DynamicCache, or give the whole conversation in one call"
                )
            key = torch.cat([entry.keys.to(key), key], dim=2)
            value = torch.cat([entry.values.to(value), value], dim=2)
        return query, key, value, seen.scaling, embeddings

    def state(self, layer: int) -> _State:
        """What enters the layers up to `layer`."""
        image = token = None
        if self.session.pruner.anneals:
            rows = ImageRows(self.images, self.samples, self.counts, self.columns)
            image, token = mark_images(rows, self.positions, (self.rows, self.width))
        shift = self.lost if self.renumber else self.lost.zero_()
        return _State(layer, self.real, self.width, self.tail, shift, self.counts, image, token)

    def finish(self) -> None:
        """After the last layer: leave on the cache what going on with it takes."""
        if self.cache is None:
            return
        states = [*self.states, self.state(len(self.decoder.layers))]
        if self.session.pruner.anneals:
            self.note_images(states)
        if self.index is None:
            return
        starts = {0, *(state.layer + 1 for state in self.states), *(past.first for past in self.past.layers)}
        firsts = sorted(first for first in starts if first < len(self.decoder.layers))
        noted = []
        for first in firsts:
            state = next(state for state in states if first <= state.layer)
            past, length = self.past.of_layer(first), self.cached(first)
            self.real = state.real
            fixed = past.fixed if past is not None else 0
            fixed = fixed if state is states[0] else length - state.tail
            real = self.real_entries(first, length - state.width, state.width)
            shift = state.shift if past is None else state.shift + past.shift.to(self.device)
            noted.append(Entries(length, real, fixed, shift, first=first))
        # Layers before the first cut are as the caller describes them, unless an earlier forward cut there.
        layers = [entries for entries in noted if entries.first > 0 or self.past.of_layer(0)]
        take_notes(self.cache).layers = layers

    def note_images(self, states: list[_State]) -> None:
        """Note on the cache which of its entries show an image."""
        notes = take_notes(self.cache)
        starts = {0, *(state.layer + 1 for state in states), *(shown.first for shown in notes.images)}
        noted = []
        for first in sorted(starts):
            if first >= len(self.decoder.layers):
                continue
            state = next(state for state in states if first <= state.layer)
            assert state.image is not None
            assert state.token is not None
            nothing = state.image[:, :0]
            before = notes.images_of(first) or CachedImages(nothing, nothing, (0,) * len(notes.shown))
            start = self.cached(first) - state.width
            initial = self.by_image(state.counts)
            noted.append(replace(before.joined(start, state.image, state.token, initial), first=first))
        notes.images = noted
        pairs = zip(self.by_image(self.initial), self.by_image(self.unpruned_tokens), strict=True)
        notes.shown += [ShownImage(*pair, self.cached(0)) for pair in pairs]

    def by_image(self, counts: Sequence[int]) -> list[int]:
        """Numbers of the rows [R] as one of each image; 0 for an image that this forward does not show."""
        found = dict(zip(self.images, counts, strict=True))
        return [found.get(image, 0) for image in range(max(self.images) + 1)]


class _State(NamedTuple):
    """The columns that enter the layers up to `layer`: which are real, their number, how many follow the last one that
    was dropped, by how much position ids of later tokens fall [B], and each image's tokens. For pruners that anneal
    also which image each column shows, and which token of it, [B, width].
    """

    layer: int
    real: Tensor | None
    width: int
    tail: int
    shift: Tensor
    counts: tuple[int, ...]
    image: Tensor | None
    token: Tensor | None
