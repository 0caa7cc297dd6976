"""LLaVA's models. Importing them needs torch and transformers; a failing import shows its own error."""

from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.language_model.llava_mistral import LlavaMistralConfig, LlavaMistralForCausalLM

__all__ = ["LlavaConfig", "LlavaLlamaForCausalLM", "LlavaMistralConfig", "LlavaMistralForCausalLM"]


def __getattr__(name: str) -> object:
    if name.startswith("LlavaMpt"):
        # The reason instead of "cannot import name"; LLaVA's own MPT classes broke before its last version.
        raise ImportError(f"{name}: MPT models are not supported; there are Llama and Mistral")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
