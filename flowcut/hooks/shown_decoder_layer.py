"""What a pruner may ask of a decoder layer besides the view itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowcut.hooks.shown_layer import ShownLayer
from flowcut.pruner import LanguageView


class ShownDecoderLayer(ShownLayer):
    """`flowcut.pruner.source.DecoderSource`: a layer of a forward, at the moment its pruner is asked.

    Attributes:
        rotary: position embeddings with which the layer turned q and k.
        embeddings: [B, S, D], what the language model was given; in its first layer only, else None.
    """

    def __init__(self, forward: Any, states: Tensor | None, rotary: Any):
        super().__init__(states, forward.trace if forward.session.signals else None)
        self.forward = forward
        self.rotary = rotary
        self.embeddings = forward.embedded

    def norm(self, states: Tensor) -> Tensor:
        norm = self.forward.decoder.norm
        return states if norm is None else norm(states).to(states.device)

    def turn(self, tokens: Tensor, sample: int) -> Tensor:
        return self._turned(tokens, *(part[sample if part.shape[0] > 1 else 0].float() for part in self.rotary))

    def from_start(self, keys: Tensor, sample: int, column: int) -> Tensor:
        cosine, sine = (part[sample if part.shape[0] > 1 else 0, column].float()[None] for part in self.rotary)
        scale = cosine.square() + sine.square()  # YaRN's is not 1
        return self._turned(keys, cosine / scale, -sine / scale)

    def _turned(self, tokens: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        width = cosine.shape[-1]
        turned = self.forward.decoder.turn(tokens[None, ..., :width], cosine[None], sine[None])[0]
        return torch.cat([turned, tokens[..., width:]], dim=-1)

    def next_layer(self, view: LanguageView) -> LanguageView:
        number, hidden = view.layer + 1, self.hidden
        if number >= view.layers:
            raise ValueError(f"no layer follows layer {view.layer}, the last one of this decoder")
        query, key, value, scaling, rotary = self.forward.attention_inputs(number, hidden)
        real = self.forward.shown_entries(number, key.shape[2] - query.shape[2], query.shape[2])
        source = ShownDecoderLayer(self.forward, hidden, rotary)
        layout = replace(view.layout, real=real)
        return replace(view, layer=number, q=query, k=key, v=value, scaling=scaling, layout=layout, source=source)
