"""Training on high-resolution images in tiles (`--image_aspect_ratio anyres`): valid grids, and the token counts of
images.

LLaVA never released this part of v1.6's training. The flags are those stored in its checkpoints.
"""

from dataclasses import dataclass
from typing import Any

from transformers.utils import logging

from flowcut import Pruner
from flowcut.pruner import EncoderShape, Rows
from llava.mm_utils import Size, get_anyres_image_grid_shape
from llava.model.anyres import unpadded_box
from llava.model.fields import GRIDS as PUBLISHED_GRIDS
from llava.model.fields import parse_grids as grids_of

logger = logging.get_logger(__name__)


def parse_grids(text: Any) -> list[Size]:
    """Canvas sizes (width, height) from the flag's text or a checkpoint's list; ValueError, one line."""
    return grids_of(text, "--image_grid_pinpoints")


def check_grids(grids: list[Size], side: int) -> None:
    """Raise ValueError, one line, unless every canvas consists of whole tiles of the tower's `side` x `side` pixels."""
    wrong = [grid for grid in grids if grid[0] % side or grid[1] % side]
    if wrong:
        width, height = wrong[0]
        raise ValueError(
            f"--image_grid_pinpoints: {width} x {height} is not made of whole tiles of {side} x {side} pixels, which "
            f"this vision tower takes; give multiples of {side}, or another --vision_tower"
        )


@dataclass(frozen=True)
class TileCount:
    """The number of visual tokens of an anyres image; call it with its (width, height).

    side: pixels along a side of a tile. patches: of a tile. grids: see `parse_grids`. merge_type: `flat`, `spatial` or
    `spatial_unpad`. pruner: the attached one, if any; kept padding tokens are counted although some of them
    are removed, so the number is then an upper bound.
    """

    side: int
    patches: int
    grids: tuple[Size, ...]
    merge_type: str
    pruner: Pruner | None = None

    def __call__(self, size: Size) -> int:
        across, down = get_anyres_image_grid_shape(size, self.grids, self.side)
        tiles = 1 + across * down
        left = [self.patches] * tiles if self.pruner is None else patches_left(self.pruner, self.patches, tiles)
        if sum(left) < tiles * self.patches or "unpad" not in self.merge_type:
            return sum(left)
        per_side = int(self.patches**0.5)
        rows, columns = unpadded_box(across * per_side, down * per_side, size)
        line = columns.stop - columns.start + 1  # the newline token
        return self.patches + (rows.stop - rows.start) * line


def patches_left(pruner: Pruner, patches: int, tiles: int) -> list[int]:
    """The patches of each tile of one image that leave the vision tower with a pruner attached; `Pruner.targets`."""
    if type(pruner).vision is Pruner.vision:
        return [patches] * tiles
    rows = Rows((0,) * tiles, (tiles,) * tiles, ((1, patches),) * tiles, (patches * tiles,) * tiles)
    shape = EncoderShape("CLIPVisionModel", 1, 1, num_prefix_tokens=1, two_stage=True)
    targets = pruner.targets(rows, shape)
    return [min(patches, target) for target in targets]


def warn_of_other_pictures(config: Any, model_args: Any, data_args: Any) -> None:
    """One warning for each flag that prepares pictures differently from the LLaVA checkpoint's training."""
    if not getattr(config, "mm_vision_tower", None):
        return
    for name, used in (("image_aspect_ratio", data_args), ("mm_patch_merge_type", model_args)):
        before, now = getattr(config, name, None), getattr(used, name)
        if before is not None and before != now:
            logger.warning(f"the checkpoint was trained with --{name} {before}, this run continues with {now}")


def configure_anyres(config: Any, tower: Any, data_args: Any) -> None:
    """Set the grids in the model's config, so that checkpoints store them, and image lengths in `data_args`.

    The grids are those of `--image_grid_pinpoints`, else of the checkpoint that training continues from.
    Raises ValueError, one line, when there are none, or when they do not fit the tower.
    """
    given = data_args.image_grid_pinpoints or getattr(config, "image_grid_pinpoints", None)
    if given is None:
        raise ValueError(f'--image_aspect_ratio anyres needs --image_grid_pinpoints, such as "{PUBLISHED_GRIDS}"')
    grids = parse_grids(given)
    side = tower.config.image_size
    check_grids(grids, side)
    crop = tower.image_processor.crop_size["height"]
    if crop != side:
        raise ValueError(
            f"the image processor of {tower.vision_tower_name} crops to {crop} pixels, but its tower takes {side}; "
            f"both must be equal for tiles; correct preprocessor_config.json"
        )
    if config.mm_patch_merge_type != "flat" and config.mm_vision_select_feature != "patch":
        raise ValueError(
            f"--mm_patch_merge_type {config.mm_patch_merge_type} arranges patches on a grid, which has no place for "
            f"CLS; use --mm_vision_select_feature patch, or --mm_patch_merge_type flat"
        )
    config.image_grid_pinpoints = [list(grid) for grid in grids]
    data_args.image_grid_pinpoints = grids
    data_args.tile_count = TileCount(side, tower.num_patches, tuple(grids), config.mm_patch_merge_type)
