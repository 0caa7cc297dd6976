"""The parts of the contract that do something themselves."""

import torch

from flowcut import Cut, Trace


def test_best_keeps_the_highest_in_order():
    score = torch.tensor([[3.0, 1.0, 2.0, 5.0], [0.0, 9.0, 8.0, 7.0]])
    cut = Cut.best(score, [2, 2])
    assert cut.keep.tolist() == [[0, 3], [1, 2]]
    assert cut.counts is None


def test_best_with_rows_of_different_length():
    score = torch.tensor([[3.0, 1.0, 2.0, 5.0], [0.0, 9.0, 99.0, 99.0]])
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    cut = Cut.best(score, [3, 1], valid)
    assert cut.counts == (3, 1)
    assert cut.keep[0].tolist() == [0, 2, 3]
    assert cut.keep[1, 0].item() == 1
    assert cut.keep.max() < 4


def test_best_settles_ties_by_position():
    assert Cut.best(torch.zeros(1, 6), [3]).keep.tolist() == [[0, 1, 2]]


def test_final_of_a_trace():
    trace = Trace(entering=[(3, 3), (3, 3)], leaving=[(3, 3), (1, 2)])
    assert [final.tolist() for final in trace.final] == [[0, 1, 2]] * 2
    trace.kept = {1: [torch.tensor([2]), torch.tensor([0, 1])]}
    assert [final.tolist() for final in trace.final] == [[2], [0, 1]]
    assert trace.path(1) == [3, 3]
    assert Trace().final == []
