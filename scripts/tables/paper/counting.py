"""Counting the cost of a method by its published schedule. Nothing is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flowcut import scores
from flowcut.cost import Cost, cost_of
from flowcut.registry import parse_pruner

PATCHES = 576
PAPER_STEPS = {**{layer: 13 - layer // 2 for layer in range(2, 23, 2)}, 23: 1}
"""{layer counted from 1: remaining selections, including this one}: every second layer, and the penultimate one."""
RELEASED_STEPS = {layer: 22 - layer for layer in range(2, 23, 2)}
"""The same as the released code counts it: remaining layers up to the last selection, which is after layer 22."""


def flowcut_path(layers: int, patches: int, budget: int, ratio: float, steps: Mapping[int, float]) -> list[int]:
    """Number of tokens entering each encoder layer, if the entropy ratio is `ratio` in all layers.

    steps: {layer counted from 1 after which tokens are dropped: L of equation 3}; the last one cuts to the budget.
    """
    path, now = [], patches
    for layer in range(1, layers + 1):
        path.append(now)
        if layer == max(steps):
            now = min(now, budget)
        elif layer in steps and now > budget:
            now = max(now - round(scores.prune_number(now, budget, steps[layer], ratio)), budget)
    return path


@dataclass(frozen=True)
class Case:
    """The models of a row, and the assumptions about its prompt and pictures.

    Attributes:
        vision, language: configs of the encoder and the language model.
        text_tokens: prompt tokens that are not visual.
        entropy_ratio: r of equation 3, 0 to 1, in every layer.
        tiles: encoder runs for each picture.
    """

    vision: Any
    language: Any
    text_tokens: int
    entropy_ratio: float
    tiles: int = 1

    def cost(self, visual_tokens: int | list[int], path: list[int] | None = None, projected: int | None = None) -> Cost:
        """The cost of a question.

        visual_tokens: in the language model, one number or one for each layer. path: tokens entering each encoder
        layer, for each tile; None for all. projected: tokens through the projector; None for all visual tokens.
        """
        paths = None if path is None else [path] * self.tiles
        tiles = self.tiles if path is None else None
        return cost_of(
            self.vision, self.language, self.text_tokens, paths, visual_tokens, tiles=tiles, projected=projected
        )


class BudgetNotMet(ValueError):
    """A schedule that cannot reach this number of tokens on average."""


Count = Callable[[Case, int], Cost]
"""The cost of a number of tokens, by one way of counting."""


def unpruned(case: Case, tokens: int) -> Cost:
    """All patches through encoder and projector, `tokens` of them (without padding) through the language model."""
    return case.cost(tokens, projected=PATCHES * case.tiles)


def after_encoder(case: Case, tokens: int) -> Cost:
    """One cut after the encoder, as VisionZip, PruMerge, RCom and FasterVLM make it."""
    return case.cost(tokens)


def in_decoder(form: str, case: Case, tokens: int) -> Cost:
    """Cuts inside the language model, by the schedule of a pruner's text form; {} in it stands for the tokens.

    Raises:
        BudgetNotMet: too few tokens for the schedule.
    """
    pruner: Any = parse_pruner(form.format(tokens))
    try:
        schedule = pruner.schedule(PATCHES * case.tiles, case.language.num_hidden_layers)
    except ValueError as error:
        raise BudgetNotMet(str(error)) from error
    return case.cost(schedule.entering)


def in_encoder(steps: Mapping[int, float], case: Case, tokens: int) -> Cost:
    """FlowCut, by the steps of `flowcut_path`."""
    layers = case.vision.num_hidden_layers
    return case.cost(tokens, flowcut_path(layers, PATCHES, tokens, case.entropy_ratio, steps))


def two_stages(steps: Mapping[int, float], tile_share: float, case: Case, tokens: int) -> Cost:
    """FlowCut on tiles: each keeps `tile_share` times the tokens that the language model has from its third layer."""
    layers, target = case.vision.num_hidden_layers, max(int(tile_share * tokens), 1)
    path = flowcut_path(layers, PATCHES, target, case.entropy_ratio, steps)
    later = [tokens] * (case.language.num_hidden_layers - 2)
    return case.cost([target * case.tiles, target * case.tiles, *later], path)
