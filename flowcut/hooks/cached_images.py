"""Where images stand in a batch: among the columns of a call, and later among the entries of a KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence


class ImageRows(NamedTuple):
    """One row for each image of each sample, ordered by image; samples may share an image (beams).

    images, samples: number of the image, and the batch row that it stands in.
    counts: its visual tokens; columns: [R, n], where they stand, padded at the end.
    """

    images: tuple[int, ...]
    samples: tuple[int, ...]
    counts: tuple[int, ...]
    columns: Tensor


def find_images(index: Tensor) -> ImageRows:
    """From index [B, S], which image each token shows (-1 for none), of which one at least shows some."""
    order = []
    for row, line in enumerate(index):
        for number in line[line >= 0].unique().tolist():
            order.append((number, row, (line == number).nonzero().flatten()))
    order.sort(key=lambda entry: entry[:2])
    columns = pad_sequence([columns for *_, columns in order], batch_first=True)
    numbers, rows = tuple(number for number, *_ in order), tuple(row for _, row, _ in order)
    return ImageRows(numbers, rows, tuple(len(columns) for *_, columns in order), columns)


def mark_images(rows: ImageRows, positions: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The other way: [B, S] each, which image each token shows, and its number there (positions [R, n]); else -1."""
    image, token = (positions.new_full(shape, -1) for _ in range(2))
    for number, row, count, columns, places in zip(*rows, positions, strict=True):
        image[row, columns[:count]], token[row, columns[:count]] = number, places[:count]
    return image, token


@dataclass(frozen=True)
class CachedImages:
    """What the first entries of some layers' KV cache show; later entries are text.

    Attributes:
        image: [B, length], the image that an entry shows; -1 for text and padding. Images are counted over all turns.
        token: [B, length], which of the tokens it is that entered the language model for that image.
        initial: for each image, its entries at the end of the forward that brought it.
        first: number of the first layer this is about; the next one of a list begins with another layer.
    """

    image: Tensor
    token: Tensor
    initial: tuple[int, ...]
    first: int = 0

    def taken(self, index: Tensor) -> CachedImages:
        """For entries that were gathered by index [B, S'], which may name later entries."""
        more = max(int(index.max()) + 1 - self.image.shape[1], 0) if index.numel() else 0
        whole = (pad(part, (0, more), value=-1) for part in (self.image, self.token))
        image, token = (part.gather(1, index) for part in whole)
        return replace(self, image=image, token=token)

    def rows(self, index: Tensor) -> CachedImages:
        """For the batch rows `index` only, in that order."""
        index = index.to(self.image.device)
        return replace(self, image=self.image[index], token=self.token[index])

    def repeat(self, times: int) -> CachedImages:
        """For a batch whose rows stand `times` times each."""
        return self.rows(torch.arange(len(self.image)).repeat_interleave(times))

    def crop(self, length: int) -> CachedImages:
        """For a cache of which only the first `length` entries are left."""
        return replace(self, image=self.image[:, :length], token=self.token[:, :length])

    def joined(self, start: int, image: Tensor, token: Tensor, initial: Sequence[int]) -> CachedImages:
        """With the entries [B, S] of a forward that began at entry `start`, whose images are counted from 0."""
        more = start - self.image.shape[1]
        image = torch.where(image >= 0, image + len(self.initial), image)
        pairs = ((self.image, image), (self.token, token))
        image, token = (torch.cat([pad(before, (0, more), value=-1), new], dim=1) for before, new in pairs)
        return CachedImages(image, token, (*self.initial, *initial), self.first)
