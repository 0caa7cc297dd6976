"""Qwen3-VL and Qwen3-VL-MoE: vLLM's classes, with a pruner on their own tower where the config names one.

DeepStack's features are further columns of a token in vLLM, so they go where the token goes.
"""

from __future__ import annotations

from vllm.model_executor.models.qwen2_vl import Qwen2VLProcessingInfo
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl_moe import Qwen3VLMoeForConditionalGeneration, Qwen3VLMoeProcessingInfo

from flowcut_vllm.processor import served
from flowcut_vllm.qwen import PrunedQwen, encoder_shape


class _ImagesAlone:
    """Mixed in front of vLLM's info, which adds names to a video's options even where videos are not served."""

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        known: dict[str, set[str]] = Qwen2VLProcessingInfo.get_supported_mm_processor_kwargs(self)
        return known


class Qwen3VLInfo(_ImagesAlone, Qwen3VLProcessingInfo):
    """vLLM's, where images alone are served."""


class Qwen3VLMoeInfo(_ImagesAlone, Qwen3VLMoeProcessingInfo):
    """vLLM's, where images alone are served."""


@served(encoder_shape, info=Qwen3VLInfo, processor=Qwen3VLMultiModalProcessor)
class PrunedQwen3VL(PrunedQwen, Qwen3VLForConditionalGeneration):
    """Stock without a pruner in the config. With one, `embed_multimodal` gives each image its budget of tokens."""


@served(encoder_shape, info=Qwen3VLMoeInfo, processor=Qwen3VLMultiModalProcessor)
class PrunedQwen3VLMoe(PrunedQwen, Qwen3VLMoeForConditionalGeneration):
    """Stock without a pruner in the config. With one, `embed_multimodal` gives each image its budget of tokens."""
