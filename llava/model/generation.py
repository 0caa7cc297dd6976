"""Generation from prompts with images: they are embedded once, and transformers goes on from the embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowcut.compat import rename_cache
from llava.model.splice import guess_mask

# The mixin is a base class before a class of transformers, whose attributes it uses.
if TYPE_CHECKING:
    _Mixin = Any
else:
    _Mixin = object

_GENERATING: ContextVar[bool] = ContextVar("llava_generating", default=False)
"""Whether the prompt of a `generate` is being embedded; other programs' methods may stand between, in LLaVA's form."""


@contextmanager
def _embedding() -> Iterator[None]:
    token = _GENERATING.set(True)
    try:
        yield
    finally:
        _GENERATING.reset(token)


def generating() -> bool:
    """Whether the prompt that is being embedded is one of `generate`."""
    return _GENERATING.get()


class GeneratesFromImages(_Mixin):
    """The part of LLaVA's head mixin that generates."""

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        images: Tensor | list[Tensor] | None = None,
        image_sizes: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate after prompts [B, L] with images; returns only the new tokens.

        Prompts may differ in length, in their number of images, and may have none. Padding is given by `attention_mask`
        or, without one, by runs of `pad_token_id` at the ends of a row. The spliced batch is always padded
        on the left, so that a row's result does not depend on the batch. kwargs are those of transformers' generate.
        """
        inputs = kwargs.pop("input_ids", None) if inputs is None else inputs
        if inputs is None or "inputs_embeds" in kwargs:
            raise NotImplementedError("generate needs token ids; `inputs_embeds` is not supported")
        kwargs.pop("position_ids", None)  # follow from the mask
        rename_cache(kwargs)
        if attention_mask is None:
            config = kwargs.get("generation_config") or self.generation_config
            pad = kwargs.get("pad_token_id", config.pad_token_id)
            attention_mask = guess_mask(inputs, None if pad == config.eos_token_id else pad)
        self._holds_placeholders(inputs, images)
        embeds, mask, places = None, attention_mask, None
        if images is not None:
            with _embedding():
                _, places, mask, _, embeds, _ = self.prepare_inputs_labels_for_multimodal(
                    inputs, None, attention_mask, None, None, images, image_sizes=image_sizes
                )
        if embeds is None:
            spliced = self.splice_inputs(inputs, None, attention_mask=attention_mask, padding_side="left")
            embeds, mask, image_index = spliced.inputs_embeds, spliced.attention_mask, spliced.image_index
        else:
            image_index = self._image_index_of(embeds)
        kwargs |= {} if places is None else {"position_ids": places}
        return super().generate(
            inputs_embeds=embeds,
            attention_mask=None if mask is None else mask.long(),
            image_index=image_index,
            **kwargs,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        image_index: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """transformers' own; `image_index` belongs to the prompt and is not repeated for the tokens after it."""
        prepared = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        return prepared | {"image_index": image_index if is_first_iteration else None}
