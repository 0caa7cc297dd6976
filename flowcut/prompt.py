"""The prompt stage for transformers' classes: closes the sequence up around placeholders that lost their token.

The caller keeps writing one placeholder per visual token of the unpruned model. On the way into the model this stage
has images and videos encoded, takes the surplus placeholders out of ids, mask and labels, and numbers positions anew
(or, with M-RoPE, keeps those of what is left). Later calls on the same KV cache come with the caller's longer mask and
positions, which are translated; what is needed for that lies on the cache itself and so lives, is copied and dies with
the conversation.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowcut.compat import CACHE, rename_cache
from flowcut.decoder import IMAGE_INDEX, with_cache
from flowcut.sequence import IGNORE_INDEX, pack
from flowcut.stage import Stage
from flowcut.trace import Trace

if TYPE_CHECKING:
    from flowcut.attach import Handle

CLOSED = "flowcut_closed"
"""Keyword argument by which the outer model tells the inner one that the call was translated already."""
PAST = "flowcut_past"
"""Attribute of a KV cache that holds its `Past`."""
TRACE = "flowcut_trace"
"""Attribute of an encoder's output that holds what the pruner did in it."""
UNITS = "flowcut_units"
"""Attribute of an encoder's output that holds its list of `Unit`."""


@dataclass
class Unit:
    """A run of placeholders in the prompt and the features that are left for it: an image, or a frame of a video.

    Attributes:
        features: [V, D].
        stays: [P] bool, which of its placeholders keep their place.
        tokens: [V, 2], encoder row and grid position of each feature (see `Trace.tokens`); None for what is no image,
            such as the token that ends a video: it counts as text.
    """

    features: Tensor
    stays: Tensor
    tokens: Tensor | None


@dataclass(frozen=True)
class Past:
    """How a KV cache relates to the conversation as the caller counts it.

    Attributes:
        dropped: tokens of the conversation that have no entry in the cache.
        length: entries the cache had when the last of them was dropped; later ones stand one to one.
        mask: [B, length], 1 where such an entry is real; None if all are.
    """

    dropped: int
    length: int
    mask: Tensor | None


@dataclass
class Modality:
    """How one family encodes images (or videos) and marks them in a prompt. Derive one for each family.

    Attributes:
        name: "image" or "video", the key in `mm_encoder_outputs`.
        method: the inner model's method that encodes them.
        pixels: the argument that brings them; `more` are the method's other arguments.
        token: the config field with the placeholder's id.
        joined: whether the model wants features as one tensor [1, V, D] instead of a list.
        former: an older name of the argument `pixels`, which processors still use.
    """

    name: str = "image"
    method: str = "get_image_features"
    pixels: str = "pixel_values"
    more: tuple[str, ...] = ("vision_feature_layer", "vision_feature_select_strategy")
    token: str = "image_token_id"
    joined: bool = False
    former: str | None = None

    def encode(self, handle: Handle, inner: Any, call: dict[str, Any]) -> tuple[Any, list[Unit], Trace | None]:
        """Run the encoder. -> its output, one unit for each stretch of placeholders, and what the pruner did."""
        raise NotImplementedError

    def original(self, inner: Any, call: dict[str, Any], **overrides: Callable[..., Any]) -> Any:
        """The class's own method, on a shallow copy of the model in which some of its other methods are replaced."""
        view = copy.copy(inner) if overrides else inner
        view.__dict__.update(overrides)
        return getattr(type(inner), self.method)(view, **call)


def row_units(trace: Trace, features: Sequence[Tensor], special: int) -> list[Unit]:
    """One unit per encoder row, of features [T (+ padding), D] of which `special` stand ahead of the patches."""
    units = []
    for row, (kept, whole) in enumerate(zip(trace.final, trace.entering[0], strict=True)):
        count, placeholders = len(kept) + special, max(whole, len(kept)) + special
        stays = torch.arange(placeholders, device=kept.device) < count
        tokens = torch.cat([kept.new_full((special,), -1), kept])
        units.append(Unit(features[row][:count], stays, torch.stack([torch.full_like(tokens, row), tokens], dim=1)))
    return units


