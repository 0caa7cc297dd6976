"""HoloV against a loop that follows its paper and released code, and its shares by hand."""

import pytest
import torch

from flowcut import HoloV, attach
from flowcut.methods.holov import allot, run_score
from tests.flowcut.hosts import Clip, HFQwen25VL, Siglip
from tests.flowcut.seen import watch


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def naive(attention, states, runs, tokens, alpha):
    """Runs of rows, each scored by attention and unevenness of similarity; shares; the most attended of each run."""
    patches = len(attention)
    sizes = [patches // runs + (run < patches % runs) for run in range(runs)]
    starts = [sum(sizes[:run]) for run in range(runs)]
    weights = []
    for start, size in zip(starts, sizes, strict=True):
        attended, spreads = [], []
        for one in range(start, start + size):
            alike = [float(torch.cosine_similarity(states[one], states[o], dim=0)) for o in range(start, start + size)]
            alike[one - start] = 0.0
            mean = sum(alike) / (size - 1)
            spreads.append(sum((value - mean) ** 2 for value in alike) / (size - 1))
            attended.append(1000 * float(attention[one]))
        scale = (sum(attended) / size) / (sum(spreads) / size + 1e-6)
        weights.append(sum(a + alpha * s * scale for a, s in zip(attended, spreads, strict=True)) / size)
    shares = [int(weight / sum(weights) * tokens) for weight in weights]
    for run in sorted(range(runs), key=lambda run: -weights[run])[: tokens - sum(shares)]:
        shares[run] += 1
    assert all(share <= size for share, size in zip(shares, sizes, strict=True))
    kept = []
    for start, size, share in zip(starts, sizes, shares, strict=True):
        order = attention[start : start + size].argsort(descending=True).tolist()
        kept += [start + place for place in order[:share]]
    return kept


@pytest.mark.parametrize("host", [Clip(), Siglip()], ids=lambda host: host.name)
@pytest.mark.parametrize("runs", [4, 5])
@pytest.mark.parametrize("order", ["score", "position"])
def test_whole_method(host, runs, order):
    model, samples = host.build(), host.samples()[:2]
    view = watch(host, model, samples).views[6]
    query = view.q[:, :, 0] if host.prefix else view.q.mean(dim=2)
    rows = torch.einsum("bhd,bhnd->bhn", query, view.k).mul(8**-0.5).softmax(dim=-1).mean(dim=1)[:, host.prefix :]
    with attach(model, HoloV(11, runs=runs, order=order)) as handle:
        mine = host.outputs(model, samples, handle)
    for image, row in enumerate(rows):
        states = view.hidden[image, host.prefix :]
        kept = naive(row, states, runs, 11, 0.09)
        kept = sorted(kept) if order == "position" else kept
        assert handle.trace.final[image].tolist() == kept
        assert torch.allclose(mine[image], states[kept], atol=1e-5)


def test_shares_by_hand():
    assert allot([3.0, 1.0], [9, 9], 4) == [3, 1]
    assert allot([2.0, 1.0, 1.0], [9, 9, 9], 6) == [3, 2, 1]  # 3, 1.5, 1.5: the first of equals gets the one more
    # Five, one and none at first, but the first run has two; the other three go on by weight: 2.25 and .75, so 3 and 0.
    assert allot([5.0, 0.75, 0.25], [2, 4, 4], 6) == [2, 4, 0]
    assert allot([1.0, 1.0], [2, 3], 5) == [2, 3]
    assert sum(allot([1e-9, 1.0], [5, 3], 8)) == 8


def test_a_run_is_weighed_by_attention_alone_in_effect():
    """Why `alpha` shows no effect: the variance is brought to the attention's mean, whatever the features are."""
    torch.manual_seed(0)
    for states in (torch.randn(12, 6), torch.rand(12, 3)):
        attention = torch.rand(12)
        assert float(run_score(attention, states, 0.09)) == pytest.approx(
            1.09 * 1000 * float(attention.mean()), rel=1e-4
        )
    assert float(run_score(torch.tensor([0.3]), torch.ones(1, 4), 0.09)) == pytest.approx(0.3)


def test_more_runs_than_patches():
    host = Clip()
    model = host.build()
    with attach(model, HoloV(10, runs=500)) as handle:
        [features] = host.outputs(model, host.samples()[:1], handle)
    assert len(features) == len(handle.trace.final[0].unique()) == 10


def test_whole_groups_in_order_where_the_model_merges_patches():
    host = HFQwen25VL()
    model = host.build()
    with attach(model, HoloV(7, runs=3)) as handle:
        host.outputs(model, host.samples(), handle)
    for kept in handle.trace.final:
        assert torch.equal(kept, kept.unique())
        assert (kept // 4).unique(return_counts=True)[1].tolist() == [4] * 7


def test_bad_fields():
    with pytest.raises(ValueError, match="runs=0 is not a number of runs >= 1"):
        HoloV(8, runs=0)
    with pytest.raises(ValueError, match="alpha=-1 is not a weight >= 0"):
        HoloV(8, alpha=-1)
    with pytest.raises(ValueError, match="order='raster' is not allowed; choose score or position"):
        HoloV(8, order="raster")
