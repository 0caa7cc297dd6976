"""vLLM 0.32 on the CPU: its model runner does not ask whether a model prunes, and so never asks for positions."""

from __future__ import annotations

from functools import wraps
from typing import Any


def ask_on_the_cpu() -> None:
    """Let `CPUModelRunner.load_model` end as `GPUModelRunner.load_model` does. Called again it does nothing."""
    from vllm.model_executor.models.interfaces import supports_multimodal_pruning
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    original: Any = CPUModelRunner.load_model
    if getattr(original, "asks", False):
        return

    @wraps(original)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        images = self.model_config.multimodal_config
        if images is not None and images.is_multimodal_pruning_enabled():
            self.is_multimodal_pruning_enabled = supports_multimodal_pruning(self.get_model())

    load_model.asks = True  # type: ignore[attr-defined]
    CPUModelRunner.load_model = load_model
