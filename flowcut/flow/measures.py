"""What is measured about the flow of information in an encoder: pure functions of arrays, no model in sight.

An attention matrix A [S, S] has one row per token that looks, and one column per token that is looked at. Rows are
means over heads, so they sum to 1. Special tokens (CLS) come first, `special` of them, then n patches.

Shapes: L layers, S tokens, n patches, M rows that are kept whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.floating]
Whole = NDArray[np.integer]


class Flow(NamedTuple):
    """What is kept of one layer's attention matrix.

    Attributes:
        inflow: [S], the token each token takes most from: argmax_j A[i, j].
        outflow: [S], the token that takes most from each token: argmax_i A[i, j].
        source: [n], number of the patch that each patch takes most from, special tokens left aside.
        agreement: mean cosine between the rows of patches and a given row, both over patches alone.
        to_special: what patches give to the special tokens, as a share of their attention; mean over patches.
    """

    inflow: Tensor
    outflow: Tensor
    source: Tensor
    agreement: float
    to_special: float


def attention_rows(queries_HSd: Tensor, keys_HSd: Tensor, scaling: float, chunk: int = 128) -> Iterator[Tensor]:
    """The attention matrix of one image, mean over heads, `chunk` rows [c, S] at a time. O(H S chunk) memory."""
    keys = keys_HSd.float().transpose(1, 2)
    for queries in queries_HSd.float().split(chunk, dim=1):
        yield ((queries @ keys) * scaling).softmax(dim=-1).mean(dim=0)


def follow(rows: Iterable[Tensor], special: int, reference_n: Tensor) -> Flow:
    """Reduce a matrix that comes in blocks of rows; `reference_n` is the row that `agreement` compares with.

    Among equals the lower number wins.
    """
    inflow, source, cosines, leaving, start = [], [], [], [], 0
    highest: Tensor | None = None
    outflow = torch.empty(0)
    for block in rows:
        inflow.append(block.argmax(dim=1))
        top, at = block.max(dim=0)
        if highest is None:
            highest, outflow = top, at
        else:
            outflow = torch.where(top > highest, at + start, outflow)
            highest = torch.maximum(top, highest)
        looking = block[max(special - start, 0) :]
        patches = looking[:, special:]
        source.append(patches.argmax(dim=1))
        leaving.append(looking[:, :special].sum(dim=1))
        cosines.append(torch.nn.functional.cosine_similarity(patches, reference_n[None], dim=1))
        start += len(block)
    agreement, to_special = torch.cat(cosines).mean().item(), torch.cat(leaving).mean().item()
    return Flow(torch.cat(inflow), outflow, torch.cat(source), agreement, to_special)


def coordinates(grid: tuple[int, int]) -> Whole:
    """[n, 2]: row and column of each patch of a grid that is numbered row by row."""
    rows, columns = grid
    return np.stack(np.divmod(np.arange(rows * columns), columns), axis=1)


def distances(source: Whole, places_n2: Whole) -> Array:
    """How far each patch's source lies from it, in patches; [..., n] -> [..., n]. A patch that is its own source: 0."""
    return np.linalg.norm(places_n2[source] - places_n2, axis=-1)


def normalised(weights: Array) -> Array:
    """Weights that sum to 1 over the last axis; zeros stay zeros."""
    total = weights.sum(axis=-1, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights, dtype=float), where=total > 0)


def entropy(weights: Array) -> tuple[Array, Array]:
    """Entropy of weights [..., N], made to sum to 1, in nats; and as a share of its maximum ln N (0 where N is 1)."""
    share = normalised(weights)
    entropy = -(share * np.log(share, out=np.zeros_like(share), where=share > 0)).sum(axis=-1)
    highest = np.log(weights.shape[-1])
    return entropy, entropy / highest if highest > 0 else np.zeros_like(entropy)


def ranks(values: Array) -> Array:
    """Ranks from 1 of [N] values; equals share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[inverse]


def rank_correlation(first: Array, second: Array) -> float:
    """Spearman's correlation of [N] and [N]; NaN where all values of one are equal."""
    one, other = (ranks(values) - (len(values) + 1) / 2 for values in (first, second))
    scale = np.sqrt((one @ one) * (other @ other))
    return float(one @ other / scale) if scale > 0 else float("nan")


def contradiction(score: Array, others: Iterable[Array], k: int) -> float:
    """Share of the k tokens of highest score [N] that lie in the lower half of every one of `others`."""
    top = np.argsort(-score, kind="stable")[:k]
    low = np.ones(len(top), dtype=bool)
    for other in others:
        low &= ranks(other)[top] <= len(other) / 2
    return float(low.mean())


class Box(NamedTuple):
    """A box plot's numbers; whiskers reach to the last value within 1.5 times the height of the box from it."""

    low: float
    first: float
    median: float
    third: float
    high: float
    mean: float
    number: int


def box(values: Array) -> Box:
    """Statistics of the values that are not NaN; all NaN if there are none."""
    values = values[~np.isnan(values)]
    if not len(values):
        nothing = float("nan")
        return Box(nothing, nothing, nothing, nothing, nothing, nothing, 0)
    first, median, third = np.percentile(values, [25, 50, 75])
    reach = 1.5 * (third - first)
    inside = values[(values >= first - reach) & (values <= third + reach)]
    quartiles = float(first), float(median), float(third)
    return Box(float(inside.min()), *quartiles, float(inside.max()), float(values.mean()), len(values))


def chains(steps_LS: Whole) -> Whole:
    """Follow a map from tokens to tokens through all layers, from every token. [L, S] -> [L + 1, S].

    For outflow give layers in their order, for inflow the last one first.
    """
    at = [np.arange(steps_LS.shape[1])]
    for step in steps_LS:
        at.append(step[at[-1]])
    return np.stack(at)


def main_stream(steps_LS: Whole) -> Whole:
    """[L]: the chain that starts where most tokens point to in the first of the layers given.

    Its first entry is that token; the lower number wins among equals.
    """
    first = int(np.bincount(steps_LS[0]).argmax())
    stream = [first]
    for step in steps_LS[1:]:
        stream.append(int(step[stream[-1]]))
    return np.array(stream)


def spread(places_k2: Whole | Array) -> float:
    """Mean distance between two different tokens of a set, in patches; NaN for fewer than two."""
    count = len(places_k2)
    if count < 2:
        return float("nan")
    between = np.linalg.norm(places_k2[:, None] - places_k2[None], axis=-1)
    return float(between.sum() / (count * (count - 1)))


class Summary(NamedTuple):
    """Mean over images, and standard deviation (n - 1; 0 for a single image)."""

    mean: Array
    deviation: Array


def over_images(values: Array) -> Summary:
    """Summarise [images, ...]."""
    deviation = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(values[0])
    return Summary(values.mean(axis=0), deviation)
