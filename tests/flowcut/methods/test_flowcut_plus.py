"""FlowCut+ against an encoder written as a loop, Ward's criterion as the growth of variance, and laws of merging."""

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import normalize

from flowcut import FlowCutPlus, attach
from flowcut.methods.flowcut_plus import cover, merge_pairs
from tests.flowcut.hosts import Clip, Siglip, pixels
from tests.flowcut.merging_encoder import embedded, merging_encoder

BUDGET = 10
HISTORY = 0.5


def scatter(points, masses):
    """The mass-weighted sum of squared distances to the mean."""
    mean = sum(m * p for m, p in zip(masses, points, strict=True)) / sum(masses)
    return float(sum(m * (p - mean).square().sum() for m, p in zip(masses, points, strict=True)))


def cheapest_pairs(keys, mass, number):
    """The pairs (even, odd) that raise the scatter least when merged; each even place once."""
    prices = []
    for even in range(0, len(keys), 2):
        growth = [(scatter(keys[[even, odd]], mass[[even, odd]]), odd) for odd in range(1, len(keys), 2)]
        prices.append((*min(growth), even))
    return [(even, odd) for _, odd, even in sorted(prices)[:number]]


def picks_of(keys, mass, number):
    """Picks one after the other: the token with which all tokens together are covered best."""

    def covered(members):
        nearest = [max([0.0, *(float(key @ keys[one]) for one in members)]) for key in keys]
        return sum(float(m) * near for m, near in zip(mass, nearest, strict=True))

    picks = []
    while len(picks) < number:
        rest = [token for token in range(len(keys)) if token not in picks]
        picks.append(max(rest, key=lambda token: covered([*picks, token])))
    return sorted(picks)


def deciding(prefix, counts, alpha):
    """What a `merging_encoder` merges by the method's description; `counts`: tokens that remain after each block."""
    notes = {"flow": None}

    def decide(block, q, k, v, sizes):
        if block >= len(counts):
            return None
        query = q[:, 0] if prefix else q.mean(dim=1)
        looks = sum((k[head] @ query[head] / q.shape[-1] ** 0.5).softmax(dim=0) for head in range(len(q))) / len(q)
        flow = (looks * v.mean(dim=0).abs().sum(dim=1))[prefix:]
        flow = flow / flow.mean()
        before = notes["flow"]
        flow = flow if before is None else HISTORY * before + (1 - HISTORY) * flow
        size = torch.tensor(sizes[prefix:])
        mass, keys = flow**alpha * size, normalize(k.mean(dim=0)[prefix:], dim=1)
        groups = {place: [place] for place in range(len(keys))}
        if block == len(counts) - 1:
            picks = picks_of(keys, mass, counts[block])
            goes = {
                place: max(picks, key=lambda pick: float(keys[place] @ keys[pick]))
                for place in groups
                if place not in picks
            }
        else:
            goes = dict(cheapest_pairs(keys, mass, len(keys) - counts[block]))
        for one, other in goes.items():
            groups[other].append(one)
            del groups[one]
        notes["flow"] = torch.stack([(flow[g] * size[g]).sum() / size[g].sum() for g in groups.values()])
        special = [[place] for place in range(prefix)]
        return special + [[place + prefix for place in group] for group in groups.values()]

    return decide


@pytest.mark.parametrize("alpha", [0.25, 0.0])
@pytest.mark.parametrize("host", [Clip(), Siglip()], ids=lambda host: host.name)
@torch.no_grad()
def test_whole_encoder(host, alpha):
    model = host.build()
    counts = [31, 26, 22, 19, 16, 14, BUDGET]  # the same share each time until 10 + 36 / 9 are left, then the cover
    with attach(model, FlowCutPlus(BUDGET, alpha=alpha)) as handle:
        mine = host.outputs(model, host.samples()[:2], handle)
    assert handle.trace.path() == [36, *counts]
    for image in range(2):
        start = embedded(model, pixels([image])[0])
        decide = deciding(host.prefix, counts, alpha)
        theirs, members = merging_encoder(model.encoder.layers[:7], start, host.prefix, decide)
        assert [sorted(part.tolist()) for part in handle.trace.members(image)] == members
        assert torch.allclose(mine[image], theirs[host.prefix :], atol=1e-4)


