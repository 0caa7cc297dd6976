"""transformers' LLaVA-NeXT(-Video) and LLaVA-OneVision: an image as a small whole and a grid of tiles, cut twice.

The encoder keeps half the budget of every tile. The kept tokens of the tiles are put back on their joined grid, rows
and columns of padding are taken off, and the rest follows the whole image in raster order, without the tokens that end
image rows in the unpruned model. After its second layer the language model goes on with the budget. OneVision's
shrinking of large grids has nothing to shrink then. Videos (of OneVision and NeXT-Video) are one-stage: every frame
keeps the budget of its patches, which are not averaged two by two.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowcut.anatomy.reading import Projector, body_and_head, class_names, feature_layer, language_model
from flowcut.anatomy.towers import vision_encoder, vision_encoders
from flowcut.hooks.call_context import KnownRows, rows
from flowcut.hooks.parts import Anatomy
from flowcut.hooks.placeholders import Modality, PlaceholderSpan
from flowcut.hooks.prompt import PromptStage

FAMILY = (
    "LlavaNextForConditionalGeneration, LlavaNextVideoForConditionalGeneration, LlavaOnevisionForConditionalGeneration "
    "and their models (transformers)"
)
_MODELS = {"LlavaNextModel", "LlavaNextVideoModel", "LlavaOnevisionModel"}
_HEADS = {name.removesuffix("Model") + "ForConditionalGeneration" for name in _MODELS}


def read(model: Any) -> Anatomy | None:
    found = body_and_head(model, _HEADS, _MODELS)
    if found is None:
        return None
    inner, head = found
    config = inner.config
    encoder = vision_encoder(inner.vision_tower)
    if encoder.num_prefix_tokens and config.vision_feature_select_strategy == "full":
        raise ValueError("vision_feature_select_strategy='full' puts CLS tokens among tiles; use 'default' to prune")
    read_after = feature_layer(encoder.depth, config.vision_feature_layer)
    project = Projector(inner.multi_modal_projector, config.vision_feature_layer)
    encoders = vision_encoders(inner.vision_tower, feature_layer=read_after, two_stage=True, project=project)
    modalities: list[Modality] = [Tiles()]
    if class_names(inner) & {"LlavaOnevisionModel"}:
        modalities = [Tiles(more=(*Tiles().more, "vision_aspect_ratio", "batch_num_images")), Frames()]
    elif class_names(inner) & {"LlavaNextVideoModel"}:
        modalities = [Tiles(), ResampledFrames()]
    return Anatomy(
        "llava_next_hf",
        tuple(encoders),
        **language_model(inner.language_model, head),
        two_stage=True,
        stages=(partial(PromptStage, model=model, inner=inner, modalities=modalities),),
    )


class Tiles(Modality):
    """One span of placeholders per image, whatever its number of tiles."""

    def __init__(self, more: tuple[str, ...] | None = None) -> None:
        super().__init__(more=more or ("image_sizes", "vision_feature_layer", "vision_feature_select_strategy"))

    def encode(self, session: Any, inner: Any, call: dict[str, Any]) -> Any:
        tiles = self.tiles(inner, call)
        groups = [image for image, count in enumerate(tiles) for _ in range(count)]
        spans: list[PlaceholderSpan] = []
        with rows(groups, spread=True) as known:

            def merge(image_features: Any, image_sizes: Any, *args: Any, **kwargs: Any) -> Any:
                features = self.merge(inner, known, spans, image_features, image_sizes, *args, **kwargs)
                return features, torch.tensor([len(feature) for feature in features])

            outputs = self.original(inner, call, pack_image_features=merge)
        return outputs, spans, known.trace

    def tiles(self, inner: Any, call: dict[str, Any]) -> list[int]:
        """How many encoder rows each image has, by the family's own rule."""
        count = sys.modules[type(inner).__module__].image_size_to_num_patches
        config, several = inner.config, call.get("batch_num_images")
        alone = [True] * len(call["image_sizes"])
        if several is not None:
            alone = [int(images) == 1 for images in several for _ in range(int(images))]
        return [
            count(size, config.image_grid_pinpoints, config.vision_config.image_size) if cut_up else 1
            for size, cut_up in zip(call["image_sizes"], alone, strict=True)
        ]

    def merge(
        self,
        inner: Any,
        known: KnownRows,
        spans: list[PlaceholderSpan],
        image_features: Any,
        image_sizes: Any,
        *args: Any,
        **kw: Any,
    ) -> list[Tensor]:
        """In the place of `pack_image_features`: lay out the kept tokens of the tiles as the unpruned model would."""
        original = type(inner).pack_image_features
        trace = known.trace
        if trace is None:
            return original(inner, image_features, image_sizes, *args, **kw)[0]
        patches, device = trace.entering[0][0], image_features[0].device
        side = inner.config.vision_config.image_size // inner.config.vision_config.patch_size
        first, result = 0, []
        plain = original(inner, image_features, image_sizes, *args, **kw)[0] if not trace.kept else None
        for number, feature in enumerate(image_features):
            count = len(feature)
            # The family's own layout, applied to the numbers of the patches instead of their features.
            names = torch.arange(count * patches, device=device, dtype=torch.float64).view(count, patches, 1)
            size = image_sizes[number : number + 1]
            end = torch.full((1,), -1.0, device=device, dtype=torch.float64)
            length = len(original(inner, [names], size, *args, **{**kw, "image_newline": end})[0][0])
            large = {**kw, "vision_aspect_ratio": "anyres_max_1000000"} if "vision_aspect_ratio" in kw else kw
            if plain is not None:
                layout = original(inner, [names], size, *args, **{**kw, "image_newline": end})[0][0]
                layout = layout[:, 0].round().long()
                tokens = torch.stack([layout.div(patches, rounding_mode="floor") + first, layout % patches], dim=1)
                tokens[layout < 0] = -1
                chosen, result_features = tokens, plain[number]
            else:
                if side * side != patches:
                    raise ValueError(
                        f"tiles of {patches} patches are not {side} x {side}; pruned tiles have to be square"
                    )
                layout = original(inner, [names], size, *args, **{**large, "image_newline": None})[0][0]
                layout = layout[:, 0].round().long()
                place = torch.full((count * patches,), -1, device=device)
                special = []  # CLS tokens that the method sends on have no place on the grid; they come last
                for tile, kept in enumerate(trace.final[first : first + count]):
                    rank = torch.arange(len(kept), device=device) + tile * feature.shape[1]
                    place[kept[kept >= 0] + tile * patches] = rank[kept >= 0]
                    special += [(tile + first, int(one)) for one in rank[kept < 0]]
                layout = layout[place[layout] >= 0]
                chosen = torch.stack([layout.div(patches, rounding_mode="floor") + first, layout % patches], dim=1)
                chosen = torch.cat([chosen, layout.new_tensor([(tile, -1) for tile, _ in special]).view(-1, 2)])
                order = torch.cat([place[layout], layout.new_tensor([one for _, one in special])])
                result_features = feature.flatten(0, 1)[order]
            stays = torch.arange(max(length, len(chosen)), device=device) < len(chosen)
            spans.append(PlaceholderSpan(result_features, stays, chosen))
            result.append(result_features)
            first += count
        return result


