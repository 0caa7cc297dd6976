"""What the next decoder layer would attend with: its queries, keys and values, made from the present layer's output.

The layer itself makes them. It is called with the tokens that are left, and stopped where its attention would begin;
so its norm, projections, biases, adapters and position encoding are the family's own, and nothing of them is copied.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowcut.compat import CACHE

if TYPE_CHECKING:
    from flowcut.decoder import LanguageRun
    from flowcut.pruner import LanguageView


class Looked(Exception):
    """Raised in place of a layer's attention; brings what it was called with."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float):
        super().__init__("a layer was asked for its queries and keys alone")
        self.query, self.key, self.value, self.scaling = query, key, value, scaling


def look_ahead(run: LanguageRun, view: LanguageView) -> LanguageView:
    """`LanguageView.following`. The KV cache of that layer is read, not written.

    Raises:
        ValueError: the view's layer is the last one, or the pruner does not read hidden states.
    """
    number, hidden = view.layer + 1, view.hidden
    if number >= view.layers:
        raise ValueError(f"no layer follows layer {view.layer}, the last one of this decoder")
    embeddings = run.given
    if run.index is not None or run.past_of(number) is not None:
        _, embeddings = run.surroundings(number, hidden)
    call: dict[str, Any] = {**run.call, "position_embeddings": embeddings, "position_ids": None}
    call |= {"attention_mask": None, CACHE: None, "use_cache": False}
    run.looking = True
    try:
        run.decoder.layers[number].forward(hidden, **call)
        raise AssertionError("the layer ran without calling its tapped attention")
    except Looked as looked:
        seen = looked
    finally:
        run.looking = False
    query, key, value = (tensor.to(hidden.device) for tensor in (seen.query, seen.key, seen.value))
    own = _cached(run.cache, number)
    if own is not None:
        key, value = (torch.cat([old.to(new), new], dim=2) for old, new in zip(own, (key, value), strict=True))
    past = key.shape[2] - query.shape[2]
    real = run.whole(number, past, query.shape[2])
    return replace(view, layer=number, q=query, k=key, v=value, scaling=seen.scaling, real=real, rotary=embeddings)


def _cached(cache: Any, layer: int) -> tuple[Tensor, Tensor] | None:
    """Keys and values [B, H', P, d] that a cache holds of a layer; None where it holds none."""
    if cache is None or cache.get_seq_length(layer) == 0:
        return None
    entry = cache.layers[layer]
    return entry.keys, entry.values