@torch.no_grad()
def test_steepness():
    """The same share of tokens goes in each block, or the same number; half way it is a mean of both."""
    host, paths = Clip(), {}
    model = host.build()
    for steepness in (1.0, 0.5, 0.0):
        with attach(model, FlowCutPlus(BUDGET, steepness=steepness)) as handle:
            host.outputs(model, host.samples(), handle)
        paths[steepness] = handle.trace.path()[:7]
        assert (paths[steepness][0], paths[steepness][-1]) == (36, BUDGET + 36 // 9)
    steps = {steepness: [a - b for a, b in pairwise(path)] for steepness, path in paths.items()}
    assert max(steps[0.0]) - min(steps[0.0]) <= 1
    assert all(abs(b / a - (14 / 36) ** (1 / 6)) < 0.04 for a, b in pairwise(paths[1.0]))
    assert all(one <= half <= other for one, half, other in zip(*paths.values(), strict=True))


@torch.no_grad()
def test_every_patch_is_in_one_token():
    host = Clip()
    model = host.build()
    for budget in (1, 2, 17, 35):
        with attach(model, FlowCutPlus(budget)) as handle:
            host.outputs(model, host.samples(), handle)
        for row, kept in enumerate(handle.trace.final):
            members = handle.trace.members(row)
            assert sorted(torch.cat(members).tolist()) == list(range(36))
            assert len(members) == len(kept) == budget
            assert kept.tolist() == sorted(kept.tolist())
            assert all(place in part for place, part in zip(kept.tolist(), members, strict=True))


def drawn(*shape):
    generator = torch.Generator().manual_seed(0)
    return normalize(torch.randn(*shape, 5, generator=generator), dim=-1), torch.rand(*shape, generator=generator) + 0.1


def test_rows_of_different_length_merge_as_alone():
    keys, mass = drawn(3, 12)
    counts, remaining = (12, 7, 1), (8, 5, 1)
    keep, into = merge_pairs(keys, mass, counts, remaining)
    for row, (count, left) in enumerate(zip(counts[:2], remaining[:2], strict=True)):
        one = slice(row, row + 1)
        alone = merge_pairs(keys[one, :count], mass[one, :count], (count,), (left,))
        assert keep[row, :left].tolist() == alone[0][0].tolist()
        assert into[row].tolist() == alone[1][0].tolist() + [-1] * (12 - count)
        gone = cheapest_pairs(keys[row, :count], mass[row, :count], count - left)
        assert sorted(set(range(count)) - set(keep[row, :left].tolist())) == sorted(even for even, _ in gone)
    assert (keep[2, 0], into[2].tolist()) == (0, [0] + [-1] * 11)


def test_covers_of_rows_of_different_length():
    keys, mass = drawn(2, 12)
    valid = torch.arange(12) < torch.tensor([12, 7])[:, None]
    keep, into = cover(keys, mass, (5, 3), valid)
    for row, (count, number) in enumerate(((12, 5), (7, 3))):
        picks = picks_of(keys[row, :count], mass[row, :count], number)
        assert keep[row, :number].tolist() == picks
        nearest = [
            max(range(number), key=lambda pick: float(keys[row, one] @ keys[row, picks[pick]])) for one in range(count)
        ]
        assert into[row].tolist() == nearest + [-1] * (12 - count)


def test_equal_tokens_stay_themselves_where_both_are_picked():
    keys = normalize(torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]]), dim=-1)
    keep, into = cover(keys, torch.ones(1, 3), (3,), None)
    assert keep.tolist() == into.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"alpha": -1.0}, "alpha=-1.0 is not a power >= 0"),
        ({"lead": 2.0}, "lead=2.0 is not in 0 ... 1"),
        ({"steepness": float("nan")}, "steepness=nan is not in 0 ... 1"),
        ({"history": 1.0}, "history=1.0 is not a weight"),
    ],
)
def test_bad_fields(fields, words):
    with pytest.raises(ValueError, match=words):
        FlowCutPlus(64, **fields)
