"""LLaVA-NeXT: an image as a small whole and a grid of tiles, which share its budget; one-stage.

vLLM has to know the number of an image's tokens before its encoder runs. A pruned image therefore has exactly its
budget: kept tokens that lie on padding stay, whereas the library takes them off. The tokens of the tiles follow those
of the whole image in the raster order of the joined grid, without the tokens that end image rows. An image whose
unpruned tokens are no more than its budget is vLLM's own, with padding taken off and ends of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)

from flowcut.hooks.call_context import rows
from flowcut.pruner import EncoderShape, Pruner
from flowcut_vllm.llava import PrunedClip, encoder_shape
from flowcut_vllm.processor import PrunedProcessor, served
from flowcut_vllm.pruner import check_reachable


def shape_of(config: Any) -> EncoderShape:
    """The vision encoder of a LLaVA-NeXT.

    Raises:
        ValueError: one line that says why this config cannot be served pruned.
    """
    if config.vision_feature_select_strategy == "full":
        raise ValueError("vision_feature_select_strategy='full' puts CLS tokens among tiles; use 'default' to prune")
    if not isinstance(config.vision_feature_layer, int):
        raise ValueError(
            f"vision_feature_layer={list(config.vision_feature_layer)} reads several layers; a pruned tower is read "
            "after one"
        )
    return encoder_shape(config)


def grid_of(config: Any, size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the tiles of an image of `size`, (height, width)."""
    height, width = (int(length) for length in size)
    down, across = get_anyres_image_grid_shape(
        (height, width), config.image_grid_pinpoints, config.vision_config.image_size
    )
    return int(down), int(across)


def side_of(config: Any) -> int:
    """Patches along one side of a tile."""
    return int(config.vision_config.image_size // config.vision_config.patch_size)


def tokens_of(pruner: Pruner, tiles: int, patches: int, stock: int) -> int:
    """How many tokens an image has; `stock`, which changes nothing, where the budget allows as many.

    A share is one of the patches of all tiles, as in the library. Each tile keeps at least one.
    """
    asked = max(pruner.tokens_of(tiles * patches), tiles)
    return min(asked, stock)


class PrunedLlavaNextProcessor(PrunedProcessor, LlavaNextMultiModalProcessor):
    """As many placeholders as tokens are kept."""

    def kept(self, pruner: Pruner, unpruned: int, images: Any, item: int) -> int:
        config, size = self.info.get_hf_config(), images.get_image_size(item)
        down, across = grid_of(config, (size.height, size.width))
        tiles, patches = 1 + down * across, side_of(config) ** 2
        tokens = tokens_of(pruner, tiles, patches, unpruned)
        if tokens < unpruned:
            check_reachable(pruner, tokens // tiles, patches, self.info.shape)
        return tokens


@served(shape_of, info=LlavaNextProcessingInfo, processor=PrunedLlavaNextProcessor)
class PrunedLlavaNext(PrunedClip, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT. With a pruner, `embed_multimodal` gives each image its budget of tokens."""

    def most_patches(self) -> int:
        grids = [grid_of(self.config, size) for size in self.config.image_grid_pinpoints]
        return (1 + max(down * across for down, across in grids)) * super().most_patches()

    def images_of(self, inputs: dict[str, Any]) -> Sequence[Any]:
        """The tiles [t, 3, H, W] and the size (height, width) of each image."""
        return list(zip(inputs["pixel_values"], inputs["image_sizes"].tolist(), strict=True))

    def encode(self, pruner: Pruner, images: Sequence[Any]) -> list[Tensor]:
        grids = [grid_of(self.config, size) for _, size in images]
        # A processor that was given several images fills the tiles of the others up to the most.
        tiles = [pixels[: 1 + down * across] for (pixels, _), (down, across) in zip(images, grids, strict=True)]
        found, cut = {}, []
        for number, (own, (_, size)) in enumerate(zip(tiles, images, strict=True)):
            if self._fits(pruner, own, size):
                found[number] = self._unpruned(own, size)
            else:
                cut.append(number)
        if cut:
            pruned = self._pruned(pruner, [tiles[number] for number in cut], [grids[number] for number in cut])
            found.update(zip(cut, pruned, strict=True))
        return [found[number] for number in range(len(images))]

    def _fits(self, pruner: Pruner, tiles: Tensor, size: Sequence[int]) -> bool:
        """Whether the budget allows all tokens of an image."""
        stock = self._stock_tokens(size)
        return tokens_of(pruner, len(tiles), side_of(self.config) ** 2, stock) == stock

    def _stock_tokens(self, size: Sequence[int]) -> int:
        """Tokens of an unpruned image: its padding taken off, with one token at each end of a row."""
        side = side_of(self.config)
        down, across = grid_of(self.config, size)
        places = torch.arange(down * across * side**2).view(1, down * side, across * side)
        shown = unpad_image(places, (int(size[0]), int(size[1])))
        return side**2 + shown.numel() + shown.shape[1]

    def _unpruned(self, tiles: Tensor, size: Sequence[int]) -> Tensor:
        given = {"type": "pixel_values", "pixel_values": tiles[None], "image_sizes": torch.tensor([list(size)])}
        with rows(skip=True):
            [tokens] = self._process_image_input(given)
        return tokens

    def _pruned(self, pruner: Pruner, images: list[Tensor], grids: list[tuple[int, int]]) -> list[Tensor]:
        """Images of tiles [t, 3, H, W] -> for each its kept tokens [n, D]."""
        assert self.pruned is not None
        pixels = torch.cat(images)
        groups = [image for image, tiles in enumerate(images) for _ in range(len(tiles))]
        with rows(groups, spread=True):
            states, trace = self.pruned.run(pruner, lambda: self.vision_tower(pixels, feature_select_strategy="full"))
        lengths = [len(row) for row in states]
        features = self.multi_modal_projector(torch.cat(states)).split(lengths)
        found, first = [], 0
        for tiles, grid in zip(images, grids, strict=True):
            some = slice(first, first + len(tiles))
            order = raster_order(trace.final[some], grid, side_of(self.config))
            found.append(torch.cat(features[some])[order])
            first += len(tiles)
        return found


def raster_order(kept: Sequence[Tensor], grid: tuple[int, int], side: int) -> Tensor:
    """The order of an image's kept tokens: of the whole image first, then of the tiles in raster order of their grid.

    kept: for each tile, the whole image first, the patches [n] that its tokens come from; below 0 for tokens of no
        patch, which come last.

    Returns:
        [sum of n], numbers into the tokens of all tiles one after the other.
    """
    keys = [kept[0]]
    for number, patches in enumerate(kept[1:]):
        row = number // grid[1] * side + patches // side
        column = number % grid[1] * side + patches % side
        keys.append(side**2 + row * grid[1] * side + column)
    beyond = side**2 * (1 + grid[0] * grid[1])
    places = torch.cat([key.masked_fill(patches < 0, beyond) for key, patches in zip(keys, kept, strict=True)])
    return places.argsort(stable=True)
