"""One forward of a decoder that goes on with a KV cache and brings no images: visual entries may leave the cache.

After each layer's attention the pruner is shown what the new tokens asked of the entries (`Pruner.cached`). When all
layers have run, the entries it gave up are taken out of the cache, and the notes on the cache say so. The first layer
is left alone: by its length `generate` and callers count the conversation. So are layers that attend within a window,
which hold few entries anyway.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Never

import torch
from torch import Tensor, nn

from flowcut.hooks.cache_notes import Entries, take_notes
from flowcut.hooks.cached_images import CachedImages, find_images
from flowcut.hooks.layer_calls import LayerCalls
from flowcut.hooks.packing import last_of, pack
from flowcut.hooks.parts import Decoder
from flowcut.hooks.session import Session
from flowcut.hooks.shown_decoder_layer import ShownDecoderLayer
from flowcut.pruner import CachedView, Cut, Layout


class CacheForward(LayerCalls):
    """One forward that goes on with a cache, and the entries that leave it."""

    def __init__(self, session: Session, decoder: Decoder, call: dict[str, Any]):
        super().__init__(session, decoder, call)
        start = self.cached(0)
        self.conversation = self.real_entries(0, start, self.length)
        self.total = start + self.length
        self.grown = [self.tokens_since(image.length) for image in self.past.shown]
        self.memory: dict[str, Any] = {}
        self.stays: dict[int, Tensor] = {}

    def observes(self, module: nn.Module) -> bool:
        return any(module is attention for attention in self.decoder.attentions)

    def tokens_since(self, length: int) -> list[int]:
        """For each row, its real tokens after the first `length` columns of layer 0, this forward's included."""
        if self.conversation is None:
            return [max(self.total - length, 0)] * self.rows
        return self.conversation[:, length:].sum(dim=1).tolist()

    def entry(self, layer: int) -> Any:
        """What the cache holds of a layer."""
        assert self.cache is not None
        return self.cache.layers[layer]

    def observe(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> None:
        images, layer = self.past.images_of(self.layer), self.layer
        if layer == 0 or images is None or getattr(self.entry(layer), "is_sliding", False):
            return
        pruner, new = self.session.pruner, query.shape[2]
        if not pruner.reads_cache([count for rows in self.grown for count in rows], new):
            return
        if not bool((images.image >= 0).any()):
            return
        rows, past = find_images(images.image), key.shape[2] - new
        real = self.real_entries(layer, past, new)
        last = last_of(self.real, self.rows, new, self.device)
        unpruned = tuple(self.past.shown[image].unpruned for image in rows.images)
        samples = torch.tensor(rows.samples, device=images.token.device)[:, None]
        view = CachedView(
            layer=layer,
            layers=len(self.decoder.layers),
            q=query.detach(),
            k=key.detach(),
            v=value.detach(),
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            counts=rows.counts,
            positions=images.token[samples, rows.columns],
            initial=tuple(self.past.shown[image].entered for image in rows.images),
            layout=Layout(rows.columns.to(key.device) - past, rows.samples, last, real, unpruned),
            shape=self.session.shape,
            source=ShownDecoderLayer(self, None, self.rotary),
            memory=self.memory,
            cached=tuple(images.initial[image] for image in rows.images),
            grown=tuple(self.grown[image][row] for image, row in zip(rows.images, rows.samples, strict=True)),
        )
        with torch.no_grad():
            cut = pruner.cached(view)
        if cut is not None:
            self.note(layer, cut, view, real)

    def note(self, layer: int, cut: Cut, view: CachedView, real: Tensor | None) -> None:
        """Which entries of a layer stay."""
        from transformers.cache_utils import DynamicLayer  # not before a model is there

        name, entry = type(self.session.pruner).__name__, self.entry(layer)
        if cut.hidden is not None or cut.into is not None or cut.renumber:
            raise ValueError(f"{name} merges or renumbers entries of a KV cache, which can only be dropped")
        if type(entry) is not DynamicLayer:
            raise ValueError(
                f"{name} removes entries from the KV cache, which a {type(entry).__name__} does not support; use a "
                "DynamicCache (generate's default), or a method that does not change the cache"
            )
        columns = view.layout.columns + view.past
        stays = torch.ones(self.rows, view.k.shape[2], dtype=torch.bool, device=columns.device)
        stays = stays if real is None else real.clone()
        counts = cut.counts or (cut.keep.shape[1],) * len(view.counts)
        for row, sample in enumerate(view.layout.samples):
            stays[sample, columns[row, : view.counts[row]]] = False
            stays[sample, columns[row][cut.keep[row, : counts[row]]]] = True
        self.stays[layer] = stays

    def finish(self) -> None:
        """After the last layer: take the entries out of the cache, and note what is left."""
        if not self.stays:
            return
        nothing = Entries(0, None, 0, torch.zeros(self.rows, dtype=torch.long, device=self.device))
        entries, images = [], []
        for layer in range(min(self.stays), len(self.decoder.layers)):
            held, shown = self.past.of_layer(layer) or nothing, self.past.images_of(layer)
            assert shown is not None
            if layer in self.stays:
                held, shown = self.drop(layer, held, shown)
            entries.append(replace(held, first=layer))
            images.append(replace(shown, first=layer))
        notes = take_notes(self.cache)
        first = min(self.stays)
        notes.layers = [*(held for held in notes.layers if held.first < first), *entries]
        notes.images = [*(shown for shown in notes.images if shown.first < first), *images]

    def drop(self, layer: int, held: Entries, shown: CachedImages) -> tuple[Entries, CachedImages]:
        """Take entries out of one layer of the cache. -> what is noted of it then."""
        entry, stays = self.entry(layer), self.stays[layer]
        real = self.real_entries(layer, stays.shape[1] - self.length, self.length)
        index, left, _ = pack(stays, real, self.decoder.from_start)
        entry.keys, entry.values = (_gathered(part, index) for part in (entry.keys, entry.values))
        padding = None if bool(left.all()) else left
        length = index.shape[1]
        shown = shown.taken(index.to(shown.image.device))
        if padding is not None:  # what stands in the place of padding is no image's
            shown = replace(shown, image=shown.image.masked_fill(~padding.to(shown.image.device), -1))
        return replace(held, length=length, real=padding, fixed=length), shown

    def attention_inputs(self, number: int, hidden: Tensor) -> Never:
        raise ValueError("in a forward that continues with a KV cache, only the current layer can be read")


def _gathered(part: Tensor, index: Tensor) -> Tensor:
    """Entries index [B, S'] of keys or values [B, H', S, d]."""
    index = index.to(part.device)[:, None, :, None]
    return part.gather(2, index.expand(-1, part.shape[1], -1, part.shape[3]))
