"""What a pruned model's processor does differently from vLLM's: placeholders, keys, and the budget that travels.

`served` mixes the classes here in front of a model's own. An image's budget is part of its key, so that neither the
processor's cache nor the encoder's nor the prefix cache gives an image pruned in one way to a request for another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageEmbeddingItems
from vllm.multimodal.processing import PromptUpdate

from flowcut.pruner import EncoderShape, Pruner
from flowcut.registry import pruner_to_config
from flowcut_vllm.pruner import (
    FIELD,
    check_reachable,
    check_served,
    number_of,
    request_pruner,
    server_pruner,
    tokens_of,
)

BUDGETS = "flowcut_budgets"
"""The tensor [images] that brings each image's budget to the encoder."""


class PrunedInfo:
    """Mixed in front of a model's `ProcessingInfo`.

    Attributes:
        shape: the vision encoder, as the model's config describes it.
    """

    ctx: Any
    shape: EncoderShape

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
    """Mixed in front of a model's multimodal processor."""

    info: Any

    def pruner_for(self, kwargs: Mapping[str, object]) -> Pruner:
        """The pruner of a request with these `mm_processor_kwargs`."""
        return request_pruner(self.info.pruner, kwargs.get(FIELD))

    def kept(self, pruner: Pruner, unpruned: int, images: Any, item: int) -> int:
        """How many tokens the image `images[item]` has, of so many unpruned ones.

        Raises:
            ValueError: the method cannot leave so few.
        """
        tokens = tokens_of(pruner, unpruned)
        check_reachable(pruner, tokens, unpruned, self.info.shape)
        return tokens

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        pruner = self.pruner_for(hf_kwargs)
        processed = super()._apply_hf_processor_main(mm_items, without_field(hf_kwargs))  # type: ignore[misc]
        images = _pictures(mm_items)
        if images:
            processed[BUDGETS] = torch.full((len(images),), number_of(pruner.budget), dtype=torch.float64)
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
        images = _pictures(mm_items)
        if not images:
            return updates
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


_Model = TypeVar("_Model", bound=type)


def served(shape: Callable[[Any], EncoderShape], info: type, processor: type) -> Callable[[_Model], _Model]:
    """Register a model class with vLLM: pruned where its config names a pruner, else with vLLM's own processor.

    Args:
        shape: the vision encoder, as the model's config describes it.
        info, processor: vLLM's classes for this model, in front of which those of this module are mixed, or classes
            that derive from these.

    Returns:
        a decorator for a class that derives from vLLM's. Where the pruner cannot be served with such an encoder, vLLM
        stops at its start with the ValueError of `check_served`.
    """
    pruned_info, pruned_processor = _in_front(PrunedInfo, info), _in_front(PrunedProcessor, processor)

    def decorate(model: _Model) -> _Model:
        stock: Any = model._processor_factory  # type: ignore[attr-defined]

        def make_info(ctx: Any) -> Any:
            config = ctx.model_config.hf_config
            pruner = server_pruner(config)
            if pruner is None:
                return stock.info(ctx)
            encoder = shape(config)
            check_served(pruner, encoder)
            info = pruned_info(ctx)
            info.shape = encoder
            return info

        def make_processor(made: Any, dummy_inputs: Any) -> Any:
            return (pruned_processor if isinstance(made, pruned_info) else stock.processor)(made, dummy_inputs)

        register: Any = MULTIMODAL_REGISTRY.register_processor(
            make_processor, info=make_info, dummy_inputs=stock.dummy_inputs
        )
        return register(model)

    return decorate


def _in_front(first: type, stock: type) -> Any:
    return stock if issubclass(stock, first) else type(f"Pruned{stock.__name__}", (first, stock), {})


def _pictures(mm_items: Any) -> Any:
    """The images of a request; nothing where they come as embeddings, which are not pruned here."""
    images = mm_items.get("image")
    return () if images is None or isinstance(images, ImageEmbeddingItems) else images


def without_field(kwargs: Mapping[str, object]) -> dict[str, object]:
    """`mm_processor_kwargs` as the model's own processor knows them."""
    return {name: value for name, value in kwargs.items() if name != FIELD}
