"""LLaVA's name for what once patched xformers into Llama. Nothing is patched: see `--attn_implementation`."""

from transformers.utils import logging

logger = logging.get_logger(__name__)


def replace_llama_attn_with_xformers_attn() -> str:
    """The `attn_implementation` to use in its place, "sdpa"; says so in the log."""
    logger.warning("xformers is not used: torch's scaled_dot_product_attention (sdpa) takes its place")
    return "sdpa"
