"""CDPruner (Zhang et al., NeurIPS 2025, "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token
Pruning in MLLMs", arXiv 2506.10967).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from flowcut.pruner import Cut, OneCut, View, needed


@dataclass(frozen=True)
class CDPruner(OneCut):
    """Keep the most diverse set of tokens, given the question: greedy MAP of a determinantal point process.

    The process has the kernel diag(r) S diag(r). S holds the cosines of *projected* tokens. The relevance r is one half
    of CLIP against the other: minus the mean cosine of a patch with the text (the released code's sign), scaled to
    0 ... 1 over the image. Greedily the token with the largest part that the chosen ones do not explain is taken. One
    cut, after the layer that features are read from. Without `condition` r is 1, and no text is needed;
    the very first token is then as good as any, and taken.

    The text: CLIP's own, of one question per image; long ones in pieces of 75 tokens, over which the mean is taken. The
    released code cuts up the finished token sequence, so that of several pieces only one is framed by CLIP's special
    tokens; questions of one piece give the same. The text tower's layer norm and projection stand for the vision
    tower's, which LLaVA's checkpoints do not bring.

    Positions: consecutive in the language model, as published; with M-RoPE tokens keep their own.
    Families: with `condition` the vision encoder has to be the text tower's CLIP. Without, any: in an encoder alone its
    features stand for the projected ones, in Qwen2-VL tokens are those that come out of the merger. Every anyres tile
    and video frame chooses its share by itself; relevance is scaled over all tiles of an image, as released. There it
    is scaled over the whole batch, too: with several images results depend on batch mates, here they do not.

    Attributes:
        budget: visual tokens that reach the language model, per image or video frame. Any number.
        condition: whether the question decides too.
        text_tower: folder or Hub name of the CLIP whose text encoder reads the question; None looks beside the vision
            tower.

    Raises:
        ValueError: the question is missing, or read by another CLIP than the vision tower.
    """

    name: ClassVar[str] = "cdpruner"
    reference: ClassVar[str] = "CDPruner, arXiv 2506.10967"
    reads_hidden: ClassVar[bool] = True
    at_feature_layer: ClassVar[bool] = True

    condition: bool = True
    text_tower: str | None = None

    @property
    def reads_question(self) -> bool:
        return self.condition

    def select(self, view: View, counts: Sequence[int]) -> Cut:
        unit = normalize(view.projected, dim=-1)
        kernel = unit @ unit.mT
        kernel.diagonal(dim1=1, dim2=2).fill_(1)  # or rounding would choose the first token where all are as relevant
        if self.condition:
            cosines = needed(view.question, "CDPruner").cosines(view.visual(view.hidden), view.rows.groups)
            relevance = spread_out(torch.stack([-row.mean(dim=0) for row in cosines]), view.rows.groups, view.valid)
            view.record("relevance", relevance)
            relevance = view.per_token(relevance)
            kernel = relevance[:, :, None] * kernel * relevance[:, None]
        tokens = [count // view.shape.patches_per_token for count in counts]
        return view.as_patches(Cut.first(most_diverse(kernel, max(tokens), view.token_valid), tokens))


def spread_out(values: Tensor, groups: tuple[int, ...], valid: Tensor | None = None) -> Tensor:
    """Values [R, n] of each image's rows together scaled to 1e-6 / span ... 1 + 1e-6 / span, span = max - min."""
    result = torch.ones_like(values)
    for group in set(groups):
        rows = torch.tensor([own == group for own in groups], device=values.device)
        own = values[rows]
        real = own if valid is None else own[valid[rows]]
        span = real.max() - real.min()
        if span > 0:
            result[rows] = (own - real.min() + 1e-6) / span
    return result


def most_diverse(kernel: Tensor, number: int, valid: Tensor | None = None) -> Tensor:
    """[R, number] tokens in the order in which they are chosen, by kernel [R, n, n]; the lower of equals first.

    Each step takes the largest diagonal entry of the rest of the kernel when the chosen tokens' part is projected
    out (Chen et al., NeurIPS 2018, algorithm 1). Where nothing is left, the order of the tokens decides.
    """
    rows, length = kernel.shape[:2]
    every = torch.arange(rows, device=kernel.device)
    left = kernel.diagonal(dim1=1, dim2=2).clone()
    negligible = left.amax(dim=1) * torch.finfo(kernel.dtype).eps * length
    free = torch.ones_like(left, dtype=torch.bool) if valid is None else valid.clone()
    factor = kernel.new_zeros(rows, number, length)
    picks = []
    for step in range(number):
        left = left.masked_fill(left < negligible[:, None], 0)
        pick = left.masked_fill(~free, -torch.inf).argmax(dim=1)
        free[every, pick] = False
        explained = torch.einsum("rs,rsn->rn", factor[every, :step, pick], factor[:, :step])
        own = left[every, pick]
        row = (kernel[every, pick] - explained) / own.clamp_min(torch.finfo(kernel.dtype).tiny).sqrt()[:, None]
        factor[:, step] = torch.where(own[:, None] > 0, row, 0)
        left = left - factor[:, step].square()
        picks.append(pick)
    return torch.stack(picks, dim=1)
