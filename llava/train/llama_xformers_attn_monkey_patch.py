"""LLaVA's name of an xformers patch for Llama. Nothing is patched: see `--attn_implementation`."""

from transformers.utils import logging

logger = logging.get_logger(__name__)


def replace_llama_attn_with_xformers_attn() -> str:
    """The `attn_implementation` to use instead, "sdpa"; logs a warning."""
    logger.warning("xformers is not used: torch's scaled_dot_product_attention (sdpa) is used instead")
    return "sdpa"
