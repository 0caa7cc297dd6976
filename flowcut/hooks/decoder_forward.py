"""One forward of a decoder that brings images, or goes on with a cache that was cut: columns, masks, positions.

Layers after a cut see fewer tokens than those before it, so from there on mask and position embeddings are made anew,
and in the KV cache the layers have different lengths. What is needed to go on with such a cache is noted on it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowcut.compat import CACHE, causal_mask, checkpoints_layers
from flowcut.hooks.attention import AttentionInputsCaptured
from flowcut.hooks.cache_notes import CacheNotes, Entries, notes_on, take_notes
from flowcut.hooks.packing import AFTER, BLOCKS, BY_POSITION, FLAT_MASK, Kept, last_of, pack, restarts, tail_of
from flowcut.hooks.parts import Decoder
from flowcut.hooks.session import Session
from flowcut.hooks.shown_decoder_layer import ShownDecoderLayer
from flowcut.pruner import Cut, LanguageView, Layout
from flowcut.trace import StageTrace

SLIDING = "sliding_attention"
"""Name in `config.layer_types` of layers with a window."""


class DecoderForward:
    """One forward of a decoder: which columns remain, where the images stand in them, and how to call the layers."""

    def __init__(self, session: Session, decoder: Decoder, call: dict[str, Any], image_index: Tensor | None):
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
        self.capturing = False
        self.made: dict[Any, Any] = {}
        self.states: list[_State] = []
        self.tail = self.length
        self.seen: tuple[Tensor, Tensor, Tensor, float] | None = None
        self.cut: Cut | None = None
        self.trace: StageTrace | None = None
        self.wanted: Kept | None = None
        self.layer = 0
        self.deepstack = len(call.get("deepstack_visual_embeds") or ())
        self.memory: dict[str, Any] = {}
        if image_index is not None and bool((image_index >= 0).any()):
            self.refuse_packed()
            self.find_images(image_index)

    def text_positions(self, given: Tensor | None) -> Tensor:
        """[B or 1, S], where each token stands in the text: as given, or by its column."""
        if given is None or (given.ndim == 3 and len(given) != 4):  # three axes of M-RoPE jump at every image
            start = self.cached(0)
            return torch.arange(start, start + self.length, device=self.device)[None]
        return given[0] if given.ndim == 3 else given

    def refuse_packed(self) -> None:
        if bool(restarts(self.position_ids, self.real).any()):
            raise ValueError(
                "position_ids that restart or jump (packed samples) cannot follow tokens dropped inside the language "
                "model; give each sample a row of its own, or use a method that cuts in the encoder alone"
            )

    def find_images(self, image_index: Tensor) -> None:
        """Columns of every image's tokens, by image number, from image_index [B, S]. Beams may share an image."""
        order = []
        for row, line in enumerate(image_index):
            for number in line[line >= 0].unique().tolist():
                order.append((number, row, (line == number).nonzero().flatten()))
        order.sort(key=lambda entry: entry[:2])
        self.images = tuple(number for number, *_ in order)
        self.samples = tuple(row for _, row, _ in order)
        self.counts = tuple(len(columns) for _, _, columns in order)
        self.initial = self.counts
        self.unpruned_tokens = tuple(self.encoded(*entry) for entry in zip(self.images, self.counts, strict=True))
        self.columns = nn.utils.rnn.pad_sequence([columns for *_, columns in order], batch_first=True)
        self.positions = torch.arange(max(self.counts), device=self.device).expand(len(order), -1)
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
        return self.trace is not None and any(module is attention for attention in self.decoder.attentions)

    def observe(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        if self.capturing:
            raise AttentionInputsCaptured(query, key, value, scale)
        self.seen = (query.detach(), key.detach(), value.detach(), scale)
        if not self.session.pruner.reads_hidden:
            self.ask(None)

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
        kind = _kind(self.decoder.model.config, layer)
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
        kind = _kind(self.decoder.model.config, layer)
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

    def after_layer(self, layer: int, hidden: Tensor) -> Tensor:
        """The layer's output, shortened if the pruner says so."""
        if self.trace is None:
            return hidden
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
        # What layers up to this one hold is noted before it changes; `leave` puts it on the cache.
        self.states.append(self.state(layer))
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
        embeddings = self.given_to(hidden, _kind(self.decoder.model.config, number))
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
                    "not keep as they were; use a DynamicCache, or give the whole conversation in one call"
                )
            key = torch.cat([entry.keys.to(key), key], dim=2)
            value = torch.cat([entry.values.to(value), value], dim=2)
        return query, key, value, seen.scaling, embeddings

    def state(self, layer: int) -> _State:
        """What enters the layers up to `layer`."""
        return _State(layer, self.real, self.width, self.tail, self.lost if self.renumber else self.lost.zero_())

    def finish(self) -> None:
        """After the last layer: leave on the cache what going on with it takes."""
        if self.index is None or self.cache is None:
            return
        states = [*self.states, self.state(len(self.decoder.layers))]
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


class _State(NamedTuple):
    """The columns that enter the layers up to `layer`: which are real, their number, how many follow the last one that
    was dropped, and by how much position ids of later tokens fall [B].
    """

    layer: int
    real: Tensor | None
    width: int
    tail: int
    shift: Tensor


def _kind(config: Any, layer: int) -> str:
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
