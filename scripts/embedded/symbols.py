"""A patch as a list of facts, the input of the language model in its pre-training without pictures.

Language pre-training uses these facts, through one linear map, instead of visual tokens; projector alignment then
trains the projector to produce the same vectors from the tower's features.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from scripts.embedded.scenes import (
    COLOUR_CLASSES,
    COLOUR_NAMES,
    LETTERS,
    PATTERNS,
    SHAPE_CLASSES,
    SHAPES,
    PatchLabels,
)

COVERED_ENOUGH = 0.2  # minimal fraction of a patch that its object covers
WAVES = 4
FACTS = COLOUR_CLASSES + SHAPE_CLASSES + len(PATTERNS) + 4 * (1 + 2 * WAVES)


def _waves(place: np.ndarray) -> np.ndarray:
    """``[P, 2]`` in 0..1 -> ``[P, 2 (1 + 2 WAVES)]``: the value itself and sines of rising frequency."""
    angles = np.pi * place[:, :, None] * 2.0 ** np.arange(WAVES)
    return np.concatenate([place[:, :, None], np.sin(angles), np.cos(angles)], -1).reshape(len(place), -1)


def fact_words() -> dict[int, str]:
    """The entries of a fact vector that correspond to a word of the questions: {entry: word}."""
    words = dict(enumerate(COLOUR_NAMES, 1))
    words |= dict(enumerate([*SHAPES, *LETTERS], COLOUR_CLASSES + 1))
    return words | dict(enumerate(PATTERNS, COLOUR_CLASSES + SHAPE_CLASSES))


def facts_of(labels: PatchLabels, pattern: str) -> torch.Tensor:
    """``[P, FACTS]`` float32 of a square picture: colour, shape, pattern (background), own position, object's
    centre.
    """
    count = len(labels.shape)
    side = int(count**0.5)
    named = labels.covered >= COVERED_ENOUGH
    background = (labels.covered < COVERED_ENOUGH)[:, None] * np.eye(len(PATTERNS))[PATTERNS.index(pattern)]
    own = np.stack([np.arange(count) % side, np.arange(count) // side], 1) / (side - 1)
    centre = np.where(named[:, None], labels.centre, own)
    one_hot = [
        F.one_hot(torch.from_numpy(labels.colour * named), COLOUR_CLASSES),
        F.one_hot(torch.from_numpy(labels.shape * named), SHAPE_CLASSES),
        torch.from_numpy(background),
    ]
    places = [torch.from_numpy(_waves(own)), torch.from_numpy(_waves(centre))]
    return torch.cat([part.float() for part in one_hot + places], 1)
