"""transformers' SmolVLM and Idefics3: tiles of a picture by SigLIP's ViT, pixel shuffle of 2 x 2 (3 x 3) patches.

Features are those after the last layer. A square of patches becomes one token, so the encoder keeps or drops such cells
as a whole. The tiles of a picture, the small whole one last, share its budget, though text stands between them; a frame
of a video counts as a picture. Without a CLS token the mean of all tokens is the global one (section 3.1). As in the
paper's models with long inputs (section 4, implementation details) the encoder keeps twice the budget, and the language
model the budget after its second layer. Patches of padding (`pixel_attention_mask`) are not attended to.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flowcut.anatomy.reading import body_and_head, copies, language_model
from flowcut.hooks.call_context import KnownRows, prompt_under_way, rows
from flowcut.hooks.cells import KeptCells, runs
from flowcut.hooks.parts import Anatomy, Encoder
from flowcut.hooks.placeholders import Modality, placeholders
from flowcut.hooks.prompt import PromptStage

FAMILY = "SmolVLMForConditionalGeneration, Idefics3ForConditionalGeneration and their models (transformers)"
_HEADS = {"SmolVLMForConditionalGeneration", "Idefics3ForConditionalGeneration"}


def read(model: Any) -> Anatomy | None:
    found = body_and_head(model, _HEADS, {"SmolVLMModel", "Idefics3Model"})
    if found is None:
        return None
    inner, head = found
    return Anatomy(
        "smolvlm_hf",
        tuple(encoder_of(tower, inner) for tower in copies(inner.vision_model)),
        **language_model(inner.text_model, head),
        two_stage=True,
        stages=(partial(PromptStage, model=model, inner=inner, modalities=[Tiles()]),),
    )


def encoder_of(tower: Any, inner: Any) -> Encoder:
    """The parts of a SmolVLMVisionTransformer inside of a SmolVLMModel."""
    layers, side = list(tower.encoder.layers), inner.config.scale_factor
    return Encoder(
        tower,
        layers,
        [layer.self_attn for layer in layers],
        tower.config.num_hidden_layers,
        num_prefix_tokens=0,
        feature_layer=tower.config.num_hidden_layers - 1,
        last_layer=-2,
        patches_per_token=side**2,
        cell=(side, side),
        two_stage=True,
        project=CellProjector(inner, tower),
    )


@dataclass(frozen=True)
class CellProjector:
    """The tower's last norm and the connector, for patches [R, n, D] that lie cell by cell: [R, n / P, D']."""

    inner: Any
    tower: Any

    def __call__(self, states: Tensor) -> Tensor:
        cells = self.tower.post_layernorm(states).reshape(-1, self.inner.config.scale_factor**2, states.shape[-1])
        return self.inner.connector(cells).reshape(len(states), -1, self.inner.config.text_config.hidden_size)


class Tiles(Modality):
    """One span of placeholders per picture, over all its tiles, or per frame of a video."""

    def __init__(self) -> None:
        super().__init__(more=("pixel_attention_mask",))

    def encode(self, session: Any, inner: Any, call: dict[str, Any]) -> Any:
        shape, pixels = session.shape.encoders[0], call["pixel_values"]
        number = int((pixels != 0).flatten(2).any(dim=2).sum())  # tiles that are all 0 are padding
        groups = self.pictures(inner, max(number, 1))
        with rows(groups, spread=True) as known:
            connect = partial(_connected, inner.connector, known, shape)
            outputs = self.original(inner, call, connector=connect)
        trace = known.trace
        if trace is None:
            return outputs, [], None
        cells, width = KeptCells.of(trace, shape), inner.config.text_config.hidden_size
        features = torch.cat([part.reshape(-1, width) for part in outputs.pooler_output])
        if trace.kept:  # of each row there are as many as of the longest
            counts = [len(numbers) for numbers in cells.numbers]
            tiles = features.view(len(counts), -1, width)
            features = torch.cat([tile[:count] for tile, count in zip(tiles, counts, strict=True)])
        return outputs, cells.spans(features, groups), trace

    def pictures(self, inner: Any, tiles: int) -> list[int]:
        """The number of each tile's picture, by what stands around its placeholders.

        The processor opens each tile with a token of its own, closes the picture with the same, and names the tile in
        between: by row and column, in the end by a name that ends every picture. What is written in another way is a
        picture for each tile, and so are tiles without a prompt (features that are asked for by themselves).
        """
        prompt = prompt_under_way()
        if prompt is None:
            return list(range(tiles))
        at = placeholders(inner, inner.config.image_token_id, prompt.input_ids, prompt.inputs_embeds)
        found = [
            (row, start + first) for row, start, length in runs(at) for first in range(0, length, inner.image_seq_len)
        ]
        if len(found) != tiles or int(at.sum()) != tiles * inner.image_seq_len:
            raise ValueError(
                f"{int(at.sum())} image placeholders in {len(found)} runs for {tiles} tiles; write "
                f"{inner.image_seq_len} for each tile"
            )
        if prompt.input_ids is None or not prompt.input_ids.numel():
            return list(range(tiles))
        lines = prompt.input_ids.tolist()
        last = {row: _around(lines[row], start, inner.image_seq_len) for row, start in found}
        pictures, number = [], 0
        for row, start in found:
            pictures.append(number)
            opening, name, _ = _around(lines[row], start, inner.image_seq_len)
            known_opening, ending, closing = last[row]
            tile = opening is not None and opening == known_opening == closing
            number += not tile or name == ending
        return pictures


def _around(line: list[int], start: int, length: int) -> tuple[int | None, ...]:
    """The second token and the one before a tile's placeholders, and the one after them."""
    places = (start - 2, start - 1, start + length)
    return tuple(line[place] if 0 <= place < len(line) else None for place in places)


def _connected(connector: Any, known: KnownRows, shape: Any, hidden: Tensor) -> Tensor:
    """The connector; where the tower dropped patches, each cell that is left is shuffled as a picture of its own."""
    if known.trace is None or not known.trace.kept:
        return connector(hidden)
    cells = KeptCells.of(known.trace, shape)
    tokens = connector(cells.gather(hidden)).flatten(0, 1)
    return pad_sequence(list(tokens.split([len(numbers) for numbers in cells.numbers])), batch_first=True)
