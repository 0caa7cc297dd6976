"""Watch an encoder at work: `Recorder` shows every layer to whoever wants to reduce it, and cuts nothing of its own.

The attention matrix of a layer is made block by block and reduced at once; no layer's N x N is ever whole.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowcut import scores
from flowcut.attach import attach
from flowcut.flow.measures import Array, Whole, attention_rows, follow
from flowcut.pruner import Budget, Cut, ModelShape, Pruner, View


@dataclass(frozen=True)
class Recorder(Pruner):
    """Shows each encoder layer to `take`, then lets `inner` cut as it likes; without one nothing is cut.

    Attributes:
        take: called once a layer, before any cut of that layer.
        inner: the pruner that is watched at work.
    """

    budget: Budget = sys.maxsize
    take: Callable[[View], None] = lambda view: None
    inner: Pruner | None = None

    @property
    def reads_hidden(self) -> bool:  # type: ignore[override]
        return self.inner is not None and self.inner.reads_hidden

    @property
    def merges_before_mlp(self) -> bool:  # type: ignore[override]
        return self.inner is not None and self.inner.merges_before_mlp

    def check(self, shape: ModelShape) -> None:
        if self.inner is not None:
            self.inner.check(shape)

    def vision(self, view: View) -> Cut | None:
        self.take(view)
        return None if self.inner is None else self.inner.vision(view)

    def cuts_language(self, two_stage: bool) -> bool:
        return False


class ImageFlow(NamedTuple):
    """The flow of information through an encoder for one image, nothing cut. Tokens: special ones, then n patches.

    Attributes:
        inflow, outflow: [L, S]; source: [L, n]; agreement, to_special: [L]. See `flowcut.flow.measures.Flow`.
        maps: [L, M, n], the attention rows of chosen patches, over patches.
        attention: [L, n], the row of CLS over patches (without CLS: of the mean query).
        similarity: [L, n], softmax over all tokens of v_cls · v_j, mean over heads.
        strength: [L, n], L1 norm of a patch's whole value vector.
    """

    inflow: Whole
    outflow: Whole
    source: Whole
    agreement: Array
    to_special: Array
    maps: Array
    attention: Array
    similarity: Array
    strength: Array


class WatchedRun(NamedTuple):
    """A pruner at work on one image.

    Attributes:
        strength: [L, n], L1 norm of the value vector of each patch that entered a layer, NaN where it was gone.
        kept: [n], True for the patches that were left in the end.
    """

    strength: Array
    kept: NDArray[np.bool_]


def strength_of(view: View) -> Tensor:
    """[R, n], L1 norm of each patch's value vector, all heads side by side."""
    return scores.value_strength(view.v.transpose(1, 2).flatten(2)[:, None, view.shape.num_prefix_tokens :])


def reduce_layer(view: View, chosen: Sequence[int]) -> ImageFlow:
    """One layer of a single image, as an `ImageFlow` whose first axis is missing."""
    row = scores.softmax_row(view.global_token(view.q), view.k, view.scaling).mean(dim=1)[
        0, view.shape.num_prefix_tokens :
    ]
    similar = scores.softmax_row(view.global_token(view.v), view.v, 1.0).mean(dim=1)[0, view.shape.num_prefix_tokens :]
    queries, keys, prefix = view.q[0], view.k[0], view.shape.num_prefix_tokens
    flow = follow(attention_rows(queries, keys, view.scaling), prefix, row)
    picked = queries[:, [prefix + patch for patch in chosen]]
    maps = torch.cat(list(attention_rows(picked, keys, view.scaling)))[:, prefix:]
    whole = [flow.inflow, flow.outflow, flow.source]
    numbers = [torch.tensor(flow.agreement), torch.tensor(flow.to_special), maps, row, similar, strength_of(view)[0]]
    return ImageFlow(*(tensor.cpu().numpy() for tensor in [*whole, *numbers]))


def record(encoder: nn.Module, pixels: Tensor, chosen: Sequence[int]) -> ImageFlow:
    """Run an encoder over one image [1, 3, H, W], nothing cut.

    Args:
        encoder: a vision encoder of a known family, alone.
        chosen: numbers of the patches whose attention rows are kept whole.
    """
    layers: list[ImageFlow] = []
    recorder = Recorder(take=lambda view: layers.append(reduce_layer(view, chosen)))
    with torch.no_grad(), attach(encoder, recorder):
        encoder(pixels)
    return ImageFlow(*(np.stack(parts) for parts in zip(*layers, strict=True)))


def watch(encoder: nn.Module, pixels: Tensor, pruner: Pruner) -> WatchedRun:
    """Run an encoder over one image [1, 3, H, W] with a pruner at work.

    Raises:
        ValueError: the pruner cannot work on this encoder.
    """
    layers: list[tuple[Tensor, Tensor]] = []

    def take(view: View) -> None:
        layers.append((view.positions[0], strength_of(view)[0]))

    with torch.no_grad(), attach(encoder, Recorder(budget=pruner.budget, take=take, inner=pruner)) as handle:
        encoder(pixels)
    assert handle.trace is not None
    patches = len(layers[0][0])
    strength, kept = np.full((len(layers), patches), np.nan, dtype=np.float32), np.zeros(patches, dtype=bool)
    for layer, (positions, values) in enumerate(layers):
        real = (positions >= 0).cpu()  # a CLS token that is sent on is no patch
        strength[layer, positions.cpu()[real]] = values.cpu()[real].numpy()
    final = handle.trace.final[0].cpu().numpy()
    kept[final[final >= 0]] = True
    return WatchedRun(strength, kept)
