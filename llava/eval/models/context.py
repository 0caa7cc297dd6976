"""The model's context: a prompt that does not fit is refused, and an answer ends where the context does."""

from __future__ import annotations

from typing import Any

import torch
from transformers import StoppingCriteria

_USUAL = 4  # characters of a token; longer text is looked at more closely


def context_of(config: Any) -> int:
    """Positions that a model has for prompt, visual tokens and answer."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 2048


def refuse_long_text(text: str, tokenizer: Any, context: int) -> None:
    """Raise ValueError, one line, for text that cannot fit whatever its tokens are. Nothing is tokenised."""
    if len(text) > _USUAL * context:
        least = len(text) // max(len(token) for token in tokenizer.get_vocab())
        refuse_tokens(least, context)


def refuse_tokens(tokens: int, context: int) -> None:
    """Raise ValueError, one line, where a prompt of so many tokens, at least, leaves no room for an answer."""
    if tokens >= context:
        raise ValueError(
            f"the prompt has at least {tokens} tokens, visual ones included, and the model's context is {context}; "
            f"shorten it, give fewer pictures, or keep fewer visual tokens"
        )


class Room(StoppingCriteria):
    """Ends each row's answer where the context is full. `measure` is a hook before forward passes of a language model:
    the prompt's length is known after tiling and pruning only.

    Args:
        prompt: columns of `generate`'s ids that precede the answer; none where it is given embeddings.
    """

    def __init__(self, context: int, prompt: int = 0) -> None:
        self.context = context
        self.prompt = prompt
        self.left: torch.Tensor | None = None  # of each row; on the device, because reading it would synchronise

    def measure(self, model: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.left is not None:
            return
        prompt, mask = kwargs["inputs_embeds"], kwargs.get("attention_mask")
        lengths = torch.full((len(prompt),), prompt.shape[1], device=prompt.device)
        if isinstance(mask, torch.Tensor) and mask.ndim == 2:
            lengths = mask.sum(dim=1)
        refuse_tokens(int(lengths.max()), self.context)
        self.left = self.context - lengths

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        assert self.left is not None, "a pass precedes the first token"
        left = self.left.to(input_ids.device)
        return input_ids.shape[1] - self.prompt >= left.repeat_interleave(
            len(input_ids) // len(left)
        )  # beam search asks for more rows
