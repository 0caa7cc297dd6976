"""DART (Wen et al., EMNLP 2025, "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters
More", arXiv 2502.11494).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from flowcut.methods.decoder_cut import DecoderCut
from flowcut.methods.text_attention import keys_from_start, text_columns, text_following
from flowcut.pruner import Cut, LanguageView


@dataclass(frozen=True)
class DART(DecoderCut):
    """Keep a few pivot tokens and the tokens least similar to them, in one cut inside the language model.

    Pivots are the `image_pivots` visual tokens and the `text_pivots` text tokens after the image whose keys in
    layer `layer` - 1 have the largest L1 norm. Each pivot in turn takes its share of the tokens to keep: those of
    lowest cosine to it among the visual tokens that nobody took yet, on the states that come out of that layer,
    after the model's last norm. No attention weights are needed.

    Read in LightCompress's implementation, which follows the authors'. There a pivot takes int(T / pivots) tokens
    and the image pivots are kept besides, so 4 + 8 * int(T / 8) stay; here the number is exact, and what does not
    divide goes to the first pivots. There pivots come in the order of a Python set; here the image's come first, in
    order of place, then the text's. There layer 5 is the default, in the paper 2.

    Positions: original, as released. Where fewer text tokens stand after the image there are fewer text pivots;
    where none do, the text in front provides them. Tiles of an image (anyres) are chosen among together, frames of a
    video each by themselves.

    Attributes:
        budget: visual tokens an average decoder layer reads, per image or frame.
        layer: the first decoder layer that reads the kept tokens only.
        keep: tokens to keep, in place of those that follow from the budget.
        image_pivots, text_pivots: how many pivots there are of each kind.
        positions: of kept tokens: as they were, or counted anew.

    Raises:
        ValueError: a field has a value that is not allowed, or the budget is not to be met after `layer` full layers.
    """

    name: ClassVar[str] = "dart"
    reference: ClassVar[str] = "DART, arXiv 2502.11494"
    reads_hidden: ClassVar[bool] = True

    layer: int = 2
    keep: int | None = None
    image_pivots: int = 4
    text_pivots: int = 4
    positions: Literal["original", "renumbered"] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_pivots < 1 or self.text_pivots < 0:
            given = f"image_pivots={self.image_pivots}, text_pivots={self.text_pivots}"
            raise ValueError(f"{given}: use at least 1 image pivot and at least 0 text pivots; the paper's are 4 and 4")

    def select(self, view: LanguageView, counts: Sequence[int]) -> Cut:
        rows = [self.chosen(view, row, count) for row, count in enumerate(counts)]
        return Cut.rows(rows, renumber=self.positions == "renumbered")

    def chosen(self, view: LanguageView, row: int, count: int) -> Tensor:
        """[count] indices into an image's visual tokens, ascending."""
        sample, tokens = view.layout.samples[row], view.counts[row]
        here = view.layout.columns[row, :tokens]
        if count == tokens:
            return torch.arange(count, device=here.device)
        strength = keys_from_start(view, sample).abs().sum(dim=(0, 2))
        states = view.source.norm(view.hidden[sample]).float()
        text = text_columns(view, sample)[text_following(view, row)]
        pivots = _strongest(strength[here], min(self.image_pivots, count))
        words = text[_strongest(strength[text], min(self.text_pivots, len(text)))]
        taken = torch.zeros(tokens, dtype=torch.bool, device=here.device)
        taken[pivots] = True
        compared = [here[pivots], words]
        wanted, number = count - len(pivots), len(pivots) + len(words)
        for turn, column in enumerate(torch.cat(compared).tolist()):
            share = wanted // number + (turn < wanted % number)
            likeness = cosine_similarity(states[here], states[column][None], dim=-1).masked_fill(taken, torch.inf)
            taken[likeness.argsort(stable=True)[:share]] = True
        return taken.nonzero().flatten()


def _strongest(strength: Tensor, number: int) -> Tensor:
    """Where the largest values are, ascending."""
    return strength.argsort(descending=True, stable=True)[:number].sort().values
