"""M-RoPE positions of a prompt whose images are pruned: as in the unpruned prompt, without the dropped tokens.

An image takes as many positions as the longer side of its grid; the token in row r and column c of an image that begins
at position p has (p, p + r, p + c). Text counts on after the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

NUMBERS = 3
"""What travels with each kept token: its row, its column, and how many positions its image takes."""
_BASE = 128  # two digits of this base are exact in bfloat16, and enough for any grid


def digits(numbers: Tensor, like: Tensor) -> Tensor:
    """Whole numbers [n, NUMBERS] -> [n, 2 NUMBERS] of the type of `like`, exact also in bfloat16."""
    parts = torch.stack([numbers // _BASE, numbers % _BASE], dim=-1)
    return parts.flatten(1).to(like.device, like.dtype)


def numbers_in(columns: Tensor) -> Tensor:
    """What `digits` wrote: [n, 2 NUMBERS] -> [n, NUMBERS]."""
    parts = columns.long().unflatten(1, (NUMBERS, 2))
    return parts[..., 0] * _BASE + parts[..., 1]


def text_positions(length: int, images: Sequence[tuple[int, int, int]]) -> tuple[np.ndarray, int]:
    """Positions [length] of a prompt's tokens, all tokens of an image at the image's first one.

    Args:
        images: in their order, where the first token of each is, how many tokens it has, how many positions it takes.

    Returns:
        the positions, and the one that follows the prompt.
    """
    parts, done, position = [], 0, 0
    for first, tokens, room in images:
        parts += [np.arange(first - done) + position, np.full(tokens, position + first - done)]
        position += first - done + room
        done = first + tokens
    parts.append(np.arange(length - done) + position)
    return np.concatenate(parts), position + length - done


def place_kept_tokens(
    positions: Tensor, is_image: Tensor, brought: Sequence[Tensor], computed: int
) -> tuple[Tensor, int]:
    """Give the image tokens of a part of the prompt their own positions.

    Args:
        positions: [3, N] of the whole prompt; the first axis is that of `text_positions` already.
        is_image: [N], True at image tokens.
        brought: what `digits` wrote for this part's image tokens, in their order; an image may be there in part.
        computed: where the part begins.

    Returns:
        the positions, and the one that follows the prompt.
    """
    positions = positions.clone()
    columns = [numbers_in(part.to(positions.device)) for part in brought]
    numbers = torch.cat(columns) if columns else positions.new_empty(0, NUMBERS)
    places = is_image[computed:].nonzero()[: len(numbers), 0] + computed
    positions[1:, places] = positions[0, places] + numbers[:, :2].T
    following = int(positions[0, -1]) + 1
    if len(numbers) and int(places[-1]) == len(is_image) - 1:  # nothing follows the last image
        following = int(positions[0, -1] + numbers[-1, 2])
    return positions, following
