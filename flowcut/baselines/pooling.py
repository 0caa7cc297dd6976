"""Average pooling: the control that shrinks the picture instead of choosing from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn.utils.rnn import pad_sequence

from flowcut.baselines.uniform import cells, middles
from flowcut.pruner import Cut, Pruner, View

if TYPE_CHECKING:
    from flowcut.anatomy import Anatomy


@dataclass(frozen=True)
class Pooling(Pruner):
    """Replace the patches of every cell of a grid by their mean; the grid has `budget` cells of near-equal area.

    No paper: a control. Done once, on the output of the layer LLaVA reads its features from (the last but one), with
    the cells of `Uniform`; in the trace a cell is named by its middle patch. Every token is a merged one. Each anyres
    tile and each video frame is pooled by itself, to its share of the budget. Encoders without a CLS token make no
    difference. Consecutive positions in the language model. Nothing depends on the batch.

    Attributes:
        budget: visual tokens that reach the language model, per image or video frame.

    Raises:
        ValueError: when attached to a model that merges 2 x 2 patches itself (Qwen2-VL).
    """

    reads_hidden: ClassVar[bool] = True

    def check(self, anatomy: Anatomy) -> None:
        anatomy.refuse_merging("Pooling")

    def vision(self, view: View) -> Cut | None:
        counts = view.once(self.budget)
        if counts is None:
            return None
        states, rows = view.visual(view.hidden), []
        for number, (count, grid) in enumerate(zip(counts, view.grids, strict=True)):
            found = cells(*grid, count)
            own = states[number, : view.counts[number]].float().unflatten(0, grid)
            pooled = [own[top:bottom, left:right].mean(dim=(0, 1)) for top, bottom, left, right in found.tolist()]
            rows.append((middles(found, grid[1]).to(states.device), torch.stack(pooled)))
        lengths = tuple(len(anchors) for anchors, _ in rows)
        return Cut(
            pad_sequence([anchors for anchors, _ in rows], batch_first=True),
            lengths if len(set(lengths)) > 1 else None,
            pad_sequence([pooled for _, pooled in rows], batch_first=True),
        )
