"""Each measure on cases that can be worked out by hand, or against a naive loop."""

import math

import numpy as np
import pytest
import torch

from flowcut.bench.memory import peak_memory_mb
from flowcut.flow import measures


def drawn(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, tokens, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(dim=-1)


@pytest.mark.parametrize("special", [0, 1, 3])
@pytest.mark.parametrize("block", [1, 2, 5, 100])
def test_follow_equals_loops_over_the_whole_matrix(special, block):
    matrix = drawn(11)
    reference = matrix[0, special:]
    flow = measures.follow(matrix.split(block), special, reference)
    for token in range(11):
        assert flow.inflow[token] == max(range(11), key=lambda j: matrix[token, j])
        assert flow.outflow[token] == max(range(11), key=lambda i: matrix[i, token])
    cosines, leaving = [], []
    for patch in range(special, 11):
        row = matrix[patch, special:]
        assert flow.source[patch - special] == max(range(11 - special), key=lambda j: row[j])
        cosines.append(row @ reference / (row.norm() * reference.norm()))
        leaving.append(matrix[patch, :special].sum())
    assert flow.agreement == pytest.approx(float(sum(cosines) / len(cosines)), abs=1e-6)
    assert flow.to_special == pytest.approx(float(sum(leaving) / len(leaving)), abs=1e-6)


def test_follow_on_a_matrix_that_can_be_read():
    matrix = torch.tensor([[0.1, 0.6, 0.3], [0.7, 0.2, 0.1], [0.2, 0.5, 0.3]])
    flow = measures.follow([matrix], 1, matrix[0, 1:])
    assert flow.inflow.tolist() == [1, 0, 1]
    assert flow.outflow.tolist() == [1, 0, 0]
    assert flow.source.tolist() == [0, 0]
    assert flow.to_special == pytest.approx((0.7 + 0.2) / 2)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_among_equals_the_lower_token_wins(block):
    flow = measures.follow(torch.full((3, 3), 1 / 3).split(block), 0, torch.ones(3))
    assert flow.inflow.tolist() == flow.outflow.tolist() == flow.source.tolist() == [0, 0, 0]
    assert flow.agreement == pytest.approx(1)


def test_rows_are_those_of_attention_with_a_softmax_per_head():
    generator = torch.Generator().manual_seed(1)
    queries, keys = (torch.randn(3, 7, 4, generator=generator) for _ in range(2))
    rows = torch.cat(list(measures.attention_rows(queries, keys, 0.5, chunk=3)))
    expected = torch.zeros(7, 7)
    for head in range(3):
        for i in range(7):
            weights = [math.exp(0.5 * float(queries[head, i] @ keys[head, j])) for j in range(7)]
            expected[i] += torch.tensor(weights) / sum(weights) / 3
    torch.testing.assert_close(rows, expected)


def test_no_matrix_of_all_tokens_is_ever_whole():
    queries = keys = torch.zeros(2, 1000, 4)

    def reduce():
        measures.follow(measures.attention_rows(queries, keys, 1.0, chunk=20), 1, torch.ones(999))

    block = 2 * 20 * 1000 * 4 / 1e6
    assert peak_memory_mb(reduce, torch.device("cpu")) < 8 * block  # one head's matrix alone is 25 blocks


def test_distances_on_a_grid():
    places = measures.coordinates((2, 3))
    assert places.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    source = np.array([[0, 0, 0, 2, 4, 3], [5, 1, 1, 3, 0, 2]])
    expected = [[0, 1, 2, 5**0.5, 0, 2], [5**0.5, 0, 1, 0, 2**0.5, 1]]
    np.testing.assert_allclose(measures.distances(source, places), expected)


def test_entropy():
    entropy, ratio = measures.entropy(np.array([[2.0, 2, 2, 2], [0, 0, 5, 0], [1, 0, 1, 0], [0, 0, 0, 0]]))
    np.testing.assert_allclose(entropy, [math.log(4), 0, math.log(2), 0], atol=1e-12)
    np.testing.assert_allclose(ratio, [1, 0, 0.5, 0], atol=1e-12)
    assert measures.entropy(np.array([3.0])) == (0, 0)


def test_ranks_share_ties_and_correlate():
    np.testing.assert_allclose(measures.ranks(np.array([5.0, 1, 5, 9, 5])), [3, 1, 3, 5, 3])
    rising = np.array([1.0, 2, 4, 9, 100])
    assert measures.rank_correlation(rising, rising**3) == pytest.approx(1)
    assert measures.rank_correlation(rising, -rising) == pytest.approx(-1)
    # 1 - 6 * (squares of differences 1, 1, 0, 1, 1) / (5 * 24)
    assert measures.rank_correlation(rising, np.array([2.0, 1, 3, 5, 4])) == pytest.approx(1 - 6 * 4 / 120)
    assert math.isnan(measures.rank_correlation(rising, np.ones(5)))


def test_contradiction():
    attention = np.array([9.0, 8, 7, 6, 1, 0])
    value = np.array([1.0, 6, 2, 5, 4, 3])
    similar = np.array([1.0, 2, 6, 5, 4, 3])
    assert measures.contradiction(attention, [value], 4) == 0.5  # tokens 0 and 2
    assert measures.contradiction(attention, [similar], 4) == 0.5  # tokens 0 and 1
    assert measures.contradiction(attention, [value, similar], 4) == 0.25
    assert measures.contradiction(attention, [attention], 3) == 0


def test_box():
    values = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 100, np.nan])
    found = measures.box(values)
    assert found == measures.Box(1, 3, 5, 7, 8, pytest.approx(136 / 9), 9)
    empty = measures.box(np.array([np.nan]))
    assert empty.number == 0
    assert math.isnan(empty.median)


def test_chains_and_the_main_stream():
    steps = np.array([[1, 2, 2, 1], [3, 0, 0, 0], [1, 1, 3, 2]])
    chains = measures.chains(steps)
    assert chains.tolist() == [[0, 1, 2, 3], [1, 2, 2, 1], [0, 0, 0, 0], [1, 1, 1, 1]]
    assert measures.main_stream(steps).tolist() == [1, 0, 1]  # 1 and 2 are met equally often


def test_the_main_stream_is_a_chain_of_most_tokens():
    steps = np.random.default_rng(0).integers(0, 9, (5, 9))
    chains = measures.chains(steps)
    for token in range(9):
        at = token
        for layer, step in enumerate(steps):
            at = step[at]
            assert chains[layer + 1, token] == at
    stream = measures.main_stream(steps)
    followers = [token for token in range(9) if chains[1:, token].tolist() == stream.tolist()]
    assert len(followers) == max(list(steps[0]).count(token) for token in range(9))


def test_spread():
    square = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    assert measures.spread(square) == pytest.approx((4 * 1 + 2 * 2**0.5) / 6)
    assert measures.spread(2 * square) == pytest.approx(2 * measures.spread(square))
    assert math.isnan(measures.spread(square[:1]))


def test_over_images():
    summary = measures.over_images(np.array([[1.0, 2], [3, 2], [5, 2]]))
    assert summary.mean.tolist() == [3, 2]
    assert summary.deviation.tolist() == [2, 0]
    assert measures.over_images(np.array([[7.0]])).deviation.tolist() == [0]
