"""Laws of the length- and modality-grouped orders."""

import random

import pytest

from llava.train.sampler import LengthGroupedSampler, get_modality_length_grouped_indices, split_to_even_chunks


def signed_lengths(images: int, texts: int) -> list[int]:
    draw = random.Random(3)
    lengths = [draw.randint(1, 99) for _ in range(images)] + [-draw.randint(1, 99) for _ in range(texts)]
    draw.shuffle(lengths)
    return lengths


@pytest.mark.parametrize(("images", "texts"), [(50, 33), (64, 64), (7, 2), (20, 0), (0, 20), (1, 1)])
def test_every_sample_once(images, texts):
    lengths = signed_lengths(images, texts)
    assert sorted(get_modality_length_grouped_indices(lengths, 4, 2)) == list(range(images + texts))


def test_all_but_the_last_megabatches_have_one_modality():
    lengths = signed_lengths(50, 33)
    order = get_modality_length_grouped_indices(lengths, batch_size=4, world_size=2)
    # 50 images make 6 whole megabatches of 8 and a part, 33 texts make 4 and a part: the last of each come at the end
    whole, mixed = order[: 10 * 8], order[10 * 8 :]
    for start in range(0, len(whole), 8):
        assert len({lengths[index] > 0 for index in whole[start : start + 8]}) == 1
    assert mixed == sorted(mixed)
    assert {lengths[index] > 0 for index in mixed} == {True, False}


def test_chunks_are_equal_in_number_and_even_in_length():
    lengths = [1, 2, 3, 4, 100, 101, 102, 103]
    chunks = split_to_even_chunks([7, 6, 5, 4, 3, 2, 1, 0], lengths, 2)
    assert [len(chunk) for chunk in chunks] == [4, 4]
    totals = [sum(lengths[index] for index in chunk) for chunk in chunks]
    assert abs(totals[0] - totals[1]) <= 2
    assert split_to_even_chunks([4, 3, 2, 1, 0], lengths, 2) == [[4, 2, 0], [3, 1]]


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = LengthGroupedSampler(4, 2, signed_lengths(40, 40), group_by_modality=True, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(5, 1) == order(5, 1)
    assert order(5, 1) != order(5, 0)
    assert order(5, 1) != order(4, 1)


def test_zero_length_is_refused():
    with pytest.raises(ValueError, match="no modality"):
        get_modality_length_grouped_indices([3, 0, -2], 1, 1)
