"""SCOPE against a loop over the paper's definition, by hand, and on a real view."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from flowcut import SCOPE
from flowcut.methods.scope import most_covering
from tests.flowcut.hosts import Clip, HFQwen2VL, Siglip
from tests.flowcut.seen import kept_of, watch


def chosen(similarity, weight, number):
    """By the definition: what all tokens are covered with, before and after each candidate."""
    count, picks = len(weight), []

    def coverage(members):
        return sum(max([0.0, *(float(similarity[token][member]) for member in members)]) for token in range(count))

    while len(picks) < number:
        gains = {
            token: (coverage([*picks, token]) - coverage(picks)) * float(weight[token])
            for token in range(count)
            if token not in picks
        }
        picks.append(max(gains, key=gains.get))
    return picks


def test_by_hand():
    similarity = torch.tensor([[1.0, 0.9, 0.0, 0.0], [0.9, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.5], [0.0, 0.0, 0.5, 1.0]])
    even = torch.ones(1, 4)
    # Gains are 1.9, 1.9, 1.5, 1.5; behind the first 0.1, 1.5, 1.5; behind both 0.1 and 0.5.
    assert most_covering(similarity[None], even, 4)[0].tolist() == [0, 2, 3, 1]
    assert most_covering(similarity[None], torch.tensor([[1.0, 1.1, 1.0, 1.2]]), 2)[0].tolist() == [1, 3]
    # Looked at 20 times as much, the poor gain of token 0 (0.1) wins over the other pair's 1.5.
    assert most_covering(similarity[None], torch.tensor([[20.0, 100.0, 1.0, 1.0]]), 2)[0].tolist() == [1, 0]


def test_a_token_unlike_all_others_covers_itself_alone():
    similarity = torch.tensor([[1.0, -0.9], [-0.9, 1.0]])
    assert most_covering(similarity[None], torch.tensor([[1.0, 2.0]]), 2)[0].tolist() == [1, 0]


def test_random_points_and_padding():
    generator = torch.Generator().manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(2, 16, 6, generator=generator), dim=-1)
    similarity, weight = points @ points.mT, torch.rand(2, 16, generator=generator)
    valid = torch.arange(16) < torch.tensor([16, 9])[:, None]
    picks = most_covering(similarity, weight, 9, valid)
    assert picks[0].tolist() == chosen(similarity[0], weight[0], 9)
    assert picks[1].tolist() == chosen(similarity[1, :9, :9], weight[1, :9], 9)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("host", [Clip(), Siglip()], ids=["clip", "siglip"])
def test_on_what_a_model_computes(host, alpha):
    model, sample = host.build(), [host.samples()[1]]
    view = watch(host, model, sample).views[6]
    states, row = view.visual(view.hidden)[0], []
    for head in range(4):
        query = view.q[0, head, 0] if host.prefix else view.q[0, head].mean(dim=0)
        row.append((view.k[0, head] @ query / 8**0.5).softmax(dim=0))
    saliency = sum(row)[host.prefix :] / 4
    similarity = cosine_similarity(states[:, None], states[None], dim=-1)
    [kept] = kept_of(host, model, SCOPE(10, alpha=alpha), sample)
    assert kept == sorted(chosen(similarity, saliency**alpha, 10))


def test_of_merged_tokens_whole_groups_stay():
    host = HFQwen2VL()
    [kept] = kept_of(host, host.build(), SCOPE(7), [host.samples()[3]])
    assert len(kept) == 28
    assert [patch // 4 for patch in kept[::4]] == [patch // 4 for patch in kept[3::4]]


@pytest.mark.parametrize("alpha", [-1.0, float("nan")])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match=r"alpha=\S+ is not a power >= 0; use 1"):
        SCOPE(64, alpha=alpha)
