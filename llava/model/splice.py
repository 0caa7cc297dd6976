"""Inserts visual tokens into text.

Pure tensors, no model. Shapes: B samples, L text positions (an image counts as one, IMAGE_TOKEN_INDEX), S positions
after the splice, D hidden size. An image may have any number of visual tokens, for instance after pruning.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX

logger = logging.getLogger(__name__)


class Spliced(NamedTuple):
    """A padded batch of text and visual tokens.

    inputs_embeds  [B, S, D], zero on padding
    labels         [B, S], IGNORE_INDEX on visual tokens and padding
    attention_mask [B, S] bool, False on padding
    position_ids   [B, S], 0..n-1 over the real tokens of each sample, 0 on padding
    image_index    [B, S], the image (counted over the whole batch) that a token belongs to; -1 for text and padding
    """

    inputs_embeds: Tensor
    labels: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    image_index: Tensor


class _Row(NamedTuple):
    embeds: Tensor
    labels: Tensor
    image_index: Tensor


def guess_mask(input_ids: Tensor, pad: int | None) -> Tensor:
    """False on runs of the pad token at both ends of each row; a pad token inside a prompt is a real token."""
    if len(input_ids) == 1 or pad is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    real = (input_ids != pad).long()
    from_left, from_right = real.cumsum(1), real.flip(1).cumsum(1).flip(1)
    return (from_left > 0) & (from_right > 0)


def positions(attention_mask: Tensor) -> Tensor:
    """[B, S], 0..n-1 over the real tokens of each row, 0 on padding."""
    real = attention_mask.long()
    return (real.cumsum(dim=1) - 1) * real


def assign_images(
    input_ids: Tensor, attention_mask: Tensor, image_count: int, blank_images: bool = False, spare_images: bool = False
) -> list[list[int]]:
    """The images of each sample: one list of image numbers per sample, in the order of the placeholders.

    With `blank_images`, there may be one additional image for every text-only sample: LLaVA's training gives such
    a sample a blank image, so that all ranks run the vision tower. The number of images shows which case applies.

    With `spare_images`, there may be more: as in LLaVA, the first ones are used, every text-only sample taking one, and
    a warning says so.

    Raises ValueError when the numbers of placeholders and images differ.
    """
    placeholders = ((input_ids == IMAGE_TOKEN_INDEX) & attention_mask).sum(dim=1).tolist()
    shown, text_only = sum(placeholders), placeholders.count(0)
    takes = placeholders
    needed = shown + text_only
    if blank_images and image_count == needed:
        takes = [max(count, 1) for count in placeholders]
    elif spare_images and image_count > shown and image_count >= needed:
        takes = [max(count, 1) for count in placeholders]
        logger.warning("%d images were given for %d <image> placeholders; the others are ignored", image_count, shown)
    elif image_count != shown:
        advice = f" (in training, also one blank image for each of the {text_only} text-only samples)"
        raise ValueError(
            f"the prompts contain {shown} <image> placeholders but {image_count} images were given; "
            f"give one image per placeholder{advice if blank_images else ''}"
        )
    owned, first = [], 0
    for count in takes:
        owned.append(list(range(first, first + count)))
        first += count
    return owned


def _pieces(
    ids: Tensor, embeds: Tensor, labels: Tensor, images: list[int], features: Sequence[Tensor]
) -> Iterator[_Row]:
    """The text and image pieces of one sample, in order; all three tensors of a piece have its length."""
    start, upcoming = 0, iter(images)
    for end in [*(ids == IMAGE_TOKEN_INDEX).nonzero().flatten().tolist(), len(ids)]:
        yield _Row(embeds[start:end], labels[start:end], torch.full_like(ids[start:end], -1))
        if end < len(ids):
            image = next(upcoming)
            visual = features[image].to(device=embeds.device, dtype=embeds.dtype)
            yield _Row(visual, labels.new_full((len(visual),), IGNORE_INDEX), ids.new_full((len(visual),), image))
        start = end + 1
    for image in upcoming:
        # The blank image of a text-only sample: its empty slice adds no tokens, but keeps projector and tower
        # in the graph, so that every rank takes part in the gradient reduction.
        unseen = features[image][:0].to(device=embeds.device, dtype=embeds.dtype)
        yield _Row(unseen, labels[:0], ids[:0])


def splice(
    input_ids: Tensor,
    text_embeds: Tensor,
    image_features: Sequence[Tensor],
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    max_length: int | None = None,
    padding_side: str = "right",
    blank_images: bool = False,
    spare_images: bool = False,
) -> Spliced:
    """Replace every IMAGE_TOKEN_INDEX by the visual tokens of its image and pad the samples to one length.

    input_ids      [B, L]; padding is where `attention_mask` is False, on either side
    text_embeds    [B, L, D]; the rows at IMAGE_TOKEN_INDEX are ignored
    image_features one [n_i, D] per image, images counted over the whole batch (see `assign_images`)
    labels         [B, L] or None (all IGNORE_INDEX)
    max_length     truncate each sample to this length, possibly inside an image
    padding_side   "right" (training) or "left" (generation)
    blank_images, spare_images: whether there may be images that are not used; see `assign_images`

    Raises ValueError when the numbers of images and placeholders differ or the padding side is unknown.
    """
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding side {padding_side!r} is unknown; use 'left' or 'right'")
    mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    labels = torch.full_like(input_ids, IGNORE_INDEX) if labels is None else labels

    rows = []
    owned = assign_images(input_ids, mask, len(image_features), blank_images, spare_images)
    for sample, images in enumerate(owned):
        real = mask[sample]
        pieces = _pieces(
            input_ids[sample][real], text_embeds[sample][real], labels[sample][real], images, image_features
        )
        rows.append(_Row(*(torch.cat(parts)[:max_length] for parts in zip(*pieces, strict=True))))

    def pad(tensors: list[Tensor], value: float) -> Tensor:
        return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=padding_side)

    lengths = [torch.arange(len(row.labels), device=input_ids.device) for row in rows]
    return Spliced(
        inputs_embeds=pad([row.embeds for row in rows], 0.0),
        labels=pad([row.labels for row in rows], IGNORE_INDEX),
        attention_mask=pad([torch.ones_like(length, dtype=torch.bool) for length in lengths], False),
        position_ids=pad(lengths, 0),
        image_index=pad([row.image_index for row in rows], -1),
    )
