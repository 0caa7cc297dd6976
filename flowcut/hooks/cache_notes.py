"""How a KV cache that was shortened relates to the conversation that the caller counts.

The caller counts every token of the unpruned conversation, the cache holds fewer, and after a cut inside the language
model its layers hold different numbers. One `CacheNotes` on the cache itself owns that translation. It follows the
cache: whoever reorders, selects, repeats, crops, resets or copies the cache does the same to the notes. What may be
done with such a cache is written down in docs/generate.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowcut.compat import CACHE, checkpoints_layers
from flowcut.hooks.cached_images import CachedImages

NOTES = "flowcut_notes"
"""Attribute of a KV cache that holds its `CacheNotes`."""


@dataclass(frozen=True)
class Entries:
    """What the KV cache of some layers holds of the tokens up to a moment; later entries stand for one token each.

    Attributes:
        length: entries at that moment.
        real: [B, length], False where an entry is padding; None if none is.
        fixed: how many of the first ones cannot be removed from the end, because a token after them was dropped.
        shift: [B], by how much position ids of later tokens fall, because tokens of that row were dropped.
        dropped: columns of the conversation, as the caller counts them, that have no entry. Known for the prompt only.
        following: [B], the position id of the token that comes next. Known for the prompt only.
        first: number of the first layer this is about; the next entry of the list begins with another one.
    """

    length: int
    real: Tensor | None
    fixed: int
    shift: Tensor
    dropped: int = 0
    following: Tensor | None = None
    first: int = 0

    def rows(self, index: Tensor) -> Entries:
        """For the batch rows `index` only, in that order."""
        index = index.to(self.shift.device)
        real, following = (None if part is None else part[index] for part in (self.real, self.following))
        return replace(self, real=real, shift=self.shift[index], following=following)

    def repeat(self, times: int) -> Entries:
        """For a batch whose rows stand `times` times each."""
        return self.rows(torch.arange(len(self.shift)).repeat_interleave(times))

    def crop(self, length: int) -> Entries:
        """For a cache of which only the first `length` entries are left."""
        real = None if self.real is None else self.real[:, :length]
        following = self.following
        if following is not None:
            removed = max(self.length - length, 0) if self.real is None else self.real[:, length:].sum(dim=1)
            following = following - removed
        return replace(self, length=min(length, self.length), real=real, following=following)


class ShownImage(NamedTuple):
    """An image that a cache holds: its tokens that entered the language model, those it has where nothing is dropped,
    and the length of layer 0 after the forward that brought it.
    """

    entered: int
    unpruned: int
    length: int


class CacheNotes:
    """What is known of a shortened KV cache.

    Attributes:
        prompt: what layer 0 holds of the conversation as the caller counts it; None if no prompt was shortened.
        layers: what layers hold of what entered layer 0, by `Entries.first`; empty if no layer was shortened.
        images: which entries show an image, by `CachedImages.first`; empty if no pruner wants to know.
        shown: these images, in the order of their numbers.
    """

    def __init__(self) -> None:
        self.prompt: Entries | None = None
        self.layers: list[Entries] = []
        self.images: list[CachedImages] = []
        self.shown: list[ShownImage] = []

    @property
    def all(self) -> list[Entries]:
        return [*([] if self.prompt is None else [self.prompt]), *self.layers]

    @property
    def dropped(self) -> int:
        """Columns of the conversation that have no entry in layer 0."""
        return 0 if self.prompt is None else self.prompt.dropped

    def of_layer(self, layer: int) -> Entries | None:
        """What is noted of a layer; None if it holds what entered layer 0."""
        return next((entries for entries in reversed(self.layers) if entries.first <= layer), None)

    def images_of(self, layer: int) -> CachedImages | None:
        """Which entries of a layer show an image; None if that is not noted."""
        return next((images for images in reversed(self.images) if images.first <= layer), None)

    def clear(self) -> None:
        """Nothing is cached any more."""
        self.prompt, self.layers, self.images, self.shown = None, [], [], []

    def change(self, how: Any) -> None:
        """Replace each of the notes by `how(notes)`."""
        self.prompt = None if self.prompt is None else how(self.prompt)
        self.layers = [how(entries) for entries in self.layers]
        self.images = [how(images) for images in self.images]


class Followed:
    """Stands on a cache in the place of one of its methods, and does the same to the notes."""

    def __init__(self, cache: Any, name: str):
        self.cache = cache
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        original = getattr(type(self.cache), self.name)
        notes: CacheNotes = getattr(self.cache, NOTES)
        follow = getattr(self, self.name)
        after = follow(notes, *args, **kwargs)
        result = original(self.cache, *args, **kwargs)
        after()
        return result

    def reorder_cache(self, notes: CacheNotes, beam_idx: Tensor) -> Any:
        return lambda: notes.change(lambda entries: entries.rows(beam_idx))

    def batch_select_indices(self, notes: CacheNotes, indices: Tensor) -> Any:
        return lambda: notes.change(lambda entries: entries.rows(torch.as_tensor(indices)))

    def batch_repeat_interleave(self, notes: CacheNotes, repeats: int) -> Any:
        return lambda: notes.change(lambda entries: entries.repeat(repeats))

    def reset(self, notes: CacheNotes) -> Any:
        return notes.clear

    def crop(self, notes: CacheNotes, tokens_to_remove: int) -> Any:
        """
        Raises:
            ValueError: tokens would be removed that stand before one that was dropped.
        """
        removed = abs(tokens_to_remove)
        for entries in notes.all:
            left = self.cache.get_seq_length(entries.first) - removed
            if removed and left < entries.fixed:
                raise ValueError(
                    f"crop({tokens_to_remove}) would reach into a prompt whose visual tokens were dropped; remove at "
                    f"most the last {left + removed - entries.fixed} tokens, or run the shorter prompt again"
                )
        return lambda: notes.change(lambda entries: entries.crop(self.cache.get_seq_length(entries.first)))


FOLLOWED = ("reorder_cache", "batch_select_indices", "batch_repeat_interleave", "reset", "crop")


def notes_on(cache: Any) -> CacheNotes | None:
    """The notes on a cache; None if there are none, or no cache."""
    return getattr(cache, NOTES, None)


def take_notes(cache: Any) -> CacheNotes:
    """The notes on a cache, from now on kept in step with it."""
    if notes_on(cache) is None:
        setattr(cache, NOTES, CacheNotes())
        for name in FOLLOWED:
            if hasattr(type(cache), name):
                setattr(cache, name, Followed(cache, name))
    return getattr(cache, NOTES)


def with_cache(call: dict[str, Any], language: Any) -> None:
    """Make the KV cache that the decoder would make for itself, to have one to leave notes on."""
    use_cache = call.get("use_cache")
    if use_cache is None:
        use_cache = language.config.use_cache
    if call.get(CACHE) is None and use_cache and not checkpoints_layers(language):
        from transformers import DynamicCache  # not before a model is there

        call[CACHE] = DynamicCache(config=language.config)


def check_earlier(mask: Any, tokens: int, cache: Any) -> None:
    """Compare what a call says of earlier tokens with what its cache stands for.

    Args:
        mask: [B, earlier + new], the caller's mask of the whole conversation; one of another form says nothing.
        tokens: how many new tokens the call brings.

    Raises:
        ValueError: they differ.
    """
    if cache is None or not isinstance(mask, Tensor) or mask.ndim != 2:
        return
    notes, cached, before = notes_on(cache), cache.get_seq_length(), mask.shape[1] - tokens
    if notes is not None and notes.prompt is not None:
        if before != cached + notes.dropped:
            raise ValueError(
                f"the call assumes {before} earlier tokens, but the KV cache represents {cached + notes.dropped}; "
                "pass the attention_mask of the whole conversation, image placeholders included"
            )
    elif notes is None and isinstance(cached, int) and cached and before > cached:
        raise ValueError(
            f"the call assumes {before} earlier tokens, but the KV cache holds {cached} and no record of "
            "dropped ones; copy a cache with copy.deepcopy, which keeps this record"
        )


def flat_mask(call: dict[str, Any]) -> Tensor | None:
    """The call's attention mask, [B, S].

    Raises:
        ValueError: it was prepared for attention already.
    """
    mask = call.get("attention_mask")
    if mask is not None and (isinstance(mask, dict) or mask.ndim != 2):
        shape = "per layer type" if isinstance(mask, dict) else f"of shape {tuple(mask.shape)}"
        raise ValueError(
            f"an attention_mask {shape} cannot follow dropped tokens; pass [batch, length], "
            "and in generate() no static cache"
        )
    return mask


def split_mask(
    mask: Tensor | None, past: Entries | None, cached: int, rows: int, length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """-> masks of the cached entries [B, cached] and of the new tokens [B, length], from the caller's whole mask."""
    ones = torch.ones(rows, cached + length, dtype=torch.long if mask is None else mask.dtype, device=device)
    described = past.length if past is not None else 0
    seen = ones if mask is None else mask[:, (past.dropped if past is not None else 0) :]
    if past is not None:
        known = ones[:, :described] if past.real is None else past.real.to(ones)
        seen = torch.cat([known, seen[:, described:]], dim=1)
    return seen[:, :cached], seen[:, cached:]
