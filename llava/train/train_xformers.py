"""LLaVA's entry point for GPUs without FlashAttention: trains with torch's own fused attention."""

import llava.train.train
from llava.train.llama_xformers_attn_monkey_patch import replace_llama_attn_with_xformers_attn


def main(argv: list[str] | None = None) -> None:
    """Entry point: the same flags as `llava.train.train`."""
    llava.train.train.main(argv, attn_implementation=replace_llama_attn_with_xformers_attn())


if __name__ == "__main__":
    main()
