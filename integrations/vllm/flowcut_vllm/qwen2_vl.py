"""Qwen2-VL: vLLM's class, with a pruner on its own tower where the config names one."""

from __future__ import annotations

from vllm.model_executor.models.qwen2_vl import (
    Qwen2VLForConditionalGeneration,
    Qwen2VLMultiModalProcessor,
    Qwen2VLProcessingInfo,
)

from flowcut_vllm.processor import served
from flowcut_vllm.qwen import PrunedQwen, encoder_shape


@served(encoder_shape, info=Qwen2VLProcessingInfo, processor=Qwen2VLMultiModalProcessor)
class PrunedQwen2VL(PrunedQwen, Qwen2VLForConditionalGeneration):
    """Stock without a pruner in the config. With one, `embed_multimodal` gives each image its budget of tokens."""
