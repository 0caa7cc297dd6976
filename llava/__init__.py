"""LLaVA-compatible code base: model, training, evaluation and serving with LLaVA's module names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava.model import LlavaConfig, LlavaLlamaForCausalLM

__all__ = ["LlavaConfig", "LlavaLlamaForCausalLM"]


def __getattr__(name: str) -> Any:
    # On first use: `import llava.conversation` must not pull in torch, and a failing import shows its own error.
    if name in __all__:
        from llava.model.language_model import llava_llama

        return getattr(llava_llama, name)
    raise AttributeError(f"module 'llava' has no attribute {name!r}")
