"""The generation stage: what `generate` counts by the KV cache, it counts by the conversation.

`generate` cuts the prompt where the cache ends, and continues M-RoPE positions from there. A shortened cache would make
it pass tokens that are cached already. It also passes tokens after the prompt, which no method may choose by: guesses
in assisted decoding, and without a cache the answer so far.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from flowcut.compat import CACHE, one_cache
from flowcut.hooks.base import Stage, opaque
from flowcut.hooks.cache_notes import notes_on
from flowcut.hooks.call_context import prompted
from flowcut.hooks.packing import AFTER, IMAGE_INDEX
from flowcut.hooks.session import Session

AFTER_PROMPT = "flowcut_after_prompt"
"""Keyword argument of a head: how many of the call's last tokens come after the prompt; None if all but one of those
whose logits are requested do (the first call of assisted decoding)."""

_PROMPT: ContextVar[int] = ContextVar("flowcut_prompt", default=0)
_PREFILLING: ContextVar[bool] = ContextVar("flowcut_prefilling", default=False)


class Instead:
    """Stands on one instance in the place of a method, with that method's signature."""

    def __init__(self, instance: Any, name: str, do: Callable[..., Any]):
        self.instance = instance
        self.name = name
        self.do = do

    @property
    def __signature__(self) -> inspect.Signature:
        # generate() picks its arguments by it.
        signature = inspect.signature(getattr(type(self.instance), self.name))
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.do(*args, **kwargs)


class ConversationLength:
    """A KV cache, as far as its length is asked for: that of the conversation it stands for."""

    def __init__(self, cache: Any):
        self.cache = cache

    def get_seq_length(self, layer_idx: int = 0) -> int:
        notes = notes_on(self.cache)
        return self.cache.get_seq_length(layer_idx) + (0 if notes is None else notes.dropped)


def _last(tokens: torch.Tensor | None, number: int) -> torch.Tensor | None:
    """The last columns of ids or embeddings."""
    return None if tokens is None else tokens[:, -number:]


class GenerationStage(Stage):
    """Replacements of steps of `generate` on one model, and a hook before its forward."""

    def __init__(self, session: Session, head: Any):
        super().__init__()
        self.session = session
        self.head = head

    def install(self) -> None:
        steps: dict[str, Callable[..., Any]] = {
            "_maybe_prepare_encoder_kwargs_for_generation": self.encode,
            "_prefill": self.prefill,
            "prepare_inputs_for_generation": self.prepare_inputs,
            "_prepare_position_ids_for_generation": self.prepare_positions,
        }
        for name, step in steps.items():
            if hasattr(self.head, name):
                self.replace(self.head, name, Instead(self.head, name, step))
        before = self.head.register_forward_pre_hook(self.before_head, prepend=True, with_kwargs=True)
        self.undo.append(before.remove)

    def encode(self, inputs_tensor: Any, model_kwargs: dict[str, Any], model_input_name: Any, config: Any) -> Any:
        """Encode images while it is known in which prompt they stand: in what is new after a cache."""
        mask, cache, length = model_kwargs.get("attention_mask"), one_cache(model_kwargs), inputs_tensor.shape[1]
        whole = getattr(config, "_mask_length", None) or length if mask is None else mask.shape[1]
        past = 0 if cache is None else ConversationLength(cache).get_seq_length()
        new = whole - past if whole > past else length
        found = {**model_kwargs, model_input_name: inputs_tensor}
        with prompted(*(_last(found.get(name), new) for name in ("input_ids", "inputs_embeds"))):
            original = type(self.head)._maybe_prepare_encoder_kwargs_for_generation
            return original(self.head, inputs_tensor, model_kwargs, model_input_name, config)

    def prefill(
        self, input_ids: Any, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kw: Any
    ) -> Any:
        """
        Raises:
            ValueError: the prompt is to be read in pieces, and tokens of it are dropped.
        """
        notes = notes_on(one_cache(model_kwargs))
        index = model_kwargs.get(IMAGE_INDEX)
        sees = model_kwargs.get("mm_encoder_outputs") or (index is not None and bool((index >= 0).any()))
        if generation_config.prefill_chunk_size is not None and (sees or notes is not None):
            raise ValueError(
                f"prefill_chunk_size={generation_config.prefill_chunk_size} would split a prompt whose visual tokens "
                "are dropped; pass prefill_chunk_size=None"
            )
        token = _PREFILLING.set(True)
        try:
            return type(self.head)._prefill(self.head, input_ids, generation_config, model_kwargs, *args, **kw)
        finally:
            _PREFILLING.reset(token)

    def prepare_inputs(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """
        Raises:
            ValueError: guesses are to be read, and the pruner takes entries out of the KV cache.
        """
        notes, new = notes_on(one_cache(kwargs)), kwargs.get("next_sequence_length")
        if self.session.pruner.anneals and kwargs.get("is_first_iteration") and not _PREFILLING.get():
            name = type(self.session.pruner).__name__
            raise ValueError(
                f"{name} removes entries from the KV cache while the answer grows, and assisted decoding removes "
                "guesses from it; leave out prompt_lookup_num_tokens and assistant_model"
            )
        if _PREFILLING.get() and notes is not None and new is not None:
            kwargs["next_sequence_length"] = new - notes.dropped
        call = type(self.head).prepare_inputs_for_generation(self.head, input_ids, *args, **kwargs)
        if _PREFILLING.get():
            _PROMPT.set(input_ids.shape[1])
        elif kwargs.get("is_first_iteration"):
            call[AFTER_PROMPT] = None
        elif kwargs.get("use_cache") is False and _PROMPT.get():
            call[AFTER_PROMPT] = input_ids.shape[1] - _PROMPT.get()
        return call

    def prepare_positions(self, inputs_tensor: Any, model_kwargs: dict[str, Any]) -> Any:
        cache = one_cache(model_kwargs)
        if notes_on(cache) is not None:
            model_kwargs = {**model_kwargs, CACHE: ConversationLength(cache)}
        return type(self.head)._prepare_position_ids_for_generation(self.head, inputs_tensor, model_kwargs)

    @opaque
    def before_head(self, head: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Pass on to the decoder how many of the last tokens come after the prompt."""
        if AFTER_PROMPT not in kwargs:
            return None
        kwargs = dict(kwargs)
        after = kwargs.pop(AFTER_PROMPT)
        after = int(kwargs.get("logits_to_keep") or 1) - 1 if after is None else after
        if after > 0 and self.session.watches_decoder:
            kwargs[AFTER] = after
        return args, kwargs
