"""HiPrune against full attention matrices and the released code's steps, and its neighbourhoods by hand."""

from dataclasses import dataclass

import pytest
import torch

from flowcut import HiPrune, attach, scores
from flowcut.methods.hiprune import around
from tests.flowcut.hosts import Clip, HFQwen2VL, HFQwen25VL, Siglip
from tests.flowcut.seen import Watcher, watch


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def received(view, image, count):
    """Mean over heads and queries of the attention matrix of one image's tokens."""
    tokens = view.shape.num_prefix_tokens + count
    q, k = view.q[image, :, :tokens], view.k[image, :, :tokens]
    return (q @ k.transpose(1, 2) * view.scaling).softmax(dim=-1).mean(dim=(0, 1))[view.shape.num_prefix_tokens :]


def released(middle, deep, tokens, alpha, columns):
    """The released steps: anchors, flat neighbours clamped into the picture, each once; then the best of the rest."""
    last = len(middle) - 1
    anchors = middle.argsort(descending=True)[: round(tokens * alpha / 5)].tolist()
    near = {min(max(a + step, 0), last) for a in anchors for step in (0, -1, 1, -columns, columns)}
    rest = [patch for patch in deep.argsort(descending=True).tolist() if patch not in near]
    return sorted([*near, *rest[: tokens - len(near)]])


@pytest.mark.parametrize("host", [Clip(), Siglip()], ids=lambda host: host.name)
@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_whole_method(host, alpha):
    model, samples = host.build(), host.samples()
    views = watch(host, model, samples).views
    pruner = HiPrune(20, alpha=alpha)
    with attach(model, pruner) as handle:
        mine = host.outputs(model, samples, handle)
    for image, kept in enumerate(handle.trace.final):
        middle, deep = (received(views[layer], image, 36) for layer in (2, 6))
        assert kept.tolist() == released(middle, deep, 20, alpha, 6)
        assert torch.allclose(mine[image], views[6].hidden[image, host.prefix :][kept], atol=1e-5)


@dataclass(frozen=True)
class Layers(Watcher):
    """Every layer's view of the last encoder call alone."""

    def vision(self, view):
        self.views[view.layer] = view


@pytest.mark.parametrize("host", [HFQwen2VL(), HFQwen25VL()], ids=lambda host: host.name)
def test_whole_groups_of_pictures_of_any_shape(host):
    """Merge groups on a grid of their own width, however the encoder sorts its windows."""
    model, samples = host.build(), host.samples()
    with attach(model, Layers(1)) as handle:
        host.outputs(model, samples, handle)
        views = handle.pruner.views
    with attach(model, HiPrune(9, alpha=0.6)) as handle:
        host.outputs(model, samples, handle)
    # The last encoder call is the videos'; its view is what the watcher kept.
    rows = len(views[6].counts)
    for row, kept in enumerate(handle.trace.final[-rows:]):
        count = views[6].counts[row]
        raster = views[6].positions[row, :count:4].argsort()
        middle, deep = (received(views[layer], row, count).view(-1, 4).mean(dim=1)[raster] for layer in (2, 6))
        groups = released(middle, deep, 9, 0.6, views[6].rows.grids[row][1])
        assert kept.tolist() == [4 * group + patch for group in groups for patch in range(4)]


@pytest.mark.parametrize("padded", [False, True])
def test_attention_received_in_pieces(padded):
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 3, 11, 4)
    valid = torch.arange(11) < torch.tensor([[11], [7]]) if padded else None
    mine = scores.attention_received(q, k, 0.5, valid, chunk=4)
    for row, count in enumerate((11, 7 if padded else 11)):
        whole = (q[row, :, :count] @ k[row, :, :count].transpose(1, 2) * 0.5).softmax(dim=-1).mean(dim=(0, 1))
        assert torch.allclose(mine[row, :count], whole, atol=1e-6)
        assert bool((mine[row, count:] == 0).all())
    assert torch.allclose(mine.sum(dim=1), torch.ones(2), atol=1e-6)


def test_neighbours_by_hand():
    """On a grid of 3 x 4: the middle, a corner, the end of a row."""
    for wrap, corner, end in ((True, [0, 1, 4], [3, 6, 7, 8, 11]), (False, [0, 1, 4], [3, 6, 7, 11])):
        assert around(torch.tensor([5]), 3, 4, wrap).tolist() == [1, 4, 5, 6, 9]
        assert around(torch.tensor([0]), 3, 4, wrap).tolist() == corner
        assert around(torch.tensor([7]), 3, 4, wrap).tolist() == end
    assert around(torch.tensor([11]), 3, 4, True).tolist() == [7, 10, 11]
    assert around(torch.tensor([9]), 3, 4, True).tolist() == [5, 8, 9, 10, 11]  # below lies the last patch
    assert around(torch.tensor([9]), 3, 4, False).tolist() == [5, 8, 9, 10]
    assert around(torch.tensor([1, 2]), 3, 4, False).tolist() == [0, 1, 2, 3, 5, 6]
    assert around(torch.tensor([], dtype=torch.long), 3, 4, False).tolist() == []


def test_anchors_come_before_their_neighbours_in_a_small_budget():
    """Two anchors have ten neighbourhood patches; of a budget of nine, one neighbour goes: the least attended."""
    middle = torch.zeros(36).index_fill(0, torch.tensor([7, 28]), 1.0)
    deep = torch.arange(36.0)
    kept = HiPrune(9, alpha=1).choose(middle, deep, torch.arange(36), (6, 6), 9)
    assert kept.tolist() == [6, 7, 8, 13, 22, 27, 28, 29, 34]


def test_published_settings():
    pruner = HiPrune(64)
    assert pruner.middle(24) == 8  # "object layer 9" of 24, counted from 1
    assert [round(budget * pruner.alpha / 5) for budget in (192, 128, 64, 32)] == [4, 3, 1, 1]


def test_bad_fields():
    with pytest.raises(ValueError, match=r"alpha=2 is not a share in 0 \.\.\. 1"):
        HiPrune(8, alpha=2)
    with pytest.raises(ValueError, match="object_layer=-1 is not a layer's number >= 0"):
        HiPrune(8, object_layer=-1)
    with pytest.raises(ValueError, match="object_layer=7 is not before the cut after layer 6"):
        attach(Clip().build(), HiPrune(8, object_layer=7))