class Frames(Modality):
    """OneVision's videos: one span per frame, and one for the token that ends the video.

    Attributes:
        pooling: the name of what averages a frame's tokens, which pruned frames pass by.
        ends: how many tokens end a video.
    """

    pooling = "apply_pooling"
    ends = 1

    def __init__(self) -> None:
        super().__init__(
            "video",
            "get_video_features",
            "pixel_values_videos",
            ("vision_feature_layer", "vision_feature_select_strategy"),
            "video_token_id",
        )

    def spans_of_items(self, call: dict[str, Any]) -> list[int]:
        videos, frames = call["pixel_values_videos"].shape[:2]
        return [frames + (self.ends > 0)] * videos

    def pooled(self, config: Any) -> int:
        """Tokens of an unpruned frame."""
        return ((config.vision_config.image_size // config.vision_config.patch_size + 1) // 2) ** 2

    def encode(self, session: Any, inner: Any, call: dict[str, Any]) -> Any:
        videos, frames = call["pixel_values_videos"].shape[:2]
        pooled, original = self.pooled(inner.config), getattr(inner, self.pooling)
        groups = [video for video in range(videos) for _ in range(frames)]
        with rows(groups, skip=session.pruner.tokens_of(pooled) >= pooled, unpruned_tokens=pooled) as known:

            def pool(features: Tensor) -> Tensor:
                cut = known.trace is not None and known.trace.kept
                return features if cut else original(features)

            outputs = self.original(inner, call, **{self.pooling: pool})
        trace = known.trace
        if trace is None:
            return outputs, [], None
        spans, index = [], torch.arange(pooled, device=outputs.pooler_output.device)
        for video, features in enumerate(outputs.pooler_output):
            whole, end = features.split([len(features) - self.ends, self.ends])
            for frame, part in enumerate(whole.chunk(frames)):
                row = video * frames + frame
                kept = trace.final[row] if trace.kept else torch.full_like(index, -1)
                tokens = torch.stack([torch.full_like(kept, row), kept], dim=1)
                spans.append(PlaceholderSpan(part, index < len(part), tokens))
            if self.ends:
                spans.append(PlaceholderSpan(end, torch.ones_like(index[:1], dtype=torch.bool), None))
        return outputs, spans, trace


class ResampledFrames(Frames):
    """LLaVA-NeXT-Video's videos: one span per frame."""

    pooling = "vision_resampler"
    ends = 0

    def pooled(self, config: Any) -> int:
        side = config.vision_config.image_size // config.vision_config.patch_size
        return (side // config.spatial_pool_stride) ** 2
