"""Sampling orders that put samples of similar length, and of the same modality, into one batch."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


def split_to_even_chunks(indices: list[int], lengths: list[int], num_chunks: int) -> list[list[int]]:
    """Distribute `indices` over `num_chunks` chunks of equal size with similar total lengths, greedily.

    Each index is added to the chunk with the smallest total that is not full. If the number of indices is not
    divisible, they are distributed in turn, without regard to length.
    """
    if len(indices) % num_chunks:
        return [indices[chunk::num_chunks] for chunk in range(num_chunks)]
    size = len(indices) // num_chunks
    chunks: list[list[int]] = [[] for _ in range(num_chunks)]
    totals = [0] * num_chunks
    for index in indices:
        open_chunks = [chunk for chunk in range(num_chunks) if len(chunks[chunk]) < size]
        shortest = min(open_chunks, key=totals.__getitem__)
        chunks[shortest].append(index)
        totals[shortest] += lengths[index]
    return chunks


def length_grouped_megabatches(
    lengths: list[int], batch_size: int, world_size: int, generator: torch.Generator | None
) -> list[list[int]]:
    """A random permutation divided into megabatches of `world_size * batch_size`, each distributed evenly to its
    batches.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    size = world_size * batch_size
    megabatches = []
    for start in range(0, len(order), size):
        longest_first = sorted(order[start : start + size], key=lengths.__getitem__, reverse=True)
        chunks = split_to_even_chunks(longest_first, lengths, world_size)
        megabatches.append([index for chunk in chunks for index in chunk])
    return megabatches


def get_length_grouped_indices(
    lengths: list[int], batch_size: int, world_size: int, generator: torch.Generator | None = None
) -> list[int]:
    """An order of all samples in which every `world_size * batch_size` neighbours are distributed evenly by length."""
    megabatches = length_grouped_megabatches(lengths, batch_size, world_size, generator)
    return [index for megabatch in megabatches for index in megabatch]


def get_modality_length_grouped_indices(
    lengths: list[int], batch_size: int, world_size: int, generator: torch.Generator | None = None
) -> list[int]:
    """An order of all samples in which every megabatch except the last has one modality.

    Args:
        lengths: of each sample: positive with an image, negative without.
        batch_size: samples per process and step.
        world_size: processes, times gradient accumulation steps.
        generator: of the shuffling.

    The full megabatches of both modalities are shuffled together; the remaining samples of either come last, by index.
    """
    if any(length == 0 for length in lengths):
        raise ValueError("a length of 0 has no modality; lengths must be positive (image) or negative (text)")
    groups = [[i for i, length in enumerate(lengths) if sign * length > 0] for sign in (1, -1)]
    if not all(groups):
        return get_length_grouped_indices([abs(length) for length in lengths], batch_size, world_size, generator)
    full: list[list[int]] = []
    rest: list[int] = []
    for group in groups:
        grouped = length_grouped_megabatches([abs(lengths[i]) for i in group], batch_size, world_size, generator)
        *whole, last = [[group[i] for i in megabatch] for megabatch in grouped]
        full += whole
        rest += last
    order = torch.randperm(len(full), generator=generator).tolist()
    return [index for megabatch in order for index in full[megabatch]] + sorted(rest)


class LengthGroupedSampler(Sampler[int]):
    """Samples in length-grouped (or modality- and length-grouped) order, another one in each epoch.

    The order depends on `seed` and epoch only, so it is the same in all processes and in a resumed run.
    """

    def __init__(
        self,
        batch_size: int,
        world_size: int,
        lengths: list[int],
        group_by_modality: bool = False,
        seed: int = 0,
    ) -> None:
        self.batch_size = batch_size
        self.world_size = world_size
        self.lengths = lengths
        self.group_by_modality = group_by_modality
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration (the Trainer calls this)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        group = get_modality_length_grouped_indices if self.group_by_modality else get_length_grouped_indices
        return iter(group(self.lengths, self.batch_size, self.world_size, generator))
