"""CrossGET (Shi et al., ICML 2024, "CrossGET: Cross-Guided Ensemble of Tokens for Accelerating Vision-Language
Transformers", arXiv 2305.17455).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from flowcut.methods.block_merging import BlockMerging, rows_cut
from flowcut.pruner import Cut, EncoderShape, ModelShape, View

NEW = "new"
"""Value of `cross_tokens` for tokens that are still to be trained."""
FILE = "crossget/cross_tokens.safetensors"
"""The file that training writes into a checkpoint; in a folder of its own, because it is no weights of a model."""


def match(keys: Tensor, number: int, prefix: int, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Complete-graph soft matching: which tokens are merged away, and into which.

    Any token may join any other. Tokens are put in the order of their largest similarity, falling, and for each the
    largest similarity to one that comes later in that order is looked up, so that of a pair only one goes. The `number`
    tokens with the largest of these, less their importance, go, each into the one it is most similar to of those that
    stay.

    Args:
        keys: [R, S, d], what tokens are compared by (cosine).
        prefix: how many special tokens stand in front, which neither go nor take others in.
        importance: [R, S]; None for all alike.

    Returns:
        keep [R, K], the places of the patches that stay, ascending, and into [R, n]; see `Cut`.
    """
    unit = normalize(keys, dim=-1)
    similarity, length = unit @ unit.mT, keys.shape[1]
    similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    similarity[:, :prefix] = similarity[:, :, :prefix] = -torch.inf
    order = similarity.amax(dim=2).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    later = rank[:, :, None] < rank[:, None]
    largest = similarity.masked_fill(~later, -torch.inf).amax(dim=2)
    cost = -largest if importance is None else importance - largest
    goes = cost.argsort(dim=1, stable=True)[:, :number]
    stays = torch.ones_like(rank, dtype=torch.bool).scatter(1, goes, False)
    joined = similarity.masked_fill(~stays[:, None], -torch.inf).argmax(dim=2)
    places = torch.arange(length, device=keys.device).expand_as(rank)
    keep = places.masked_fill(~stays, length).sort(dim=1).values[:, prefix : length - number]
    into = stays.long().cumsum(dim=1) - 1 - prefix
    into = torch.where(stays, into, into.gather(1, joined))
    return keep - prefix, into[:, prefix:]


class CrossTokens(nn.Module):
    """What is learnt for each block: offsets [blocks, d] from the CLS token's query to that of the cross token."""

    def __init__(self, offsets: Tensor):
        super().__init__()
        self.offsets = nn.Parameter(offsets)


