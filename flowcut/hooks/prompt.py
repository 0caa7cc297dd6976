"""The prompt stage for transformers' classes: drops the placeholders that lost their token.

On the way into the model this stage has images and videos encoded, takes the pruned placeholders out of ids, mask,
labels and everything else that is aligned with tokens, and re-indexes positions (under M-RoPE kept tokens retain
theirs). Later calls on the same KV cache come with the caller's longer mask and positions, which are translated by the
notes on the cache.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowcut.compat import CACHE, rename_cache
from flowcut.hooks.base import Stage, opaque
from flowcut.hooks.cache_notes import (
    Entries,
    check_earlier,
    flat_mask,
    notes_on,
    split_mask,
    take_notes,
    with_cache,
)
from flowcut.hooks.call_context import prompted
from flowcut.hooks.packing import ALIGNED, BY_POSITION, IMAGE_INDEX, Aligned, pack, restarts, shorten_aligned, tail_of
from flowcut.hooks.placeholders import SPANS, TRACE, Encoding, Modality, PlaceholderSpan, placeholders, put_spans
from flowcut.hooks.session import Session, warn_of_embeddings

CLOSED = "flowcut_closed"
"""Keyword argument by which the outer model tells the inner one that the call was translated already."""

RAGGED = (
    "rows of this batch lose different numbers of tokens, and padding in their place would change the state that the "
    "language model's layers without attention keep of earlier turns; go on with each conversation by itself"
)


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
        text = inner.config.get_text_config()
        self.recurrent = "linear_attention" in (getattr(text, "layer_types", None) or ())
        self.aligned = {**ALIGNED, **({"position_ids": Aligned(0, axis=2)} if mrope else {}), **(aligned or {})}

    def install(self) -> None:
        for module in {id(module): module for module in (self.model, self.inner)}.values():
            self.undo.append(module.register_forward_pre_hook(self.drop_pruned_placeholders, with_kwargs=True).remove)
        if self.session.full_logits and self.model is not self.inner:
            self.undo.append(self.model.register_forward_hook(self.restore_logits).remove)
        for modality in self.modalities.values():
            self.replace(self.inner, modality.method, Encoding(self.session, self.inner, modality))
        if hasattr(self.model, "_expand_inputs_for_generation"):
            # generate() repeats encoded images for beams by counting their placeholders, which no longer match.
            self.replace(self.model, "_expand_inputs_for_generation", self.expand)

    @opaque
    def drop_pruned_placeholders(
        self, module: Any, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        """Forward pre-hook: the call as the model has to see it."""
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        rename_cache(call)
        if not call.get(CLOSED):
            self.translate(call)
            if call.get("mm_encoder_outputs"):
                call[CLOSED] = True
        if module is self.inner:
            call.pop(CLOSED, None)
        return (), call

    @opaque
    def restore_logits(self, module: Any, args: tuple, output: Any) -> Any:
        """Forward hook: logits with a column for each token of the caller's."""
        if isinstance(output, tuple):
            raise ValueError("full_logits=True needs outputs with names; leave out return_dict=False")
        output.logits = self.session.restore_logits(output.logits)
        return output

    def translate(self, call: dict[str, Any]) -> None:
        """Rewrite a call in place; one that drops nothing, shows nothing and continues nothing stays as it is."""
        self.session.begin_forward()
        name = "input_ids" if call.get("input_ids") is not None else "inputs_embeds"
        if call.get(name) is None:
            return
        self.encode(call)
        self.warn_of_unpruned(call)
        cache, (rows, length), device = call.get(CACHE), call[name].shape[:2], call[name].device
        check_earlier(call.get("attention_mask"), length, cache)
        notes = notes_on(cache)
        past = notes.prompt if notes is not None else None
        pruned, image_index = self.placed(call)
        if image_index is not None and self.session.watches_decoder:
            call[IMAGE_INDEX] = image_index
        if past is None and pruned is None:
            if IMAGE_INDEX in call and self.mrope:
                self.place(call, name, past)  # while all of the prompt is there to count by
            return
        call[CLOSED] = True
        mask = flat_mask(call)
        cached = cache.get_seq_length() if cache is not None else 0
        padded = mask is not None or (past is not None and past.real is not None)
        if self.mrope:
            self.place(call, name, past)
        seen, new = split_mask(mask, past, cached, rows, length, device)
        shift = torch.zeros(rows, dtype=torch.long, device=device) if past is None else past.shift.to(device)
        lost = torch.zeros_like(new, dtype=torch.bool) if pruned is None else pruned & new.bool()
        counted = self.counted(call, seen, new, lost, past)
        index = torch.arange(length, device=device).expand(rows, -1)
        if pruned is not None:
            refuse_lengths(call)
            keep, before = new.bool() & ~pruned, new.bool()
            index, real, _ = pack(keep, before)
            if cached and self.recurrent and bool(before.all()) and not bool(real.all()):
                raise ValueError(RAGGED)
            self.shorten_logits(call, lost)
            padded = padded or not bool(real.all())
            pad = 1 if self.inner.config.image_token_id == 0 else 0
            # Zeros for embeddings, because the model finds placeholders among them by comparing.
            tokens = {"input_ids": Aligned(pad), "inputs_embeds": Aligned(0)}
            shorten_aligned(call, {**tokens, **self.aligned}, index, real)
            self.session.drop_columns(index, real, length)
            new = real.to(new.dtype)
        whole = torch.cat([seen, new], dim=1)
        call["attention_mask"] = whole if padded else None
        counted = counted.gather(1, index)
        if not self.mrope:
            call["position_ids"] = counted
        elif call.get("position_ids") is not None:
            # Before the three axes stands the text's count, by which masks are made: it must have no gaps.
            axes = call["position_ids"][-3:].expand(3, rows, -1)
            call["position_ids"] = torch.cat([counted[None], axes])
        if pruned is not None:
            dropped = length - new.shape[1] + (past.dropped if past is not None else 0)
            entries = whole.shape[1]
            fixed = entries - min(tail_of(keep, before), new.shape[1])
            following = counted.masked_fill(~real, -1).max(dim=1).values + 1
            if past is not None and past.following is not None:  # rows that are all padding in this call
                following = following.where(real.any(dim=1), past.following.to(device))
            shift = shift + lost.sum(dim=1)
            self.note(call, Entries(entries, whole.bool() if padded else None, fixed, shift, dropped, following))

    def counted(self, call: dict[str, Any], seen: Tensor, new: Tensor, lost: Tensor, past: Entries | None) -> Tensor:
        """[B, S], position ids of the new tokens once those that are `lost` [B, S] are dropped.

        Each falls by the number of dropped tokens before it, in this call and in earlier ones; in packed samples by
        those of its own sample. Without position ids real tokens are counted, on from where the cache ends.

        Args:
            seen: [B, P], 0 where a cached entry is padding.
            new: [B, S], the same for the new tokens.
            past: what is noted of the cache.
        """
        given, before = call.get("position_ids"), lost.long().cumsum(dim=1) - lost.long()
        # Three axes of M-RoPE jump at every image and say nothing of the text's count.
        if given is None or (given.ndim == 3 and len(given) != 4):
            counted = new.long().cumsum(dim=1) - 1 - before
            if past is not None and past.following is not None:
                later = seen[:, past.length :].long().sum(dim=1)
                return (counted + (past.following.to(new.device) + later)[:, None]).clamp_min(0)
            return (counted + seen.shape[1]).clamp_min(0)  # the model counted the cached columns
        positions = (given[0] if given.ndim == 3 else given).expand(len(new), -1)
        runs = restarts(positions, new.bool())
        shift = torch.zeros_like(runs) if past is None else past.shift.to(new.device)[:, None] * (runs == 0)
        if bool(runs.any()):
            begins = torch.nn.functional.pad(runs.diff(dim=1) != 0, (1, 0), value=True)
            before = before - before.masked_fill(~begins, 0).cummax(dim=1).values
        return (positions - before - shift).clamp_min(0)

    def shorten_logits(self, call: dict[str, Any], lost: Tensor) -> None:
        """`logits_to_keep` counts the caller's last columns; make it count those of them that remain. lost [B, S].

        Raises:
            ValueError: it names single tokens.
        """
        kept = call.get("logits_to_keep")
        if isinstance(kept, Tensor):
            raise ValueError(BY_POSITION)
        if kept:
            call["logits_to_keep"] = kept - int(lost[:, -kept:].sum(dim=1).min())

    def warn_of_unpruned(self, call: dict[str, Any]) -> None:
        """Warn where images reach the model in a way that leaves nothing to prune."""
        encoded = [outputs for outputs in (call.get("mm_encoder_outputs") or {}).values() if outputs is not None]
        if any(getattr(outputs, SPANS, None) is None for outputs in encoded):
            warnings.warn(
                "mm_encoder_outputs were encoded without this pruner, so none of their tokens is dropped; encode them "
                "after attach, by the model's own get_image_features or get_video_features",
                stacklevel=2,
            )
        elif not self.session.watches_decoder:  # else its stage does so before the head
            warn_of_embeddings(call)

    def encode(self, call: dict[str, Any]) -> None:
        """Swap pixels for the features of the tokens that remain of them.

        Raises:
            ValueError: images and videos that this family marks by one placeholder come in one call.
        """
        tokens = [each.token for each in self.modalities.values() if call.get(each.pixels) is not None]
        if len(set(tokens)) < len(tokens):
            raise ValueError(
                "this family marks images and videos by the same placeholder, so transformers takes only one kind in a "
                "call; pass pixel_values or pixel_values_videos"
            )
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
            with prompted(call.get("input_ids"), call.get("inputs_embeds")):
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
        if len(traces) < 2 or not any(trace is self.session.trace for trace in traces):
            return
        whole, tokens = copy.deepcopy(traces[0]), list(traces[0].tokens)
        for trace in traces[1:]:
            offset = torch.tensor([len(whole.entering[0]), 0])
            whole.join(trace)
            tokens += [torch.where(places >= 0, places + offset.to(places), places) for places in trace.tokens]
        whole.place(tokens)
        self.session.encoded(whole)

    def placeholders(self, modality: Modality, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        return placeholders(self.inner, getattr(self.inner.config, modality.token), input_ids, inputs_embeds)

    def place(self, call: dict[str, Any], name: str, past: Entries | None) -> None:
        """M-RoPE positions, which depend on the whole prompt, while it is still whole."""
        types = call.pop("mm_token_type_ids", None)
        given = call.get("position_ids")
        if given is None:
            mask, cache = call.get("attention_mask"), call.get(CACHE)
            rows, length = call[name].shape[:2]
            if mask is None and past is not None:
                earlier = (cache.get_seq_length() if cache is not None else 0) + past.dropped
                mask = torch.ones(rows, earlier + length, dtype=torch.long, device=call[name].device)
            # The call's other arguments go along, such as a video's second_per_grid_ts.
            compute = self.inner.compute_3d_position_ids
            given = {key: call[key] for key in inspect.signature(compute).parameters if key in call}
            embeddings = call[name] if name == "inputs_embeds" else self.inner.get_input_embeddings()(call[name])
            given |= {"input_ids": call.get("input_ids"), "inputs_embeds": embeddings, "attention_mask": mask}
            given |= {"mm_token_type_ids": types, CACHE: cache}
            for grid in ("image_grid_thw", "video_grid_thw"):
                given.setdefault(grid, None)
            given = compute(**given)
            if given is not None:
                given = given[..., -length:]
        elif given.ndim == 2:
            given = given[None]
        call["position_ids"] = given

    def note(self, call: dict[str, Any], entries: Entries) -> None:
        """Leave the note on the cache this forward fills. Made here if the model would make it, to have one to mark."""
        with_cache(call, self.inner.get_decoder())
        if call.get(CACHE) is not None:
            take_notes(call[CACHE]).prompt = entries

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
            at = self.placeholders(self.modalities[name], input_ids, kwargs.get("inputs_embeds"))
            waiting = iter(getattr(outputs, SPANS))
            repeated: list[PlaceholderSpan] = []
            for length in at.sum(dim=1).tolist():
                taken: list[PlaceholderSpan] = []
                while sum(len(span.stays) for span in taken) < length:
                    taken.append(next(waiting))
                repeated += taken * expand_size
            put_spans(outputs, repeated)
            getattr(outputs, TRACE).place([span.tokens for span in repeated if span.tokens is not None])
        kwargs["mm_encoder_outputs"] = encoded
        input_ids, kwargs = original(self.model, expand_size, is_encoder_decoder, input_ids, **kwargs)
        kwargs["mm_encoder_outputs"] |= encoded_here
        return input_ids, kwargs


def refuse_lengths(call: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: the call brings lengths of packed samples, made for flash attention from all of their tokens.
    """
    for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"):
        if call.get(name) is not None:
            raise ValueError(
                f"{name} counts all tokens of packed samples and cannot follow dropped ones; leave it out, "
                "because position_ids that restart mark the samples too"
            )
