"""Random choice: the control every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowcut.pruner import Scorer, View


@dataclass(frozen=True)
class Random(Scorer):
    """Keep a random subset of the patches, once, after the layer that LLaVA reads its features from.

    The draw depends on the seed, the budget and the number of patches only, so it is the same for every image: a
    sample cannot depend on its batch mates, and a run can be repeated. Take several seeds to average over draws.

    Attributes:
        budget: visual tokens that reach the language model, per image.
        seed: which draw.
    """

    name: ClassVar[str] = "random"
    reference: ClassVar[str] = "control: a random subset"

    seed: int = 0

    def score(self, view: View) -> Tensor:
        score = torch.zeros(view.positions.shape)
        for row, count in enumerate(view.counts):
            generator = torch.Generator().manual_seed(self.seed)
            draw = torch.randperm(count, generator=generator)
            score[row, draw] = torch.arange(count, 0, -1, dtype=score.dtype)  # the first drawn are the best
        return score.to(view.positions.device)
