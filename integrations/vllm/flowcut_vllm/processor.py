"""What a pruned model's processor does differently from vLLM's: placeholders, keys, and the budget that travels.

The classes here are mixed in front of a model's own. An image's budget is part of its key, so that neither the
processor's cache nor the encoder's nor the prefix cache gives an image pruned in one way to a request for another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageEmbeddingItems
from vllm.multimodal.processing import PromptUpdate

from flowcut.pruner import Pruner
from flowcut.registry import pruner_to_config
from flowcut_vllm.pruner import FIELD, number_of, request_pruner, server_pruner, tokens_of

BUDGETS = "flowcut_budgets"
"""The tensor [images] that brings each image's budget to the encoder."""


class PrunedInfo:
    """Mixed in front of a model's `ProcessingInfo`."""

    ctx: Any

    @property
    def pruner(self) -> Pruner:
        """The server's."""
        pruner = server_pruner(self.ctx.model_config.hf_config)
        assert pruner is not None
        return pruner

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Images alone; a video would come unpruned."""
        return {"image": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """The unpruned number, because a request may ask for all tokens."""
        return {"image": self.get_max_image_tokens()}  # type: ignore[attr-defined]


class PrunedProcessor:
    """Mixed in front of a model's multimodal processor.

    Attributes:
        per_image: a tensor of the processor's output that has one entry for each image.
    """

    info: Any
    per_image: ClassVar[str] = "pixel_values"

    def pruner_for(self, kwargs: Mapping[str, object]) -> Pruner:
        """The pruner of a request with these `mm_processor_kwargs`."""
        return request_pruner(self.info.pruner, kwargs.get(FIELD))

    def kept(self, pruner: Pruner, unpruned: int, images: Any, item: int) -> int:
        """How many tokens the image `images[item]` has, of so many unpruned ones."""
        return tokens_of(pruner, unpruned)

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> Any:
        return super()._call_hf_processor(hf_data, without_field(hf_kwargs))  # type: ignore[misc]

    def _postprocess_hf_mm_data(self, mm_inputs: Any, hf_processor_mm_kwargs: Any, processed_data: Any) -> Any:
        processed = super()._postprocess_hf_mm_data(  # type: ignore[misc]
            mm_inputs, without_field(hf_processor_mm_kwargs), processed_data
        )
        if self.per_image in processed:
            budget = number_of(self.pruner_for(hf_processor_mm_kwargs).budget)
            processed[BUDGETS] = torch.full((len(processed[self.per_image]),), budget, dtype=torch.float64)
        return processed

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)  # type: ignore[misc]
        return {**fields, BUDGETS: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any
    ) -> Sequence[PromptUpdate]:
        pruner = self.pruner_for(hf_processor_mm_kwargs)
        given = without_field(hf_processor_mm_kwargs)
        updates = super()._get_prompt_updates(mm_items, given, out_mm_kwargs)  # type: ignore[misc]
        if isinstance(mm_items.get("image"), ImageEmbeddingItems):
            return updates  # embeddings that come ready are not pruned here
        images = mm_items.get("image")
        return [
            replace(update, replacement=self._shorter(update.replacement, pruner, images))
            if update.modality == "image"
            else update
            for update in updates
        ]

    def _shorter(self, replacement: Callable[[int], list[int]], pruner: Pruner, images: Any) -> Any:
        def placeholders(item: int) -> list[int]:
            whole = replacement(item)
            return whole[: self.kept(pruner, len(whole), images, item)]

        return placeholders

    def _get_mm_hashes(self, inputs: Any) -> Any:
        pruner = pruner_to_config(self.pruner_for(inputs.hf_processor_mm_kwargs))
        named = {**inputs.hf_processor_mm_kwargs, FIELD: pruner}
        return super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=named))  # type: ignore[misc]


def without_field(kwargs: Mapping[str, object]) -> dict[str, object]:
    """`mm_processor_kwargs` as the model's own processor knows them."""
    return {name: value for name, value in kwargs.items() if name != FIELD}
