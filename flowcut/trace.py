"""What a pruner did in the last forward that saw images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class StageTrace:
    """What happened in one stage of the last forward that saw images.

    Attributes:
        kept: {layer: [LongTensor per image]}, for each layer after which the pruner selected.
        entering: [layer][image], visual tokens that went into each layer.
        leaving: [layer][image], visual tokens that came out of it.
        signals: {layer: {name: values}}, with attach(..., signals=True). Per-token signals are lists with one tensor
            per image, per-image ones an [R] tensor.
        mixed: whether remaining tokens were given new states, of other tokens too, by a method that does not tell which
            token went into which.
    """

    kept: dict[int, list[Tensor]] = field(default_factory=dict)
    entering: list[tuple[int, ...]] = field(default_factory=list)
    leaving: list[tuple[int, ...]] = field(default_factory=list)
    signals: dict[int, dict[str, Any]] = field(default_factory=dict)
    mixed: bool = False

    def path(self, sample: int = 0) -> list[int]:
        """How many visual tokens of one image went into each layer; what `flowcut.cost` takes."""
        return [counts[sample] for counts in self.entering]

    @property
    def final(self) -> list[Tensor]:
        """What remained at the end, one LongTensor per image."""
        if self.kept:
            return self.kept[max(self.kept)]
        return [torch.arange(count) for count in (self.entering[0] if self.entering else ())]

    def join(self, other: StageTrace) -> None:
        """Append the rows of another trace of the same layers: videos after images."""
        ends = self.final, other.final
        for layer in sorted({*self.kept, *other.kept}):
            mine, theirs = (
                trace.kept.get(layer) or [torch.arange(n) for n in trace.leaving[layer]] for trace in (self, other)
            )
            self.kept[layer] = [*mine, *theirs]
        if self.kept:
            self.kept[max(self.kept)] = [*ends[0], *ends[1]]
        self.entering = [a + b for a, b in zip(self.entering, other.entering, strict=True)]
        self.leaving = [a + b for a, b in zip(self.leaving, other.leaving, strict=True)]
        self.mixed = self.mixed or other.mixed
        for layer, signals in other.signals.items():
            for name, values in signals.items():
                there = self.signals.setdefault(layer, {}).get(name)
                joined = values if there is None else [*there, *values]
                self.signals[layer][name] = joined if isinstance(values, list) else torch.as_tensor(joined)

    def note(self, name: str, values: Tensor, layer: int, counts: Sequence[int]) -> None:
        rows: Any = values.detach().clone()
        if values.ndim == 2:
            rows = [row[:count] for row, count in zip(rows, counts, strict=True)]
        self.signals.setdefault(layer, {})[name] = rows


@dataclass
class Trace(StageTrace):
    """What happened in the vision encoder, and after it. Counts leave out special tokens such as CLS.

    `kept`, `entering`, `leaving`, `signals` and `final` speak of the encoder: one entry per encoder row (image, tile or
    frame), kept patches by their position in that row's original grid, `CLS` for a CLS token sent on.

    Attributes:
        tokens: for each image as the language model sees it, [V, 2]: encoder row and grid position of every visual
            token, in order. A position of -1 is no patch (CLS, or the end of an image row).
        language: what happened inside the language model: one entry per image that is shown there, kept tokens by
            their number in `tokens`. None where the pruner leaves the language model alone.
        shown: the images (numbers into `tokens`) that the entries of `language` are about.
        sources: one [N] per encoder row, if patches were merged one into the other: the number in `final` of the token
            that each patch of the grid went into, -1 if it was dropped. Empty otherwise. See `members`. Pooling and
            VisionZip, which make their tokens themselves, tell it with attach(..., signals=True).
        merged_before_mlp: whether tokens were merged between attention and MLP, so that an MLP had what left its layer.
        unpruned_tokens: for each encoder row, the tokens its image or frame has where nothing is dropped; see
            `flowcut.pruner.Rows`.
        budgets: for each encoder row, the budget of its image or frame, a share as the number it comes to.
        computed: [layer][row], visual tokens that each layer worked on: those of `entering`, and the padding of rows
            that were a little shorter than others of their batch.
    """

    tokens: list[Tensor] = field(default_factory=list)
    language: StageTrace | None = None
    shown: tuple[int, ...] = ()
    sources: list[Tensor] = field(default_factory=list)
    merged_before_mlp: bool = False
    unpruned_tokens: tuple[int, ...] = ()
    budgets: tuple[int, ...] = ()
    computed: list[tuple[int, ...]] = field(default_factory=list)

    def place(self, tokens: list[Tensor]) -> None:
        """Say where the tokens of each image, as the language model sees it, come from; see `tokens`."""
        self.tokens = tokens

    def members(self, row: int = 0) -> list[Tensor]:
        """For each token that an encoder row ended with, the grid positions of the patches it is made of."""
        if not self.sources:
            return [position[None] for position in self.final[row]]
        return [(self.sources[row] == number).nonzero()[:, 0] for number in range(len(self.final[row]))]

    def join(self, other: StageTrace) -> None:
        """Append the rows of another trace of the same layers, and what they are made of."""
        if isinstance(other, Trace) and (self.sources or other.sources):
            self.sources = [*self._sources(), *other._sources()]
        if isinstance(other, Trace):
            self.unpruned_tokens += other.unpruned_tokens
            self.budgets += other.budgets
            self.computed = [a + b for a, b in zip(self.computed, other.computed, strict=True)]
        super().join(other)

    def _sources(self) -> list[Tensor]:
        if self.sources:
            return self.sources
        whole = self.entering[0] if self.entering else ()
        return [
            final.new_full((count,), -1).scatter(0, final, torch.arange(len(final), device=final.device))
            for final, count in zip(self.final, whole, strict=True)
        ]

    @property
    def within_budget(self) -> list[int]:
        """The images (numbers into `tokens`) that had no more tokens than the budget, so that none had to go."""
        rows = [int(tokens[:, 0].max()) if len(tokens) else -1 for tokens in self.tokens]
        known = len(self.budgets)
        return [i for i, row in enumerate(rows) if 0 <= row < known and self.budgets[row] >= self.unpruned_tokens[row]]

    @property
    def remaining(self) -> list[Tensor]:
        """[T, 2] per image: encoder row and grid position of the visual tokens that remained in the end."""
        if self.language is None:
            return self.tokens
        remaining = list(self.tokens)
        for image, kept in zip(self.shown, self.language.final, strict=True):
            if image < len(remaining):
                remaining[image] = self.tokens[image][kept.to(self.tokens[image].device)]
        return remaining