@dataclass(frozen=True)
class CrossGET(BlockMerging):
    """Merge similar tokens in every block of the encoder, matched over the complete graph, until the budget is left.

    In each block but the last one, between attention and MLP: any token may join any other (`match`; keys, mean over
    heads, cosine), where ToMe lets tokens at even places join those at odd places alone. What is merged is the mean,
    weighted by how many patches each stands for; the logarithm of these sizes is added to the attention's logits in
    later blocks. Without `cross_tokens` nothing is trained: this is the matching alone, all tokens equally important.

    With `cross_tokens`, each block has a cross token, whose query is the CLS token's (mean over heads) plus an offset
    that is learnt. A token's importance is the cosine of its key to that query. Important tokens are less likely to go,
    and count more in the mean: exp(importance) times the size, which for a pair is the softmax over both.

    Differences to the released code (sdc17/CrossGET, read for its behaviour): there the number a block is constant and
    no budget is given; a cross token is one more token of the sequence, which others attend to; its importance for
    LLaVA is attention; the language model has cross tokens as well, and a loss that draws both kinds together; in the
    mean of several tokens weights do not add up to 1. Here they stand beside the sequence and learn by the language
    model's loss through the weights of the means. Released checkpoints do not fit.

    Tokens stay in the order of their places; positions are renumbered. Merging laws are those of ToMe, without cross
    tokens. Without a class token nothing is protected, and the mean of all tokens takes the CLS token's place. Tiles of
    an anyres image, and frames, are merged each for itself.

    Attributes:
        budget: visual tokens that reach the language model, per image (an anyres tile gets its share).
        proportional: let tokens count in attention by their sizes.
        cross_tokens: the file with trained ones, or "new" for such as are to be trained.

    Raises:
        ValueError: the budget is not to be met by halving in every block; the encoder's layers are laid out in another
            way (Qwen2-VL); the file cannot be read, or is of another encoder.
    """

    name: ClassVar[str] = "crossget"
    reference: ClassVar[str] = "CrossGET, arXiv 2305.17455"

    proportional: bool = True
    cross_tokens: str | None = None

    @property
    def reads_file(self) -> bool:
        return self.cross_tokens not in (None, NEW)

    def check(self, shape: ModelShape) -> None:
        super().check(shape)
        if self.cross_tokens is not None and len(shape.encoders) > 1:
            raise ValueError("CrossGET has cross tokens for a model with one vision encoder; leave out cross_tokens=")

    def learned(self, shape: EncoderShape) -> CrossTokens | None:
        if self.cross_tokens is None:
            return None
        blocks, width = shape.layers - 1, shape.head_width
        if self.cross_tokens == NEW:
            return CrossTokens(torch.zeros(blocks, width))
        file = Path(self.cross_tokens)
        try:
            offsets = load_file(file)["offsets"]
        except (OSError, SafetensorError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"cross_tokens={file} cannot be read ({type(error).__name__}: {reason})") from error
        if offsets.shape != (blocks, width):
            raise ValueError(
                f"cross_tokens={file} are of an encoder with {len(offsets) + 1} layers and heads of width "
                f"{offsets.shape[-1]}, this one has {blocks + 1} and {width}"
            )
        return CrossTokens(offsets.float())

    def keep_learned(self, learned: nn.Module, folder: Path) -> CrossGET:
        (folder / FILE).parent.mkdir(parents=True, exist_ok=True)
        save_file({"offsets": learned.get_parameter("offsets").detach().float().cpu().contiguous()}, folder / FILE)
        return replace(self, cross_tokens=FILE)

    def beside(self, folder: Path) -> CrossGET:
        named = self.cross_tokens not in (None, NEW) and (folder / str(self.cross_tokens)).is_file()
        return replace(self, cross_tokens=str(folder / str(self.cross_tokens))) if named else self

    def merge(self, view: View, numbers: Sequence[int]) -> Cut:
        keys, prefix = view.k.float().mean(dim=1), view.shape.num_prefix_tokens
        importance = None if view.learned is None else self.importance(view, keys)
        given = None if importance is None else importance.detach()
        if len(set(view.counts)) == len(set(numbers)) == 1:
            together, joined = match(keys, numbers[0], prefix, given)
            cut = Cut(together, into=joined)
        else:
            rows = []
            for row, (count, number) in enumerate(zip(view.counts, numbers, strict=True)):
                part = slice(row, row + 1), slice(prefix + count)
                keep, into = match(keys[part], number, prefix, None if given is None else given[part])
                rows.append((keep[0], into[0]))
            cut = rows_cut(rows)
        if importance is not None:
            with _gradients():
                cut.weights = importance[:, prefix:].exp()
        return cut

    def importance(self, view: View, keys: Tensor) -> Tensor:
        """[R, S], the cosine of each key to its block's cross token, with gradients for that token."""
        query = view.global_token(view.q).float().mean(dim=1)
        with _gradients():
            cross = normalize(query + view.learned.offsets[view.layer].to(query), dim=-1)
            return (normalize(keys, dim=-1) @ cross[:, :, None])[..., 0]


def _gradients() -> Any:
    """For what is learnt; pruners are asked without."""
    return torch.set_grad_enabled(not torch.is_inference_mode_enabled())
