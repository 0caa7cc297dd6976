"""Average pooling: equal to torch's where cells are equal, and every patch counts once."""

import pytest
import torch

from flowcut import Pooling, attach
from flowcut.methods.uniform import cells
from tests.flowcut.hosts import Clip, HFQwen2VL, Siglip
from tests.flowcut.seen import watch


@pytest.fixture(params=[Clip(), Siglip()], ids=["clip", "siglip"])
def host(request):
    return request.param


@pytest.mark.parametrize(("budget", "size"), [(9, (2, 2)), (4, (3, 3)), (1, (6, 6)), (36, (1, 1))])
def test_equal_cells_are_torchs_average_pooling(host, budget, size):
    model = host.build()
    samples = host.samples()
    with torch.no_grad():
        whole = host.outputs(model, samples)
        with attach(model, Pooling(budget)) as handle:
            pooled = host.outputs(model, samples, handle)
    for before, after in zip(whole, pooled, strict=True):
        image = before.T.unflatten(1, (6, 6))
        expected = torch.nn.functional.avg_pool2d(image, size).flatten(1).T
        assert torch.allclose(after, expected, atol=1e-5)


def test_uneven_cells_are_means_of_their_patches(host):
    model = host.build()
    view = watch(host, model, host.samples()).views[6]
    cut = Pooling(10).vision(view)
    found = cells(6, 6, 10)
    for row in range(4):
        for number, (top, bottom, left, right) in enumerate(found.tolist()):
            inside = [y * 6 + x for y in range(top, bottom) for x in range(left, right)]
            mean = sum(view.visual(view.hidden)[row, patch] for patch in inside) / len(inside)
            assert torch.allclose(cut.hidden[row, number], mean, atol=1e-5)
            assert int(cut.keep[row, number]) in inside


def test_refused_where_the_model_merges():
    with pytest.raises(ValueError, match=r"Pooling cannot merge patches in a model that joins several"):
        attach(HFQwen2VL().build(), Pooling(10))


def test_the_trace_tells_the_cell_of_each_patch(host):
    model = host.build()
    with torch.no_grad(), attach(model, Pooling(10), signals=True) as handle:
        host.outputs(model, host.samples(), handle)
    for token, (top, bottom, left, right) in enumerate(cells(6, 6, 10).tolist()):
        inside = [y * 6 + x for y in range(top, bottom) for x in range(left, right)]
        assert handle.trace.members(0)[token].tolist() == inside
    assert not handle.trace.mixed
