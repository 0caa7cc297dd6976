"""The prompt stage for transformers' classes: drops the placeholders that lost their token.

On the way into the model this stage has images and videos encoded, takes the pruned placeholders out of ids, mask,
labels and everything else that is aligned with tokens, and re-indexes positions (under M-RoPE kept tokens retain
theirs). Later calls on the same KV cache come with the caller's longer mask and positions, which are translated by the
notes on the cache.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowcut.compat import CACHE, rename_cache
from flowcut.hooks.base import Stage
from flowcut.hooks.cache_notes import PAST, Past, flat_mask, realign, split_mask, with_cache
from flowcut.hooks.packing import ALIGNED, IMAGE_INDEX, Aligned, pack, shorten_aligned
from flowcut.hooks.placeholders import SPANS, TRACE, Encoding, Modality, PlaceholderSpan, put_spans
from flowcut.hooks.session import Session

CLOSED = "flowcut_closed"
"""Keyword argument by which the outer model tells the inner one that the call was translated already."""


class PromptStage(Stage):
    """Hooks on a model for conditional generation and on the model inside, so that callers may enter at either.

    Args:
        mrope: whether positions have axes for time, height and width.
        aligned: what else the family's forward takes that is aligned with tokens; see
            `shorten_aligned`.
    """

    def __init__(
        self,
        session: Session,
        model: Any,
        inner: Any,
        modalities: Sequence[Modality],
        mrope: bool = False,
        aligned: Mapping[str, Aligned] | None = None,
    ):
        super().__init__()
        self.session = session
        self.model = model
        self.inner = inner
        self.modalities = {modality.name: modality for modality in modalities}
        self.mrope = mrope
        self.aligned = {**ALIGNED, **({"position_ids": Aligned(0, axis=2)} if mrope else {}), **(aligned or {})}

    def install(self) -> None:
        for module in {id(module): module for module in (self.model, self.inner)}.values():
            self.undo.append(module.register_forward_pre_hook(self.drop_pruned_placeholders, with_kwargs=True).remove)
        for modality in self.modalities.values():
            self.replace(self.inner, modality.method, Encoding(self.session, self.inner, modality))
        if hasattr(self.model, "_expand_inputs_for_generation"):
            # generate() repeats encoded images for beams by counting their placeholders, which no longer match.
            self.replace(self.model, "_expand_inputs_for_generation", self.expand)

    @torch.compiler.disable
    def drop_pruned_placeholders(
        self, module: Any, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
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
            realign(call, name, past)
        pruned, image_index = self.placed(call)
        if image_index is not None and self.session.watches_decoder:
            call[IMAGE_INDEX] = image_index
        if past is None and pruned is None:
            if IMAGE_INDEX in call and self.mrope:
                self.place(call, name, past)  # while all of the prompt is there to count by
            return
        call[CLOSED] = True
        mask = flat_mask(call)
        rows, length = call[name].shape[:2]
        device = call[name].device
        cached = cache.get_seq_length() if cache is not None else 0
        padded = mask is not None or (past is not None and past.mask is not None)
        if self.mrope:
            self.place(call, name, past)
        seen, new = split_mask(mask, past, cached, rows, length, device)
        if pruned is not None:
            keep = new.bool() & ~pruned
            if isinstance(call.get("logits_to_keep"), Tensor):
                raise ValueError("logits_to_keep as a tensor of positions cannot follow dropped tokens; pass a number")
            index, real = pack(keep, left=not bool((new[:, -1] == 0).any()))
            padded = padded or not bool(real.all())
            pad = 1 if self.inner.config.image_token_id == 0 else 0
            # Zeros for embeddings, because the model finds placeholders among them by comparing.
            tokens = {"input_ids": Aligned(pad), "inputs_embeds": Aligned(0)}
            shorten_aligned(call, {**tokens, **self.aligned}, index, real)
            new = real.to(new.dtype)
        whole = torch.cat([seen, new], dim=1)
        call["attention_mask"] = whole if padded else None
        counted = (whole.long().cumsum(dim=1) - 1).clamp_min(0)[:, cached:]
        if not self.mrope:
            call["position_ids"] = counted
        elif call.get("position_ids") is not None:
            # Before the three axes stands the text's count, by which masks are made: it must have no gaps.
            axes = call["position_ids"][-3:].expand(3, rows, -1)
            call["position_ids"] = torch.cat([counted[None], axes])
        if pruned is not None:
            dropped = length - new.shape[1] + (past.dropped if past is not None else 0)
            self.note(call, Past(dropped, whole.shape[1], whole if padded else None))

    def encode(self, call: dict[str, Any]) -> None:
        """Swap pixels for the features of the tokens that remain of them."""
        outputs = {}
        for modality in self.modalities.values():
            if modality.former is not None and call.get(modality.former) is not None:
                call[modality.pixels] = call.pop(modality.former)
            names = (modality.pixels, *modality.more)
            if call.get(modality.pixels) is None:
                continue
            if len(call[modality.pixels]) == 0:  # rows of text alone: the same as without pixels
                for name in names:
                    if not isinstance(call.get(name), Tensor) or len(call[name]) == 0:
                        call.pop(name, None)
                continue
            given = {name: call[name] for name in names if call.get(name) is not None}
            outputs[modality.name] = getattr(self.inner, modality.method)(**given, return_dict=True)
        if outputs:
            for modality in self.modalities.values():
                for name in (modality.pixels, *(() if self.mrope else modality.more)):
                    call.pop(name, None)
            call["mm_encoder_outputs"] = {**(call.get("mm_encoder_outputs") or {}), **outputs}

    def placed(self, call: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """-> placeholders that lost their token [B, S], None if none did; and which image each one shows [B, S]."""
        pruned, image_index, images = None, None, 0
        self.join_traces(call.get("mm_encoder_outputs") or {})
        for modality in self.modalities.values():
            outputs = (call.get("mm_encoder_outputs") or {}).get(modality.name)
            spans: list[PlaceholderSpan] | None = getattr(outputs, SPANS, None)
            if not spans:
                continue
            at = self.placeholders(modality, call.get("input_ids"), call.get("inputs_embeds"))
            stays = torch.cat([span.stays for span in spans]).to(at.device)
            found, closed = int(at.sum()), int(at.sum()) != len(stays)
            if closed and found != int(stays.sum()):
                expected = ", ".join(str(len(span.stays)) for span in spans[:4]) + (", ..." if len(spans) > 4 else "")
                what = f"{len(spans)} {modality.name}s or frames"
                raise ValueError(f"{found} {modality.name} placeholders for {what}; write {expected}")
            numbers = []
            for span in spans:
                number = -1 if span.tokens is None else images
                images += span.tokens is not None
                length = len(span.features) if closed else len(span.stays)
                numbers.append(torch.full((length,), number, device=at.device))
            if closed:
                stays = stays[stays]
            image_index = torch.full(at.shape, -1, device=at.device) if image_index is None else image_index
            image_index[at] = torch.cat(numbers)
            if not bool(stays.all()):
                pruned = torch.zeros_like(at) if pruned is None else pruned
                pruned[at] = ~stays
        return pruned, image_index

    def join_traces(self, encoded: dict[str, Any]) -> None:
        """Where a call brings images and videos, tell of both in one trace."""
        found = [getattr(encoded.get(name), TRACE, None) for name in self.modalities]
        traces = [trace for trace in found if trace is not None]
        if len(traces) < 2 or self.session.trace not in traces:
            return
        whole, tokens = copy.deepcopy(traces[0]), list(traces[0].tokens)
        for trace in traces[1:]:
            offset = torch.tensor([len(whole.entering[0]), 0])
            whole.join(trace)
            tokens += [torch.where(places >= 0, places + offset.to(places), places) for places in trace.tokens]
        whole.place(tokens)
        self.session.encoded(whole)

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
        encoded_here = {name: encoded.pop(name) for name in list(encoded) if getattr(encoded[name], SPANS, None)}
        if expand_size == 1 or not encoded_here:
            return original(self.model, expand_size, is_encoder_decoder, input_ids, **kwargs)
        for name, outputs in encoded_here.items():
            modality = self.modalities[name]
            at = self.placeholders(modality, input_ids, kwargs.get("inputs_embeds"))
            waiting = iter(getattr(outputs, SPANS))
            repeated: list[PlaceholderSpan] = []
            for placeholders in at.sum(dim=1).tolist():
                taken: list[PlaceholderSpan] = []
                while sum(len(span.stays) for span in taken) < placeholders:
                    taken.append(next(waiting))
                repeated += taken * expand_size
            put_spans(outputs, repeated, modality.joined)
            getattr(outputs, TRACE).place([span.tokens for span in repeated if span.tokens is not None])
        kwargs["mm_encoder_outputs"] = encoded
        input_ids, kwargs = original(self.model, expand_size, is_encoder_decoder, input_ids, **kwargs)
        kwargs["mm_encoder_outputs"] |= encoded_here
        return input_ids, kwargs
