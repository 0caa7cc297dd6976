"""The prompt stage for transformers' LLaVA classes: closes the sequence up around placeholders that lost their token.

The caller keeps writing one placeholder per patch. On the way into the model this stage has the images encoded, takes
the surplus placeholders out of ids, mask and labels, and numbers positions 0, 1, ... over what is left. Later calls on
the same KV cache come with the caller's longer mask and positions, which are translated; what is needed for that lies
on the cache itself and so lives, is copied and dies with the conversation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

IGNORE_INDEX = -100
CLOSED = "flowcut_closed"
"""Keyword argument by which the outer model tells the inner one that the call was translated already."""
PAST = "flowcut_past"
"""Attribute of a KV cache that holds its `Past`."""


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


class PromptStage:
    """Hooks on a LlavaForConditionalGeneration and on the LlavaModel inside, so that callers may enter at either."""

    def __init__(self, model: Any, inner: Any, tokens_per_image: int):
        self.model = model
        self.inner = inner
        self.tokens_per_image = tokens_per_image
        self.undo: list[Callable[[], None]] = []

    def install(self) -> None:
        for module in {id(module): module for module in (self.model, self.inner)}.values():
            self.undo.append(module.register_forward_pre_hook(self.close_up, with_kwargs=True).remove)
        if hasattr(self.model, "_expand_inputs_for_generation"):
            # generate() repeats encoded images for beams by counting their placeholders, which no longer match.
            self.model._expand_inputs_for_generation = self.expand
            self.undo.append(lambda: self.model.__dict__.pop("_expand_inputs_for_generation"))

    def remove(self) -> None:
        while self.undo:
            self.undo.pop()()

    def close_up(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Forward pre-hook: the call as the model has to see it."""
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        if not call.get(CLOSED):
            self.translate(call)
        if module is self.inner:
            call.pop(CLOSED, None)
        return (), call

    def translate(self, call: dict[str, Any]) -> None:
        """Rewrite a call in place; one that drops nothing and continues nothing stays as it is."""
        name = "input_ids" if call.get("input_ids") is not None else "inputs_embeds"
        if call.get(name) is None:
            return
        self.encode(call)
        cache = call.get("past_key_values")
        past = getattr(cache, PAST, None)
        if past is not None:
            _realign(call, name, past)
        surplus = self.surplus(call)
        if past is None and surplus is None:
            return
        call[CLOSED] = True
        mask = _flat_mask(call)
        rows, length = call[name].shape[:2]
        device = call[name].device
        cached = cache.get_seq_length() if cache is not None else 0
        padded = mask is not None or (past is not None and past.mask is not None)
        seen, new = _split(mask, past, cached, rows, length, device)
        if surplus is not None:
            keep = new.bool() & ~surplus
            if isinstance(call.get("logits_to_keep"), Tensor):
                raise ValueError("logits_to_keep as a tensor of positions cannot follow dropped tokens; pass a number")
            index, real = _pack(keep, left=not bool((new[:, -1] == 0).any()))
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
            new = real.to(new.dtype)
        whole = torch.cat([seen, new], dim=1)
        call["attention_mask"] = whole if padded else None
        call["position_ids"] = (whole.long().cumsum(dim=1) - 1).clamp_min(0)[:, cached:]
        if surplus is not None:
            dropped = length - new.shape[1] + (past.dropped if past is not None else 0)
            self.note(call, Past(dropped, whole.shape[1], whole if padded else None))

    def encode(self, call: dict[str, Any]) -> None:
        """Swap pixels for the features of the tokens that are left of them."""
        if call.get("pixel_values") is None:
            return
        names = ("pixel_values", "vision_feature_layer", "vision_feature_select_strategy", "image_sizes")
        given = {name: call.pop(name) for name in names if call.get(name) is not None}
        call["mm_encoder_outputs"] = {"image": self.inner.get_image_features(**given, return_dict=True)}

    def surplus(self, call: dict[str, Any]) -> Tensor | None:
        """[B, S], True at placeholders that have no feature; None if none is too many."""
        outputs = (call.get("mm_encoder_outputs") or {}).get("image")
        if outputs is None:
            return None
        at = self.placeholders(call.get("input_ids"), call.get("inputs_embeds"))
        features, expected = outputs.pooler_output, self.tokens_per_image
        lengths = torch.tensor([len(feature) for feature in features], device=at.device)
        found = int(at.sum())
        if found == int(lengths.sum()):
            return None
        if found != len(features) * expected:
            raise ValueError(f"{found} image placeholders for {len(features)} images; write {expected} for each image")
        number = (at.flatten().cumsum(0) - 1).clamp_min(0).view_as(at)
        return at & (number % expected >= lengths[number // expected])

    def placeholders(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        token = self.inner.config.image_token_id
        if input_ids is not None and input_ids.numel():
            return input_ids == token
        assert inputs_embeds is not None
        embedding = self.inner.get_input_embeddings()(torch.tensor(token, device=inputs_embeds.device))
        return (inputs_embeds == embedding).all(dim=-1)

    def note(self, call: dict[str, Any], past: Past) -> None:
        """Leave the note on the cache this forward fills. Made here if the model would make it, to have one to mark."""
        language = self.inner.language_model
        use_cache = call.get("use_cache")
        if use_cache is None:
            use_cache = language.config.use_cache
        if call.get("past_key_values") is None:
            if not use_cache or (language.training and getattr(language, "gradient_checkpointing", False)):
                return
            call["past_key_values"] = DynamicCache(config=language.config)
        setattr(call["past_key_values"], PAST, past)

    def expand(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """generate()'s repetition of inputs for beams and several returned sequences, with fewer features per image."""
        original = type(self.model)._expand_inputs_for_generation
        encoded = kwargs.get("mm_encoder_outputs") or {}
        image = encoded.get("image")
        if image is not None and expand_size > 1:
            at = self.placeholders(input_ids, kwargs.get("inputs_embeds"))
            features = list(image.pooler_output)
            if int(at.sum()) == len(features) * self.tokens_per_image:
                waiting = iter(features)
                image.pooler_output = []
                for images in (at.sum(dim=1) // self.tokens_per_image).tolist():
                    image.pooler_output += [next(waiting) for _ in range(images)] * expand_size
                kwargs["mm_encoder_outputs"] = {key: value for key, value in encoded.items() if key != "image"}
                input_ids, kwargs = original(self.model, expand_size, is_encoder_decoder, input_ids, **kwargs)
                kwargs["mm_encoder_outputs"]["image"] = image
                return input_ids, kwargs
        return original(self.model, expand_size, is_encoder_decoder, input_ids, **kwargs)


def _realign(call: dict[str, Any], name: str, past: Past) -> None:
    """Make the new tokens begin where the cache ends.

    generate() counts by the cache, which is shorter than the conversation it stands for: going on with an old cache
    it passes `dropped` tokens again that are cached already.
    """
    cache, tokens = call["past_key_values"], call[name]
    mask, positions = _flat_mask(call), call.get("position_ids")
    if mask is not None:
        before = mask.shape[1] - tokens.shape[1]
    elif positions is not None:
        before = int(positions.max()) + 1 - tokens.shape[1]
    else:
        return
    cached = cache.get_seq_length()
    if before == cached and tokens.shape[1] > past.dropped:
        call[name] = tokens[:, past.dropped :]
    elif before != cached + past.dropped:
        raise ValueError(
            f"the call speaks of {before} earlier tokens, but the KV cache stands for {cached + past.dropped}; pass "
            "the attention_mask of the whole conversation, image placeholders included"
        )


def _flat_mask(call: dict[str, Any]) -> Tensor | None:
    mask = call.get("attention_mask")
    if mask is not None and mask.ndim != 2:
        raise ValueError(
            f"an attention_mask of shape {tuple(mask.shape)} cannot follow dropped tokens; pass [batch, length], "
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


def _pack(keep: Tensor, left: bool) -> tuple[Tensor, Tensor]:
    """Close rows up. keep [B, S] -> index [B, S'] of the kept columns in order, and [B, S'] where a row reaches.

    Shorter rows are padded on the left, or on the right if `left` is False.
    """
    width = int(keep.sum(dim=1).max())
    if left:
        index = keep.int().argsort(dim=1, stable=True)[:, -width:]
    else:
        index = keep.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    return index, keep.gather(1, index)
