"""What text tokens look at inside the language model: single rows of attention, computed beside it in O(S).

Shapes as in `flowcut.pruner`; M text tokens whose rows are asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowcut import scores
from flowcut.pruner import LanguageView


def last_row(view: LanguageView) -> Tensor:
    """[R, n]: the attention that each sample's last token pays to the visual tokens, softmax over the whole row, mean
    over heads.
    """
    real = None if view.layout.real is None else view.layout.real[list(view.layout.samples)]
    row = scores.softmax_row(view.last_token(view.q), view.whole(view.k), view.scaling, real).mean(dim=1)
    return row.gather(1, view.layout.columns + view.past)


def text_columns(view: LanguageView, sample: int) -> Tensor:
    """Columns of a sample's real tokens that belong to no image, ascending. Cuts leave their number and order alone."""
    length = view.q.shape[2]
    text = torch.ones(length, dtype=torch.bool, device=view.q.device)
    if view.layout.real is not None:
        text &= view.layout.real[sample, view.past :]
    for row, owner in enumerate(view.layout.samples):
        if owner == sample:
            text[view.layout.columns[row, : view.counts[row]]] = False
    return text.nonzero().flatten()


def text_following(view: LanguageView, row: int) -> Tensor:
    """Numbers among `text_columns` of the text tokens after an image; all its sample's, where none stand after it."""
    columns = text_columns(view, view.layout.samples[row])
    end = view.layout.columns[row, view.counts[row] - 1]
    following = (columns > end).nonzero().flatten()
    return following if len(following) else torch.arange(len(columns), device=columns.device)


def rows_of(view: LanguageView, row: int, columns: Tensor) -> Tensor:
    """[H, M, n]: the attention of the tokens in `columns` [M] of an image's sample to the image, softmax per head over
    all that such a token may look at.
    """
    sample = view.layout.samples[row]
    groups = view.q.shape[1] // view.k.shape[1]
    keys = view.k[sample].float().repeat_interleave(groups, dim=0)
    logits = view.q[sample][:, columns].float() @ keys.transpose(1, 2) * view.scaling
    hidden = torch.arange(keys.shape[1], device=columns.device) > (columns + view.past)[:, None]
    if view.layout.real is not None:
        hidden = hidden | ~view.layout.real[sample]
    weights = logits.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    return weights[..., view.layout.columns[row, : view.counts[row]] + view.past]


def keys_from_start(view: LanguageView, sample: int) -> Tensor:
    """[H', S, d]: a sample's new keys, turned as if its first real token stood at place 0.

    So that what is read off single keys, which depend on the place, does not depend on padding on the left.
    """
    keys = view.k[sample, :, view.past :].float()
    first = 0 if view.layout.real is None else int(view.layout.real[sample, view.past :].int().argmax())
    return view.source.from_start(keys, sample, first)


def position_prior(view: LanguageView, row: int, columns: Tensor) -> Tensor:
    """[M, n]: q·k / sqrt(d) between such tokens and the image by their places alone: if all of q and k were ones."""
    length, width = view.q.shape[2:]
    turned = view.source.turn(torch.ones(1, length, width, device=view.q.device), view.layout.samples[row])[0]
    visual = turned[view.layout.columns[row, : view.counts[row]]]
    return turned[columns] @ visual.T * width**-0.5
