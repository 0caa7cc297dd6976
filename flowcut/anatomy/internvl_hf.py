"""transformers' InternVL (3 and 3.5): tiles of a picture by a ViT with a CLS token, pixel shuffle to a quarter of them.

Features are those after the last layer, without the CLS token. A square of 2 x 2 patches becomes one token, so the
encoder keeps or drops such cells as a whole. A picture of several tiles is one run of placeholders and has one budget,
which its tiles share; a frame of a video has a run, and a budget, of its own. As in the paper's models with long inputs
(section 4, implementation details) the encoder keeps twice the budget, and the language model the budget after its
second layer. The CLS token gives the global attention of equation 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from flowcut.anatomy.reading import body_and_head, class_names, copies, language_model
from flowcut.hooks.call_context import KnownRows, prompt_under_way, rows
from flowcut.hooks.cells import KeptCells, runs
from flowcut.hooks.parts import Anatomy, Encoder
from flowcut.hooks.placeholders import Modality, placeholders
from flowcut.hooks.prompt import PromptStage

FAMILY = "InternVLForConditionalGeneration, InternVLModel (transformers)"


def read(model: Any) -> Anatomy | None:
    found = body_and_head(model, {"InternVLForConditionalGeneration"}, {"InternVLModel"})
    if found is None:
        return None
    inner, head = found
    config = inner.config
    if config.vision_feature_layer != -1 or config.vision_feature_select_strategy != "default":
        raise ValueError(
            f"vision_feature_layer={config.vision_feature_layer} with vision_feature_select_strategy="
            f"{config.vision_feature_select_strategy!r} is not supported for InternVL; use -1 and 'default', as "
            "published"
        )
    return Anatomy(
        "internvl_hf",
        tuple(encoder_of(tower, inner) for tower in copies(inner.vision_tower)),
        **language_model(inner.language_model, head),
        two_stage=True,
        stages=(partial(PromptStage, model=model, inner=inner, modalities=[Tiles()]),),
    )


def encoder_of(tower: Any, inner: Any) -> Encoder:
    """The parts of an InternVLVisionModel inside of an InternVLModel."""
    if not class_names(tower) & {"InternVLVisionModel"}:
        raise ValueError(
            f"a {type(tower).__name__} as vision tower of InternVL cannot be pruned; known is InternVLVisionModel"
        )
    layers, side = list(tower.encoder.layer), round(1 / inner.config.downsample_ratio)
    return Encoder(
        tower,
        layers,
        [layer.attention for layer in layers],
        tower.config.num_hidden_layers,
        num_prefix_tokens=1,
        feature_layer=tower.config.num_hidden_layers - 1,
        last_layer=-2,
        patches_per_token=side**2,
        cell=(side, side),
        two_stage=True,
        project=CellProjector(inner, tower, side),
    )


@dataclass(frozen=True)
class CellProjector:
    """InternVL's norm, pixel shuffle and projector, for patches [R, n, D] that lie cell by cell: [R, n / 4, D']."""

    inner: Any
    tower: Any
    side: int

    def __call__(self, states: Tensor) -> Tensor:
        cells = self.tower.layernorm(states).reshape(-1, self.side, self.side, states.shape[-1])
        tokens = self.inner.pixel_shuffle(cells, scale_factor=self.inner.config.downsample_ratio)
        return self.inner.multi_modal_projector(tokens.flatten(1)).unflatten(0, (len(states), -1))


class Tiles(Modality):
    """One span of placeholders per picture, or per frame of a video."""

    def encode(self, session: Any, inner: Any, call: dict[str, Any]) -> Any:
        shape = session.shape.encoders[0]
        groups = self.pictures(inner, call["pixel_values"])
        with rows(groups, spread=True) as known:
            outputs = self.original(inner, call, vision_tower=partial(_cells_alone, inner.vision_tower, known, shape))
        if known.trace is None:
            return outputs, [], None
        return outputs, KeptCells.of(known.trace, shape).spans(outputs.pooler_output.flatten(0, 1), groups), known.trace

    def pictures(self, inner: Any, pixels: Tensor) -> list[int]:
        """The number of each tile's picture: tiles whose placeholders stand in one run show the same.

        Without a prompt (features that are asked for by themselves) every tile is a picture.
        """
        prompt = prompt_under_way()
        if prompt is None:
            return list(range(len(pixels)))
        at = placeholders(inner, inner.config.image_token_id, prompt.input_ids, prompt.inputs_embeds)
        side = round(1 / inner.config.downsample_ratio)
        patch = inner.config.vision_config.patch_size
        each = (pixels.shape[-2] // patch[0] // side) * (pixels.shape[-1] // patch[1] // side)
        lengths = [length for *_, length in runs(at)]
        if any(length % each for length in lengths) or sum(lengths) != each * len(pixels):
            raise ValueError(
                f"{sum(lengths)} image placeholders in runs of {lengths[:4]} for {len(pixels)} tiles; write {each} for "
                "each tile, those of one picture without a gap"
            )
        return [picture for picture, length in enumerate(lengths) for _ in range(length // each)]


def _cells_alone(tower: Any, known: KnownRows, shape: Any, **call: Any) -> Any:
    """The tower; where it dropped patches, each cell that is left comes as a picture of its own."""
    outputs = tower(**call)
    if known.trace is not None and known.trace.kept:
        cells = KeptCells.of(known.trace, shape).gather(outputs.last_hidden_state, prefix=1)
        outputs.last_hidden_state = _behind_any(cells)
    return outputs


def _behind_any(cells: Tensor) -> Tensor:
    """[C, P, D] -> [C, 1 + P, D], with something in the place of the CLS token, which is not read."""
    return cells[:, [0, *range(cells.shape[1])]]
