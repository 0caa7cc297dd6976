"""Qwen2.5-VL: vLLM's class, with a pruner on its own tower where the config names one."""

from __future__ import annotations

from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)

from flowcut_vllm.processor import served
from flowcut_vllm.qwen import PrunedQwen, encoder_shape


@served(encoder_shape, info=Qwen2_5_VLProcessingInfo, processor=Qwen2_5_VLMultiModalProcessor)
class PrunedQwen2_5_VL(PrunedQwen, Qwen2_5_VLForConditionalGeneration):
    """Stock without a pruner in the config. With one, `embed_multimodal` gives each image its budget of tokens."""
