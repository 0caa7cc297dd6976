"""How a decoder's layers are called in one forward: which columns remain, their masks and position embeddings.

Layers after a cut see fewer tokens than those before it, and a KV cache may hold other entries in each layer. So mask
and position embeddings are made anew wherever they differ from what the decoder gives its layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowcut.compat import CACHE, causal_mask, checkpoints_layers
from flowcut.hooks.cache_notes import CacheNotes, Entries, notes_on
from flowcut.hooks.packing import AFTER, BLOCKS, FLAT_MASK, Kept
from flowcut.hooks.parts import Decoder
from flowcut.hooks.session import Session
from flowcut.trace import StageTrace

SLIDING = "sliding_attention"
"""Name in `config.layer_types` of layers with a window."""


class LayerCalls:
    """One forward of a decoder, from which nothing is dropped here: subclasses say what is, and show it to pruners.

    Attributes:
        past: what is noted of the KV cache.
        real: [B, S'], False on padding, of the columns that remain; None if none is padded. `entered` is that of all.
        index: [B, S'], the columns that remain; None for all.
        trace: what became of images that the forward brings; None if it brings none.
        layer: the layer under way.
    """

    def __init__(self, session: Session, decoder: Decoder, call: dict[str, Any]):
        self.session = session
        self.decoder = decoder
        # Checkpointed layers leave alone the cache that the model makes for them all the same (SmolVLM).
        self.cache = None if checkpoints_layers(decoder.model) else call.get(CACHE)
        self.past = notes_on(self.cache) or CacheNotes()
        self.after: int = call.pop(AFTER, 0)
        self.mask: Tensor | None = call.get(FLAT_MASK if FLAT_MASK in call else "attention_mask")
        self.blocks: Tensor | None = call.get(BLOCKS)
        tokens = call["inputs_embeds"] if call.get("inputs_embeds") is not None else call["input_ids"]
        self.rows, self.length = tokens.shape[:2]
        self.device = tokens.device
        if isinstance(self.mask, dict) or (self.mask is not None and self.mask.ndim != 2):
            raise ValueError(
                "a prepared attention mask (static cache, packed sequences) cannot follow tokens dropped inside the "
                "language model; pass attention_mask as [batch, length], and in generate() no static cache"
            )
        padded = next((entries.real for entries in self.past.layers if entries.real is not None), None)
        if padded is not None and padded.shape[0] != self.rows:
            raise ValueError(f"the KV cache belongs to a batch of {padded.shape[0]}, the call to one of {self.rows}")
        new = None if self.mask is None else self.mask[:, -self.length :].bool()
        self.real = self.entered = None if new is None or bool(new.all()) else new
        self.index: Tensor | None = None
        self.renumber = False
        self.position_ids = self.text_positions(call.get("position_ids"))
        self.given: dict[str, Any] = {}
        self.call: dict[str, Any] = {}
        self.rotary: Any = None
        self.embedded: Tensor | None = None
        self.made: dict[Any, Any] = {}
        self.trace: StageTrace | None = None
        self.wanted: Kept | None = None
        self.layer = 0
        self.deepstack = len(call.get("deepstack_visual_embeds") or ())

    def observes(self, module: nn.Module) -> bool:
        """Whether this forward wants to see what an attention module is called with."""
        return False

    def observe(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> None:
        """Called by the tap of an observed module."""

    def after_layer(self, layer: int, hidden: Tensor) -> Tensor:
        """The layer's output, shortened if tokens are dropped there."""
        return hidden

    def finish(self) -> None:
        """After the last layer: leave on the cache what going on with it takes."""

    def text_positions(self, given: Tensor | None) -> Tensor:
        """[B or 1, S], where each token stands in the text: as given, or by its column."""
        if given is None or (given.ndim == 3 and len(given) != 4):  # three axes of M-RoPE jump at every image
            start = self.cached(0)
            return torch.arange(start, start + self.length, device=self.device)[None]
        return given[0] if given.ndim == 3 else given

    def cached(self, layer: int) -> int:
        return self.cache.get_seq_length(layer) if self.cache is not None else 0

    def real_entries(self, layer: int, cached: int, width: int) -> Tensor | None:
        """[B, cached + width], False on padding, of a layer with `cached` entries; None if nothing is padded."""
        entry = self.past.of_layer(layer)
        described = entry.length if entry is not None else 0
        known = entry.real if entry is not None else None
        if known is None and self.real is None and (self.mask is None or bool(self.mask.all())):
            return None
        known = torch.ones(self.rows, described, device=self.device) if known is None else known
        later = torch.ones(self.rows, cached - described, device=self.device)
        if self.mask is not None and cached > described:
            earlier = self.mask[:, : -self.length]
            later = earlier[:, earlier.shape[1] - (cached - described) :]
        new = torch.ones(self.rows, width, device=self.device) if self.real is None else self.real
        whole = torch.cat([known.bool(), later.bool(), new.bool()], dim=1)
        return None if bool(whole.all()) else whole

    def before_layer(self, layer: int, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """What the layer has to be called with, if not with what the decoder gives it."""
        kind = kind_of(self.decoder.model.config, layer)
        self.given[kind], self.call, self.layer = kwargs["position_embeddings"], kwargs, layer
        self.embedded = args[0].detach() if layer == 0 else None
        if self.index is None and self.past.of_layer(layer) is None:
            self.rotary = self.given[kind]
            return None
        mask, self.rotary = self.surroundings(layer, args[0])
        return args, {**kwargs, "attention_mask": mask, "position_embeddings": self.rotary, "position_ids": None}

    def surroundings(self, layer: int, hidden: Tensor) -> tuple[Any, Any]:
        """-> mask and position embeddings of a layer that is to be given `hidden`, the remaining columns."""
        past, cached = self.past.of_layer(layer), self.cached(layer)
        kind = kind_of(self.decoder.model.config, layer)
        key = (past.first if past is not None else -1, cached, hidden.shape[1], kind)
        if key not in self.made:
            whole = self.real_entries(layer, cached, hidden.shape[1])
            blocks = self.blocks_of(cached)
            mask = causal_mask(self.decoder.model.config, hidden, whole, self.cache, layer, kind == SLIDING, blocks)
            self.made[key] = mask, self.embeddings(hidden, past, kind)
        return self.made[key]

    def blocks_of(self, cached: int) -> Tensor | None:
        """[B, cached + S'], the blocks of the remaining columns in a layer with `cached` entries, which are in none."""
        if self.blocks is None:
            return None
        blocks = self.blocks.to(self.device)
        if self.index is not None:
            blocks = blocks.gather(1, self.index)
        if self.real is not None:
            blocks = blocks.masked_fill(~self.real, -1)
        return nn.functional.pad(blocks, (cached, 0), value=-1)

    def embeddings(self, hidden: Tensor, past: Entries | None, kind: str) -> Any:
        """Position embeddings of the remaining columns in a layer: their own, or of positions that are counted anew."""
        shift = past.shift.to(self.device)[:, None] if past is not None and bool(past.shift.any()) else None
        if not self.renumber and shift is None:
            given = self.given_to(hidden, kind)
            return given if self.index is None else tuple(_take(part, self.index) for part in given)
        positions = self.position_ids.expand(self.rows, -1)
        if self.renumber:
            entered = torch.ones_like(positions) if self.entered is None else self.entered.long()
            real = torch.ones(self.rows, self.width, device=self.device) if self.real is None else self.real
            positions = positions.gather(1, entered.argmax(dim=1, keepdim=True)) + real.long().cumsum(dim=1) - 1
        elif self.index is not None:
            positions = positions.gather(1, self.index)
        return self.turns(hidden, (positions if shift is None else positions - shift).clamp_min(0), kind)

    def given_to(self, hidden: Tensor, kind: str) -> Any:
        """Position embeddings that the decoder gives layers of a kind, made here before the first of them runs."""
        if not self.decoder.rotary_by_kind:
            return self.call["position_embeddings"]
        if kind not in self.given:
            self.given[kind] = self.turns(hidden, self.call["position_ids"], kind)
        return self.given[kind]

    def turns(self, hidden: Tensor, positions: Tensor, kind: str) -> Any:
        """Position embeddings of these positions, for layers of a kind."""
        by_kind = {"layer_type": kind} if self.decoder.rotary_by_kind else {}
        # Not through __call__: ZeRO-3 wants the same modules called on all ranks, and another may have nothing to cut.
        return self.decoder.rotary.forward(hidden, position_ids=positions, **by_kind)

    @property
    def lost(self) -> Tensor:
        """[B], how many real tokens of each row were dropped so far."""
        entered = self.length if self.entered is None else self.entered.sum(dim=1)
        remaining = self.width if self.real is None else self.real.sum(dim=1)
        return torch.zeros(self.rows, dtype=torch.long, device=self.device) + entered - remaining

    @property
    def width(self) -> int:
        """How many columns remain."""
        return self.length if self.index is None else self.index.shape[1]


def kind_of(config: Any, layer: int) -> str:
    """How a layer attends: "full_attention" or "sliding_attention", within `config.sliding_window` only."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return str(kinds[layer])
    return SLIDING if getattr(config, "sliding_window", None) is not None else "full_attention"


def _take(embedding: Tensor, index: Tensor) -> Tensor:
    """Gather columns of a position embedding [..., B or 1, S, d] by index [B, S']."""
    *ahead, _, length, width = embedding.shape
    embedding = embedding.expand(*ahead, index.shape[0], length, width)
    where = index[..., None].expand(*ahead, *index.shape, width)
    return embedding.gather(-2, where)
