"""The even grid: it is a partition, it is even, and its middles are kept in every family."""

import pytest
import torch

from flowcut import Uniform, attach
from flowcut.methods.uniform import cells, middles
from tests.flowcut.hosts import Clip, HFQwen2VL, HFQwen25VL
from tests.flowcut.seen import kept_of


def areas(found):
    top, bottom, left, right = found.unbind(dim=1)
    return (bottom - top) * (right - left)


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (5, 7), (1, 9), (7, 3)])
def test_every_number_of_cells_is_a_partition_in_reading_order(rows, columns):
    for number in range(1, rows * columns + 1):
        found = cells(rows, columns, number)
        count = torch.zeros(rows, columns)
        for top, bottom, left, right in found.tolist():
            count[top:bottom, left:right] += 1
        assert len(found) == number
        assert (count == 1).all()
        kept = middles(found, columns)
        assert torch.equal(kept, kept.unique())  # ascending, none twice


@pytest.mark.parametrize(
    ("number", "smallest", "largest"), [(192, 3, 3), (128, 4, 6), (64, 9, 9), (32, 16, 20), (1, 576, 576), (576, 1, 1)]
)
def test_areas_of_published_budgets(number, smallest, largest):
    found = areas(cells(24, 24, number))
    assert (int(found.min()), int(found.max())) == (smallest, largest)


def test_areas_are_near_equal_while_cells_are_not_tiny():
    for number in range(1, 100):
        found = areas(cells(24, 24, number))
        assert float(found.max() / found.min()) <= 1.5, number


def test_nine_of_six_by_six():
    host = Clip()
    rows = kept_of(host, host.build(), Uniform(9), host.samples())
    assert rows == [[0, 2, 4, 12, 14, 16, 24, 26, 28]] * 4


def test_pictures_that_are_not_square():
    model = Clip().build()
    with torch.no_grad(), attach(model, Uniform(6)) as handle:
        model(torch.zeros(1, 3, 16, 36), interpolate_pos_encoding=True)  # 4 x 9 patches: six cells of 2 x 3
    assert handle.trace.final[0].tolist() == [1, 4, 7, 19, 22, 25]


@pytest.mark.parametrize("host", [HFQwen2VL(), HFQwen25VL()], ids=["qwen2", "qwen2.5"])
def test_merged_tokens_on_their_own_grid_whatever_their_order(host):
    sample = host.samples()[3:]  # one image of 12 x 18 patches: 6 x 9 tokens
    [kept] = kept_of(host, host.build(), Uniform(6), sample)
    tokens = middles(cells(6, 9, 6), 9)
    assert kept == [int(token) * 4 + inside for token in tokens for inside in range(4)]
