"""LLaVA's name of a FlashAttention patch for Llama. Nothing is patched: see `--attn_implementation`."""

from transformers.utils import logging

logger = logging.get_logger(__name__)


def replace_llama_attn_with_flash_attn() -> str:
    """The `attn_implementation` to use instead, "sdpa"; logs a warning."""
    logger.warning(
        "Llama is not patched: torch's scaled_dot_product_attention (sdpa) is used; for FlashAttention give "
        "--attn_implementation flash_attention_2 or start llava.train.train_mem"
    )
    return "sdpa"
