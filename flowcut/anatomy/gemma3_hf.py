"""transformers' Gemma 3: SigLIP without CLS, 4 x 4 patches averaged to a token, images that attend in both directions.

Features are those after the tower's last layer. A square of patches is averaged to one token, so the encoder keeps or
drops such cells as a whole; the cells that are left fill as few rasters as they need, for the family's own projector.
The mean of all tokens is the global one (section 3.1). An image has 256 tokens and there are no tiles, so all is cut in
the encoder, as in LLaVA-1.5 (section 4, implementation details); crops (pan and scan) are images of their own.

In the language model the tokens of an image see each other in both directions, as `token_type_ids` say, and so do those
that are left. Gemma 4, whose tower has rotary embeddings and another pooling, is not of this family.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from flowcut.anatomy import siglip
from flowcut.anatomy.reading import body_and_head, class_names, language_model, unwrap
from flowcut.anatomy.towers import vision_encoders
from flowcut.compat import CACHE
from flowcut.hooks.call_context import KnownRows, rows
from flowcut.hooks.cells import KeptCells
from flowcut.hooks.packing import BLOCKS, FLAT_MASK, Aligned
from flowcut.hooks.parts import Anatomy
from flowcut.hooks.placeholders import Modality
from flowcut.hooks.prompt import CLOSED, PromptStage

FAMILY = "Gemma3ForConditionalGeneration, Gemma3Model (transformers)"
TYPES = "token_type_ids"


def read(model: Any) -> Anatomy | None:
    found = body_and_head(model, {"Gemma3ForConditionalGeneration"}, {"Gemma3Model"})
    if found is None:
        return None
    inner, head = found
    tower, projector = unwrap(inner.vision_tower), unwrap(inner.multi_modal_projector)
    if not class_names(tower) & siglip.NAMES:
        raise ValueError(
            f"a {type(tower).__name__} as vision tower of Gemma 3 cannot be pruned; known is SiglipVisionModel"
        )
    across, tokens = projector.patches_per_image, projector.tokens_per_side
    if across < tokens or across % tokens:
        raise ValueError(
            f"{across} x {across} patches cannot be divided into {tokens} x {tokens} tokens; set mm_tokens_per_image "
            "in the config so that its root divides image_size / patch_size, as in published checkpoints"
        )
    side, layers = projector.kernel_size, tower.config.num_hidden_layers
    encoders = vision_encoders(
        inner.vision_tower,
        feature_layer=layers - 1,
        last_layer=-2,
        patches_per_token=side**2,
        cell=(side, side),
        project=CellProjector(inner, tower),
    )
    return Anatomy(
        "gemma3_hf",
        tuple(encoders),
        **language_model(inner.language_model, head),
        stages=(partial(BlockPrompt, model=model, inner=inner, modalities=[Images()], aligned={TYPES: Aligned(0)}),),
    )


@dataclass(frozen=True)
class CellProjector:
    """The tower's last norm, average and projection, for patches [R, n, D] that lie cell by cell: [R, n / P, D']."""

    inner: Any
    tower: Any

    def __call__(self, states: Tensor) -> Tensor:
        size = unwrap(self.inner.multi_modal_projector).kernel_size ** 2
        cells = self.tower.post_layernorm(states).reshape(-1, size, states.shape[-1])
        return _tokens(self.inner.multi_modal_projector, cells).unflatten(0, (len(states), -1))


class Images(Modality):
    """One span of placeholders per image."""

    def __init__(self) -> None:
        super().__init__(more=())

    def encode(self, session: Any, inner: Any, call: dict[str, Any]) -> Any:
        shape = session.shape.encoders[0]
        with rows() as known:
            project = partial(_projected, inner.multi_modal_projector, known, shape)
            outputs = self.original(inner, call, multi_modal_projector=project)
        if known.trace is None:
            return outputs, [], None
        cells = KeptCells.of(known.trace, shape)
        return outputs, cells.spans(outputs.pooler_output.flatten(0, 1), range(len(cells.whole))), known.trace


def _projected(projector: Any, known: KnownRows, shape: Any, hidden: Tensor) -> Tensor:
    """The projector; where the tower dropped patches, of the cells that are left, [1, cells, D']."""
    if known.trace is None or not known.trace.kept:
        return projector(hidden)
    return _tokens(projector, KeptCells.of(known.trace, shape).gather(hidden))[None]


def _tokens(projector: Any, cells: Tensor) -> Tensor:
    """Cells [C, P, D], one after the other on rasters of the size that the projector takes, -> its tokens [C, D']."""
    whole = unwrap(projector)
    across, side = whole.tokens_per_side, whole.kernel_size
    filled = pad(cells, (0, 0, 0, 0, 0, -len(cells) % across**2))
    rasters = filled.view(-1, across, across, side, side, cells.shape[-1]).transpose(2, 3)
    return projector(rasters.flatten(1, 4)).flatten(0, 1)[: len(cells)]


class BlockPrompt(PromptStage):
    """Also keeps `token_type_ids` in step, by which the model makes its masks: they count from the first cached entry.

    The model prepares its masks before its language model runs, so what they were made from goes along.
    """

    def translate(self, call: dict[str, Any]) -> None:
        given, tokens = call.get(TYPES), call.get("input_ids")
        tokens = call.get("inputs_embeds") if tokens is None else tokens
        if given is not None and tokens is not None:
            call[TYPES] = given[:, -tokens.shape[1] :]
        super().translate(call)
        types, cache = call.get(TYPES), call.get(CACHE)
        if self.session.watches_decoder:
            call[FLAT_MASK], call[BLOCKS] = call.get("attention_mask"), None if types is None else blocks(types)
        if types is not None and call.get(CLOSED):
            types = pad(types, (cache.get_seq_length() if cache is not None else 0, 0))
        call[TYPES] = types if call.get(CLOSED) else given


def blocks(types: Tensor) -> Tensor:
    """[B, S], the number of the image that each token is of, -1 for text; images are runs of type 1."""
    number = pad(types.diff(dim=1) != 0, (1, 0)).cumsum(dim=1)
    return number.masked_fill(types != 1, -1)
