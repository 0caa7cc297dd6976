"""VisPruner against its released code's numbers, against a loop, and on lists one can follow by hand."""

import pytest
import torch

from flowcut import VisPruner, attach
from flowcut.methods.vispruner import diverse, select
from tests.flowcut.hosts import Clip, HFQwen25VL, Siglip
from tests.flowcut.recorded_clip import clip, features, names, near, recorded
from tests.flowcut.seen import watch


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", names("vispruner"))
def test_recorded(name):
    case, gold = recorded(name)
    model, pixels, _ = clip(case)
    with attach(model, VisPruner(case["target"], important_ratio=case["important_ratio"]), signals=True) as handle:
        near(features(model, pixels), gold["features"])
    assert torch.equal(torch.stack(handle.trace.final), gold["keep"].long())
    near(torch.stack(handle.trace.signals[case["score_layer"]]["score"]), gold["score"], 1e-6)


@pytest.mark.parametrize("name", names("vispruner_core"))
def test_recorded_selection(name):
    """Given scores and features, in float64: rounding in float32 would decide otherwise."""
    case, gold = recorded(name)
    important = int(case["target"] * case["important_ratio"])
    for row, image in enumerate(case["images"]):
        score, states = (gold[f"{case['model']}.{image}.{what}"].double() for what in ("score", "x"))
        kept = select(score, states, case["target"], important, 8)
        assert torch.equal(kept, gold[f"{name}.keep"][row].long())
        order = score.argsort(descending=True, stable=True)
        assert torch.equal(order[:important], gold[f"{name}.important"][row].long())
        if important < case["target"]:
            rest = order[important:]
            left = rest[diverse(states[rest], case["target"] - important, 8)]
            assert torch.equal(left, gold[f"{name}.diverse"][row].long())


def naive(states, left, drop):
    residual = list(range(len(states)))
    while len(residual) > left:
        even, odd = residual[::2], residual[1::2]
        if not odd:
            return residual[:left]
        best = {}
        for one in even:
            best[one] = max(float(torch.cosine_similarity(states[one], states[other], dim=0)) for other in odd)
        number = min(drop, len(residual) - left)
        falling = sorted(even, key=lambda one: -best[one])
        residual = falling[number:] + odd
    return residual


@pytest.mark.parametrize("tokens", [1, 2, 3, 12, 13])
@pytest.mark.parametrize("left", [0, 1, 2, 5, 12])
@pytest.mark.parametrize("drop", [1, 3, 8])
def test_rounds(tokens, left, drop):
    """Odd lists, and more to drop than there are even members, which the released code cannot do."""
    states = torch.randn(tokens, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(tokens))
    assert diverse(states, left, drop).tolist() == naive(states, left, drop)
    assert len(diverse(states, left, drop)) == min(left, tokens)


def test_rounds_by_hand():
    """Directions in degrees 0 90 1 50 88: even 0, 1, 88 at places 0, 2, 4; odd 90 and 50."""
    angles = torch.tensor([0.0, 90, 1, 50, 88]).deg2rad()
    states = torch.stack([angles.cos(), angles.sin()], dim=1)
    # 88 is next to 90 and goes; of the others 1 (49 off) comes before 0 (50 off); then the odd ones.
    assert diverse(states, 4, 1).tolist() == [2, 0, 1, 3]
    # Now 1 and 90 are even, 0 and 50 odd: 1 goes.
    assert diverse(states, 3, 1).tolist() == [1, 0, 3]


@pytest.mark.parametrize("host", [Clip(), Siglip()], ids=lambda host: host.name)
@pytest.mark.parametrize("budget", [1, 2, 9, 35])
def test_whole_method(host, budget):
    model, samples = host.build(), host.samples()
    view = watch(host, model, samples).views[6]
    query = view.q[:, :, 0] if host.prefix else view.q.mean(dim=2)
    rows = torch.einsum("bhd,bhnd->bhn", query, view.k).mul(8**-0.5).softmax(dim=-1).mean(dim=1)[:, host.prefix :]
    with attach(model, VisPruner(budget, drop=3)) as handle:
        mine = host.outputs(model, samples, handle)
    for image, row in enumerate(rows):
        order, states = row.argsort(descending=True).tolist(), view.hidden[image, host.prefix :]
        important, rest = order[: budget // 2], order[budget // 2 :]
        kept = sorted(important + [rest[place] for place in naive(states[rest], budget - budget // 2, 3)])
        assert handle.trace.final[image].tolist() == kept
        near(mine[image], states[kept], 1e-5)


def test_merge_groups_stay_whole():
    host = HFQwen25VL()
    model = host.build()
    with attach(model, VisPruner(7)) as handle:
        host.outputs(model, host.samples(), handle)
    for kept in handle.trace.final:
        groups, counts = (kept // 4).unique(return_counts=True)
        assert len(groups) == 7
        assert counts.tolist() == [4] * 7


def test_bad_fields():
    with pytest.raises(ValueError, match=r"important_ratio=1\.5 is not a share in 0 \.\.\. 1"):
        VisPruner(8, important_ratio=1.5)
    with pytest.raises(ValueError, match="drop=0 is not a number of tokens >= 1"):
        VisPruner(8, drop=0)