class Encoding:
    """Stands on the inner model in the place of `get_image_features`; notes what is left on the output."""

    def __init__(self, handle: Handle, inner: Any, modality: Modality):
        self.handle = handle
        self.inner = inner
        self.modality = modality
        # generate() picks its arguments by the signature.
        signature = inspect.signature(getattr(type(inner), modality.method))
        self.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop(IMAGE_INDEX, None)
        call = self.__signature__.bind(*args, **kwargs).arguments
        call |= call.pop("kwargs", {})
        wants_tuple = call.get("return_dict") is False
        outputs, units, trace = self.modality.encode(self.handle, self.inner, {**call, "return_dict": True})
        if trace is not None:
            put_units(outputs, units, self.modality.joined)
            trace.tokens = [unit.tokens for unit in units if unit.tokens is not None]
            setattr(outputs, TRACE, trace)
        return outputs.to_tuple() if wants_tuple else outputs


def put_units(outputs: Any, units: list[Unit], joined: bool) -> None:
    setattr(outputs, UNITS, units)
    features = [unit.features for unit in units]
    outputs.pooler_output = torch.cat(features)[None] if joined else features


class PromptStage(Stage):
    """Hooks on a model for conditional generation and on the model inside, so that callers may enter at either."""

    def __init__(self, handle: Handle, model: Any, inner: Any, modalities: Sequence[Modality], mrope: bool = False):
        super().__init__()
        self.handle = handle
        self.model = model
        self.inner = inner
        self.modalities = {modality.name: modality for modality in modalities}
        self.mrope = mrope

    def install(self) -> None:
        for module in {id(module): module for module in (self.model, self.inner)}.values():
            self.undo.append(module.register_forward_pre_hook(self.close_up, with_kwargs=True).remove)
        for modality in self.modalities.values():
            self.replace(self.inner, modality.method, Encoding(self.handle, self.inner, modality))
        if hasattr(self.model, "_expand_inputs_for_generation"):
            # generate() repeats encoded images for beams by counting their placeholders, which no longer match.
            self.replace(self.model, "_expand_inputs_for_generation", self.expand)

    def replace(self, module: Any, name: str, method: Any) -> None:
        module.__dict__[name] = method
        self.undo.append(lambda: module.__dict__.pop(name))

    @torch.compiler.disable
    def close_up(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Forward pre-hook: the call as the model has to see it."""
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        rename_cache(call)
        if not call.get(CLOSED):
            self.translate(call)
        if module is self.inner:
            call.pop(CLOSED, None)
        return (), call

    def translate(self, call: dict[str, Any]) -> None:
        """Rewrite a call in place; one that drops nothing, shows nothing and continues nothing stays as it is."""
        name = "input_ids" if call.get("input_ids") is not None else "inputs_embeds"
        if call.get(name) is None:
            return
        self.encode(call)
        cache = call.get(CACHE)
        past = getattr(cache, PAST, None)
        if past is not None:
            _realign(call, name, past)
        surplus, image_index = self.placed(call)
        if image_index is not None and self.handle.watches_language:
            call[IMAGE_INDEX] = image_index
        if past is None and surplus is None:
            if IMAGE_INDEX in call and self.mrope:
                self.place(call, name, past)  # while all of the prompt is there to count by
            return
        call[CLOSED] = True
        mask = _flat_mask(call)
        rows, length = call[name].shape[:2]
        device = call[name].device
        cached = cache.get_seq_length() if cache is not None else 0
        padded = mask is not None or (past is not None and past.mask is not None)
        if self.mrope:
            self.place(call, name, past)
        seen, new = _split(mask, past, cached, rows, length, device)
        if surplus is not None:
            keep = new.bool() & ~surplus
            if isinstance(call.get("logits_to_keep"), Tensor):
                raise ValueError("logits_to_keep as a tensor of positions cannot follow dropped tokens; pass a number")
            index, real = pack(keep, left=not bool((new[:, -1] == 0).any()))
            padded = padded or not bool(real.all())
            if name == "input_ids":
                pad = 1 if self.inner.config.image_token_id == 0 else 0
                call[name] = call[name].gather(1, index).masked_fill(~real, pad)
            else:
                # Zeros, because the model finds placeholders among embeddings by comparing them.
                row = torch.arange(rows, device=device)[:, None]
                call[name] = call[name][row, index].masked_fill(~real[..., None], 0)
            if call.get("labels") is not None:
                call["labels"] = call["labels"].gather(1, index).masked_fill(~real, IGNORE_INDEX)
            if call.get(IMAGE_INDEX) is not None:
                call[IMAGE_INDEX] = call[IMAGE_INDEX].gather(1, index).masked_fill(~real, -1)
            if self.mrope and call.get("position_ids") is not None:
                positions = call["position_ids"].expand(-1, rows, -1)
                call["position_ids"] = positions.gather(2, index.expand(len(positions), -1, -1)).masked_fill(~real, 0)
            new = real.to(new.dtype)
        whole = torch.cat([seen, new], dim=1)
        call["attention_mask"] = whole if padded else None
        counted = (whole.long().cumsum(dim=1) - 1).clamp_min(0)[:, cached:]
        if not self.mrope:
            call["position_ids"] = counted
        elif call.get("position_ids") is not None:
            # In front of the three axes stands the text's count, by which masks are made: it must have no gaps.
            axes = call["position_ids"][-3:].expand(3, rows, -1)
            call["position_ids"] = torch.cat([counted[None], axes])
        if surplus is not None:
            dropped = length - new.shape[1] + (past.dropped if past is not None else 0)
            self.note(call, Past(dropped, whole.shape[1], whole if padded else None))

    def encode(self, call: dict[str, Any]) -> None:
        """Swap pixels for the features of the tokens that are left of them."""
        outputs = {}
        for modality in self.modalities.values():
            if modality.former is not None and call.get(modality.former) is not None:
                call[modality.pixels] = call.pop(modality.former)
            if call.get(modality.pixels) is None:
                continue
            names = (modality.pixels, *modality.more)
            given = {name: call[name] for name in names if call.get(name) is not None}
            outputs[modality.name] = getattr(self.inner, modality.method)(**given, return_dict=True)
        if outputs:
            for modality in self.modalities.values():
                for name in (modality.pixels, *(() if self.mrope else modality.more)):
                    call.pop(name, None)
            call["mm_encoder_outputs"] = {**(call.get("mm_encoder_outputs") or {}), **outputs}

    def placed(self, call: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """-> placeholders that lost their token [B, S], None if none did; and which image each one shows [B, S]."""
        surplus, image_index, images = None, None, 0
        self.join_traces(call.get("mm_encoder_outputs") or {})
        for modality in self.modalities.values():
            outputs = (call.get("mm_encoder_outputs") or {}).get(modality.name)
            units: list[Unit] | None = getattr(outputs, UNITS, None)
            if not units:
                continue
            at = self.placeholders(modality, call.get("input_ids"), call.get("inputs_embeds"))
            stays = torch.cat([unit.stays for unit in units]).to(at.device)
            found, closed = int(at.sum()), int(at.sum()) != len(stays)
            if closed and found != int(stays.sum()):
                expected = ", ".join(str(len(unit.stays)) for unit in units[:4]) + (", ..." if len(units) > 4 else "")
                what = f"{len(units)} {modality.name}s or frames"
                raise ValueError(f"{found} {modality.name} placeholders for {what}; write {expected}")
            numbers = []
            for unit in units:
                number = -1 if unit.tokens is None else images
                images += unit.tokens is not None
                length = len(unit.features) if closed else len(unit.stays)
                numbers.append(torch.full((length,), number, device=at.device))
            if closed:
                stays = stays[stays]
            image_index = torch.full(at.shape, -1, device=at.device) if image_index is None else image_index
            image_index[at] = torch.cat(numbers)
            if not bool(stays.all()):
                surplus = torch.zeros_like(at) if surplus is None else surplus
                surplus[at] = ~stays
        return surplus, image_index

    def join_traces(self, encoded: dict[str, Any]) -> None:
        """Where a call brings images and videos, tell of both in one trace."""
        found = [getattr(encoded.get(name), TRACE, None) for name in self.modalities]
        traces = [trace for trace in found if trace is not None]
        if len(traces) < 2 or self.handle.trace not in traces:
            return
        whole = copy.deepcopy(traces[0])
        for trace in traces[1:]:
            rows = len(whole.entering[0])
            whole.join(trace)
            for tokens in trace.tokens:
                whole.tokens.append(torch.where(tokens >= 0, tokens + tokens.new_tensor([rows, 0]), tokens))
        self.handle.trace = whole

    def placeholders(self, modality: Modality, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        token = getattr(self.inner.config, modality.token)
        if input_ids is not None and input_ids.numel():
            return input_ids == token
        assert inputs_embeds is not None
        embedding = self.inner.get_input_embeddings()(torch.tensor(token, device=inputs_embeds.device))
        return (inputs_embeds == embedding).all(dim=-1)

    def place(self, call: dict[str, Any], name: str, past: Past | None) -> None:
        """M-RoPE positions, which depend on the whole prompt, while it is still whole."""
        types = call.pop("mm_token_type_ids", None)
        given = call.get("position_ids")
        if given is None:
            mask, cache = call.get("attention_mask"), call.get(CACHE)
            rows, length = call[name].shape[:2]
            if mask is None and past is not None:
                earlier = (cache.get_seq_length() if cache is not None else 0) + past.dropped
                mask = torch.ones(rows, earlier + length, dtype=torch.long, device=call[name].device)
            given = self.inner.compute_3d_position_ids(
                input_ids=call.get("input_ids"),
                inputs_embeds=call[name] if name == "inputs_embeds" else self.inner.get_input_embeddings()(call[name]),
                image_grid_thw=call.get("image_grid_thw"),
                video_grid_thw=call.get("video_grid_thw"),
                attention_mask=mask,
                mm_token_type_ids=types,
                **{CACHE: cache},
            )
            if given is not None:
                given = given[..., -length:]
        elif given.ndim == 2:
            given = given[None]
        call["position_ids"] = given

    def note(self, call: dict[str, Any], past: Past) -> None:
        """Leave the note on the cache this forward fills. Made here if the model would make it, to have one to mark."""
        with_cache(call, self.inner.language_model)
        if call.get(CACHE) is not None:
            setattr(call[CACHE], PAST, past)

    def expand(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """generate()'s repetition of inputs for beams and several returned sequences, with fewer features per image."""
        original = type(self.model)._expand_inputs_for_generation
        encoded = dict(kwargs.get("mm_encoder_outputs") or {})
        ours = {name: encoded.pop(name) for name in list(encoded) if getattr(encoded[name], UNITS, None)}
        if expand_size == 1 or not ours:
            return original(self.model, expand_size, is_encoder_decoder, input_ids, **kwargs)
        for name, outputs in ours.items():
            modality = self.modalities[name]
            at = self.placeholders(modality, input_ids, kwargs.get("inputs_embeds"))
            waiting = iter(getattr(outputs, UNITS))
            repeated: list[Unit] = []
            for placeholders in at.sum(dim=1).tolist():
                own: list[Unit] = []
                while sum(len(unit.stays) for unit in own) < placeholders:
                    own.append(next(waiting))
                repeated += own * expand_size
            put_units(outputs, repeated, modality.joined)
            getattr(outputs, TRACE).tokens = [unit.tokens for unit in repeated if unit.tokens is not None]
        kwargs["mm_encoder_outputs"] = encoded
        input_ids, kwargs = original(self.model, expand_size, is_encoder_decoder, input_ids, **kwargs)
        kwargs["mm_encoder_outputs"] |= ours
        return input_ids, kwargs


def _realign(call: dict[str, Any], name: str, past: Past) -> None:
    """Make the new tokens begin where the cache ends.

    generate() counts by the cache, which is shorter than the conversation it stands for: going on with an old cache
    it passes `dropped` tokens again that are cached already.
    """
    cache, tokens = call[CACHE], call[name]
    mask, positions = _flat_mask(call), call.get("position_ids")
    if mask is not None:
        before = mask.shape[1] - tokens.shape[1]
    elif positions is not None:
        before = int(positions[0].max()) + 1 - tokens.shape[1]
    else:
        return
    cached = cache.get_seq_length()
    if before == cached and tokens.shape[1] > past.dropped:
        for key in ("position_ids", "mm_token_type_ids", "labels"):
            if call.get(key) is not None and call[key].shape[-1] == tokens.shape[1]:
                call[key] = call[key][..., past.dropped :]
        call[name] = tokens[:, past.dropped :]
    elif before != cached + past.dropped:
        raise ValueError(
            f"the call speaks of {before} earlier tokens, but the KV cache stands for {cached + past.dropped}; pass "
            "the attention_mask of the whole conversation, image placeholders included"
        )


def _flat_mask(call: dict[str, Any]) -> Tensor | None:
    mask = call.get("attention_mask")
    if mask is not None and (isinstance(mask, dict) or mask.ndim != 2):
        shape = "per layer type" if isinstance(mask, dict) else f"of shape {tuple(mask.shape)}"
        raise ValueError(
            f"an attention_mask {shape} cannot follow dropped tokens; pass [batch, length], "
            "and in generate() no static cache"
        )
    return mask


def _split(
    mask: Tensor | None, past: Past | None, cached: int, rows: int, length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """-> masks of the cached entries [B, cached] and of the new tokens [B, length], from the caller's whole mask."""
    ones = torch.ones(rows, cached + length, dtype=torch.long if mask is None else mask.dtype, device=device)
    described = past.length if past is not None else 0
    seen = ones if mask is None else mask[:, (past.dropped if past is not None else 0) :]
    if past is not None:
        known = ones[:, :described] if past.mask is None else past.mask.to(ones)
        seen = torch.cat([known, seen[:, described:]], dim=1)
    return seen[:, :cached], seen[:, cached:]
