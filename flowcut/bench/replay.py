"""A pruner that drops as many tokens as another one did, chosen by nothing: what pruning costs without its scores."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from flowcut.attach import Handle
from flowcut.pruner import Cut, LanguageView, Pruner, View
from flowcut.trace import StageTrace


@dataclass(frozen=True)
class Replay(Pruner):
    """Drops as many tokens as another pruner dropped in the same call, evenly spread.

    Attributes:
        cuts, language_cuts: by layer, what to answer there.
        watches: whether the other one watched the language model.
        original: the other one, which answers for what Qwen2-VL's hooks ask.
    """

    cuts: dict[int, Cut] = field(default_factory=dict)
    language_cuts: dict[int, Cut] = field(default_factory=dict)
    watches: bool = False
    original: Pruner | None = None

    @property
    def keeps_groups(self) -> bool:
        return self.original is None or self.original.keeps_groups

    @property
    def keeps_position_ids(self) -> bool:
        return self.original is None or self.original.keeps_position_ids

    @classmethod
    def of(cls, handle: Handle, device: torch.device) -> Replay:
        """Of what an attached pruner did in its last forward."""
        trace, pruner = handle.trace, handle.pruner
        assert trace is not None
        unit = handle.shape.encoders[-1].patches_per_token if pruner.keeps_groups else 1
        language = _even_cuts(trace.language or StageTrace(), 1, device)
        return cls(pruner.budget, _even_cuts(trace, unit, device), language, handle.watches_decoder, pruner)

    def cuts_language(self, two_stage: bool) -> bool:
        return self.watches

    def vision(self, view: View) -> Cut | None:
        return self.cuts.get(view.layer)

    def language(self, view: LanguageView) -> Cut | None:
        return self.language_cuts.get(view.layer)


def _even_cuts(trace: StageTrace, unit: int, device: torch.device) -> dict[int, Cut]:
    cuts = {}
    for layer, (before, after) in enumerate(zip(trace.entering, trace.leaving, strict=True)):
        if before != after:
            groups = [torch.arange(k // unit) * (n // unit) // (k // unit) for n, k in zip(before, after, strict=True)]
            rows = [(row[:, None] * unit + torch.arange(unit)).flatten() for row in groups]
            keep = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
            cuts[layer] = Cut(keep, None if len(set(after)) == 1 else after)
    return cuts
