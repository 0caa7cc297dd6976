"""Visual token annealing: fewer and fewer visual entries of the KV cache, the longer the answer gets.

After the second half of ST3 (Zhuang et al., AAAI 2025, arXiv 2412.20105), as a base class that any method may take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from flowcut.methods.text_attention import last_row
from flowcut.pruner import CachedView, Cut, Pruner


@dataclass(frozen=True)
class Annealing(Pruner):
    """Let visual entries leave the KV cache while the answer grows. Derive a frozen dataclass from it and a method:

        @dataclass(frozen=True)
        class AnnealedFlowCut(Annealing, FlowCut): ...

    Of an image's entries in a layer a share stays, which falls along half a cosine from 1 to `anneal_to`, reached when
    `anneal_tokens` tokens have come after the prompt. Every `anneal_every` tokens the entries with the lowest score
    leave (`cached_score`). Text stays, and so do layer 0, by whose length callers count the conversation, layers that
    attend within a window, and images that have no more tokens than the budget. Positions stay as they were. Without a
    KV cache (`use_cache=False`) nothing is annealed.

    Attributes:
        anneal_to: share of an image's entries that stays in the end; 1 anneals nothing.
        anneal_tokens: answer tokens until then.
        anneal_every: answer tokens from one removal to the next, each of which copies what stays of the cache.

    Raises:
        ValueError: a field has a value that is not allowed.
    """

    anneal_to: float = 0.1
    anneal_tokens: int = 64
    anneal_every: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.anneal_to <= 1:
            raise ValueError(f"anneal_to={self.anneal_to} is not a share between 0 and 1; 1 anneals nothing")
        for name in ("anneal_tokens", "anneal_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not a number of tokens >= 1")

    @property
    def anneals(self) -> bool:
        return self.anneal_to < 1

    def entries(self, cached: int, grown: int) -> int:
        """How many of the `cached` entries that an image had in a layer are left when `grown` tokens came after it."""
        step = min(grown // self.anneal_every * self.anneal_every, self.anneal_tokens)
        level = self.anneal_to + (1 - self.anneal_to) * (1 + math.cos(math.pi * step / self.anneal_tokens)) / 2
        return math.ceil(cached * level - 1e-9)

    def left(self, path: Sequence[int], grown: int) -> list[int]:
        """Visual entries of each layer's cache after `grown` tokens of the answer, for an image of which path[l] tokens
        entered layer l in the prefill. With the text's and the answer's tokens added, `flowcut.cost.kv_cache_bytes` and
        `decode_flops` take it.
        """
        return [path[0], *(self.entries(count, grown) for count in path[1:])]

    def reads_cache(self, grown: Sequence[int], new: int) -> bool:
        return any(count // self.anneal_every > (count - new) // self.anneal_every for count in grown)

    def cached_score(self, view: CachedView) -> Tensor:
        """[R, n], what entries are worth: the attention that each sample's newest token pays them, mean over heads."""
        return last_row(view)

    def within_budget(self, entered: int, unpruned: int) -> bool:
        """Whether nothing is to be dropped of an image: its tokens that entered the language model, and all it has."""
        return unpruned <= self.tokens_of(unpruned)

    def cached(self, view: CachedView) -> Cut | None:
        counts = []
        for row, now in enumerate(view.counts):
            whole = self.within_budget(view.initial[row], view.layout.unpruned_tokens[row])
            counts.append(now if whole else min(now, self.entries(view.cached[row], view.grown[row])))
        if counts == list(view.counts):
            return None
        return Cut.best(self.cached_score(view), counts, view.valid)
