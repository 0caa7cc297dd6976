"""Random choice: the control every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flowcut.pruner import Cut, Pruner, View


@dataclass(frozen=True)
class Random(Pruner):
    """Keep a random subset of the patches, once, after the layer LLaVA reads its features from (the last but one).

    The draw depends on the seed, the budget and the number of patches only, so it is the same for every image: a
    sample cannot depend on its batch mates, and a run can be repeated. Take several seeds to average over draws.

    Attributes:
        budget: visual tokens that reach the language model, per image.
        seed: which draw.
    """

    seed: int = 0

    def vision(self, view: View) -> Cut | None:
        target = self.budget - view.reserved
        patches = view.positions.shape[1]
        if view.layer != view.layers - 2 or patches <= target:
            return None
        generator = torch.Generator().manual_seed(self.seed)
        keep = torch.randperm(patches, generator=generator)[:target].sort().values
        return Cut(keep.to(view.hidden.device).expand(len(view.counts), target))
