"""Tiles of one high-resolution image, put back together. Pure tensors, no model.

A picture consists of a downscaled whole (tile 0) and the tiles of a grid, row by row, each encoded to side x side
patches. Their tokens become one sequence: the whole first, then the joined grid in raster order. With "unpad" in the
merge type, rows or columns of padding are removed and every row of the grid ends with the `image_newline`
token. Tokens kept by a pruner retain their positions on the grid, and rows then have no newline token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

NEWLINE = -1


class Merged(NamedTuple):
    """features [V, D]; tokens [V, 2], tile and patch of each: (-1, -1) where a grid row ends, (t, -1) of CLS."""

    features: Tensor
    tokens: Tensor


def check_pixels(images: Any) -> None:
    """Raise ValueError for what is no pixels of images: [B, 3, H, W] or [B, T, 3, H, W], or a list of such entries."""
    whole = isinstance(images, Tensor)
    if not whole and not isinstance(images, list | tuple):
        given = type(images).__name__
    else:
        least = 4 if whole else 3
        wrong = [
            one
            for one in ([images] if whole else images)
            if not isinstance(one, Tensor) or one.ndim not in (least, least + 1) or one.shape[-3] != 3
        ]
        if not wrong:
            return
        given = f"{list(wrong[0].shape)}" if isinstance(wrong[0], Tensor) else type(wrong[0]).__name__
    raise ValueError(
        f"images={given} are not pixels; give [B, 3, H, W], or a list with [3, H, W] for each image, as process_images "
        "does, and one image as image[None]"
    )


def read_newline(path: str) -> Tensor | None:
    """The `image_newline` [D] in a projector's file; None when it was trained without one."""
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return next((value for name, value in weights.items() if name.endswith("image_newline")), None)


def unpadded_box(columns: int, rows: int, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a joined grid that contain a picture of (width, height), which is fitted in and centred."""
    width, height = size
    if width / height > columns / rows:
        pad = (rows - int(height * (columns / width))) // 2
        return slice(pad, rows - pad), slice(0, columns)
    pad = (columns - int(width * (rows / height))) // 2
    return slice(0, rows), slice(pad, columns - pad)


def unpad_image(tensor: Tensor, original_size: tuple[int, int]) -> Tensor:
    """The part of a [C, H, W] map that contains the picture, which is fitted in and centred; size (width, height)."""
    rows, columns = unpadded_box(tensor.shape[2], tensor.shape[1], original_size)
    return tensor[:, rows, columns]


def in_line(features: Sequence[Tensor], kept: Sequence[Tensor] | None) -> Merged:
    """The tokens of tiles, T of [n, D], one after the other without padding."""
    if kept is None:
        kept = [torch.arange(len(row), device=row.device) for row in features]
    special = max(len(row) for row in features) - max(len(positions) for positions in kept)  # CLS tokens, in front
    kept = [torch.cat([positions.new_full((special,), -1), positions]) for positions in kept]
    places = [torch.stack([torch.full_like(positions, t), positions], dim=1) for t, positions in enumerate(kept)]
    lines = [row[: len(positions)] for row, positions in zip(features, kept, strict=True)]
    return Merged(torch.cat(lines), torch.cat(places))


def merge_tiles(
    features: Tensor,
    patches: int,
    grid: tuple[int, int],
    size: tuple[int, int],
    merge_type: str,
    newline: Tensor | None = None,
    kept: Sequence[Tensor] | None = None,
    unpad: Callable[[Tensor, tuple[int, int]], Tensor] = unpad_image,
) -> Merged:
    """The tokens of one picture in the order in which the language model gets them.

    Args:
        features: [tiles, n, D], the downscaled whole first.
        patches: patches of a tile before pruning.
        grid: tiles (across, down).
        size: the picture's (width, height).
        merge_type: "spatial" or "spatial_unpad".
        newline: [D], used with unpad where no token is dropped.
        kept: patch positions of each tile's features, if a pruner dropped some.
        unpad: takes the rows and columns of padding off a map; see `unpad_image`.

    Raises:
        ValueError: the tiles do not make up the grid.
    """
    tiles, device = features.shape[0], features.device
    across, down = grid
    side = int(patches**0.5)
    if tiles > 1 and (tiles != 1 + across * down or side * side != patches):
        raise ValueError(
            f"{tiles} tiles of {patches} patches are not one whole picture and a grid of {across} x {down}"
        )
    ids = torch.arange(tiles * patches, device=device)
    base, rest = ids[:patches], ids[patches:]
    ends = newline is not None and "unpad" in merge_type and kept is None
    if tiles > 1:
        joined = rest.view(down, across, side, side).permute(0, 2, 1, 3).reshape(down * side, across * side)
        if "unpad" in merge_type:
            joined = unpad(joined[None], size)[0]
        if ends:
            joined = torch.cat([joined, joined.new_full((joined.shape[0], 1), NEWLINE)], dim=1)
        order = torch.cat([base, joined.flatten()])
    else:
        order = torch.cat([base, base.new_full((int(ends),), NEWLINE)])

    if kept is None:
        flat = features.flatten(0, 1)
        if ends:
            assert newline is not None
            flat = torch.cat([flat, newline[None].to(flat)])  # has position -1
        taken = flat[order]
    else:
        place = torch.full((tiles * patches,), -1, device=device)
        special = []  # CLS tokens that the method passes on have no position on the grid; they come last
        for tile, positions in enumerate(kept):
            rank = torch.arange(len(positions), device=device) + tile * features.shape[1]
            place[positions[positions >= 0] + tile * patches] = rank[positions >= 0]
            special += [(tile, int(one)) for one in rank[positions < 0]]
        order = order[place[order] >= 0]
        taken = features.flatten(0, 1)[torch.cat([place[order], order.new_tensor([one for _, one in special])])]
        if newline is not None and "unpad" in merge_type:
            # unused here, but kept in the graph: in training every process needs a gradient for it
            taken = torch.cat([taken, newline[None][:0].to(taken)])
        tokens = torch.stack([order.div(patches, rounding_mode="floor"), order % patches], dim=1)
        return Merged(taken, torch.cat([tokens, order.new_tensor([(tile, -1) for tile, _ in special]).view(-1, 2)]))
    tokens = torch.stack([order.div(patches, rounding_mode="floor"), order % patches], dim=1)
    return Merged(taken, tokens.masked_fill((order == NEWLINE)[:, None], NEWLINE))
