"""LLaVA's models. They are imported on first use, because torch and transformers take seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
    from llava.model.language_model.llava_mistral import LlavaMistralConfig, LlavaMistralForCausalLM

__all__ = ["LlavaConfig", "LlavaLlamaForCausalLM", "LlavaMistralConfig", "LlavaMistralForCausalLM"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from llava.model.language_model import llava_llama, llava_mistral

        return getattr(llava_mistral if name.startswith("LlavaMistral") else llava_llama, name)
    if name.startswith("LlavaMpt"):
        # The reason instead of "cannot import name"; LLaVA's own MPT classes broke before its last version.
        raise ImportError(f"{name}: MPT models are not supported; there are Llama and Mistral")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
