"""Train with FlashAttention 2 where it is installed and supported, else with torch's own fused attention."""

import torch
from transformers.utils import is_flash_attn_2_available, logging

import llava.train.train

logger = logging.get_logger(__name__)


def main(argv: list[str] | None = None) -> None:
    """Entry point: the same flags as `llava.train.train`."""
    usable = torch.cuda.is_available() and is_flash_attn_2_available()
    if not usable:
        logger.warning("FlashAttention 2 is not usable here; training with torch's scaled_dot_product_attention")
    llava.train.train.main(argv, attn_implementation="flash_attention_2" if usable else "sdpa")


if __name__ == "__main__":
    main()
