"""What a pruner may see of one decoder layer in a forward that brings images.

Shapes: B samples, R images, H heads, S new tokens, P entries of the KV cache before them, n visual tokens of an
image, d entries per head, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowcut.pruner.shape import ModelShape
from flowcut.pruner.source import DecoderSource
from flowcut.pruner.view import LayerView


@dataclass(frozen=True)
class Layout:
    """Where the images' tokens stand in the batch.

    Attributes:
        columns: [R, n], where in its sample's S tokens each visual token of an image stands; padded at the end.
        samples: the batch row that each image belongs to.
        last: [B], column of each sample's last real token: the last of the prompt, in training the last label.
        real: [B, P + S], False on padding; None when nothing is padded.
        unpruned_tokens: tokens of each image where nothing is dropped, counted as `Rows.unpruned_tokens` counts them;
            `initial` where no encoder of this forward told. For methods that cut in the encoder too; others take
            shares of `initial`.
    """

    columns: Tensor
    samples: tuple[int, ...]
    last: Tensor
    real: Tensor | None
    unpruned_tokens: tuple[int, ...]


@dataclass
class LanguageView(LayerView):
    """One decoder layer. One row per image.

    Attributes:
        layer, layers: this layer's number from 0, and how many layers the decoder has.
        q: [B, H, S, d] after position encoding, not yet scaled.
        k, v: [B, H', P + S, d]; H' divides H (grouped queries).
        scaling: what the attention multiplies q·k with, 1/sqrt(d).
        counts: visual tokens of each image now.
        positions: [R, n], the visual tokens' numbers among those of their image that entered the language model.
        initial: visual tokens of each image that entered the language model.
        layout: where they stand in the batch.
        shape: the model in plain numbers.
        source: the forward under way.
        memory: the pruner's own notebook for this forward.
    """

    initial: tuple[int, ...]
    layout: Layout
    shape: ModelShape
    source: DecoderSource
    stack: ClassVar[str] = "decoder"

    @property
    def past(self) -> int:
        """Entries of the KV cache that stand before this forward's own keys."""
        return self.k.shape[2] - self.q.shape[2]

    def last_token(self, tokens: Tensor) -> Tensor:
        """[B, H', (P +) S, d] -> [R, H, d] at the last real token of each image's sample."""
        sample = torch.tensor(self.layout.samples, device=tokens.device)
        offset = tokens.shape[2] - self.q.shape[2]
        return self._all_heads(tokens[sample, :, (self.layout.last + offset)[sample]])

    def visual(self, tokens: Tensor) -> Tensor:
        """[B, H', (P +) S, d] -> [R, H, n, d] at the visual tokens."""
        sample = torch.tensor(self.layout.samples, device=tokens.device)[:, None]
        offset = tokens.shape[2] - self.q.shape[2]
        return self._all_heads(tokens[sample, :, self.layout.columns + offset].transpose(1, 2))

    def whole(self, tokens: Tensor) -> Tensor:
        """[B, H', P + S, d] -> [R, H, P + S, d]: all keys or values of each image's sample."""
        return self._all_heads(tokens[torch.tensor(self.layout.samples, device=tokens.device)])

    def _all_heads(self, tokens: Tensor) -> Tensor:
        return tokens.repeat_interleave(self.q.shape[1] // tokens.shape[1], dim=1)


@dataclass
class CachedView(LanguageView):
    """One decoder layer of a forward that goes on with a KV cache and brings no images. One row per image.

    The visual tokens are entries of the cache: `layout.columns` are negative, because they count from the first new
    token, so that `visual(k)` and `visual(v)` are theirs; `q` is of the new tokens alone. No hidden states are shown,
    nor the next layer. The first layer is never asked about: its length is what callers count the conversation by. Nor
    are layers that attend within a window.

    Attributes:
        cached: entries that each image had in this layer at the end of the forward that brought it; `counts` now.
        grown: tokens of the image's sample that came after that forward, this one's included, without padding.
    """

    cached: tuple[int, ...]
    grown: tuple[int, ...]
