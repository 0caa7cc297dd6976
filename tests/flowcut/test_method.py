"""FlowCut's fields, each against a value computed another way. The default's numbers are in test_golden.py."""

import itertools
import math

import pytest
import torch
from hosts import DEPTH, PATCHES, Clip, pixels

from flowcut import FlowCut, View, attach
from flowcut.pruner import EncoderShape, Rows

HOST = Clip()
LAST = DEPTH - 3


class Notes:
    """A source that keeps what is recorded."""

    def __init__(self):
        self.recorded = {}

    def record(self, name, values, view):
        self.recorded[name] = values


def view_of(rows=2, patches=20, prefix=1, layer=1, layers=12, seed=0, scale=2.0, dtype=torch.float32, **fields):
    """A layer with random q, k, v (4 heads of 8)."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(3, rows, 4, prefix + patches, 8, generator=generator) * scale).to(dtype)
    counts = fields.pop("counts", (patches,) * rows)
    groups = fields.pop("groups", tuple(range(rows)))
    return View(
        layer=layer,
        layers=layers,
        q=q,
        k=k,
        v=v,
        scaling=8**-0.5,
        counts=counts,
        positions=torch.arange(patches).expand(rows, patches),
        rows=Rows(groups, (1,) * rows, ((1, patches),) * rows, (patches,) * rows),
        shape=EncoderShape("", layers, layers, num_prefix_tokens=prefix, **fields),
        source=Notes(),
    )


def run(pruner, images=4):
    model = HOST.build()
    with torch.no_grad(), attach(model, pruner, signals=True) as handle:
        HOST.outputs(model, HOST.samples()[:images])
    return handle.trace


def signals_of(pruner, view):
    view.source = Notes()
    view.memory.clear()
    cut = pruner.vision(view)
    return view.source.recorded, cut


def test_rows_that_still_differ_where_features_are_read_are_cut_after_it():
    """Padded rows are shown to the pruner like packed ones, each as alone."""
    host, model = Clip(), Clip().build()
    images = pixels([0, 1, 2, 3])
    with torch.no_grad(), attach(model, FlowCut(7, last_layer=-1)) as handle:
        together = model(images).last_hidden_state
        assert together.shape[1] == host.prefix + 7
        assert len(set(handle.trace.leaving[DEPTH - 2])) > 1
        for row, image in enumerate(images):
            alone = model(image[None]).last_hidden_state[0]
            torch.testing.assert_close(alone, together[row], atol=1e-4, rtol=1e-4)


def test_paper_equations_word_by_word():
    view = view_of(rows=1)
    a = (view.q[0] @ view.k[0].mT * 8**-0.5).softmax(-1).mean(0)[0]
    s = (view.v[0] @ view.v[0].mT / math.sqrt(8)).softmax(-1).mean(0)[0]
    density = view.v[0, :, 1:].mean(0).norm(p=1, dim=-1)
    importance = (a[1:] / a[1:].sum() + s[1:] / s[1:].sum()) * density
    entropy = -(a * a.log()).sum()
    ratio = float(entropy) / math.log(21)
    # Layer 1 of 12: selections still to come after layers 3, 5, 7 and 9.
    number = (20 - 6) / math.sqrt(4) * (1 - ratio**2)
    recorded, cut = signals_of(FlowCut.paper(6), view)
    torch.testing.assert_close(recorded["score"][0], importance)
    torch.testing.assert_close(recorded["entropy"][0], entropy)
    assert recorded["prune_number"].item() == pytest.approx(number, abs=1e-3)
    assert cut.keep[0].tolist() == sorted(importance.topk(20 - round(number)).indices.tolist())


def test_schedule():
    assert list(run(FlowCut(10)).kept) == [1, 3, 5]
    assert list(run(FlowCut(10, interval=1)).kept) == [0, 1, 2, 3, 4, 5]
    assert list(run(FlowCut(10, interval=3)).kept) == [2, 5]
    assert list(run(FlowCut(10, interval=99)).kept) == [5]
    assert list(run(FlowCut(10, last_layer=-2)).kept) == [0, 2, 4, 6]


def test_history():
    for layer, signals in run(FlowCut(10, history=0.0), images=1).signals.items():
        assert torch.equal(signals["cumulative"][0], signals["score"][0]), layer
    weighed = run(FlowCut(10, history=0.9, interval=99), images=1).signals
    expected = weighed[0]["score"][0]
    for layer in range(1, LAST + 1):
        expected = 0.9 * expected + 0.1 * weighed[layer]["score"][0]
        torch.testing.assert_close(weighed[layer]["cumulative"][0], expected)


def test_criteria():
    view = view_of()
    full, _ = signals_of(FlowCut(5), view)
    share = {name: full[name] / full[name].sum(1, keepdim=True) for name in ("attention", "semantic")}
    expected = {
        ("attention",): share["attention"],
        ("semantic",): share["semantic"],
        ("value",): full["value"],
        ("attention", "value"): share["attention"] * full["value"],
        ("semantic", "value"): share["semantic"] * full["value"],
        ("attention", "semantic"): share["attention"] + share["semantic"],
    }
    for kept, score in expected.items():
        switches = {name: name in kept for name in ("attention", "semantic", "value")}
        torch.testing.assert_close(signals_of(FlowCut(5, **switches), view)[0]["score"], score)


def test_variants_of_the_formulas():
    view = view_of(rows=1)
    joined = view.v[0].transpose(0, 1).flatten(1)
    recorded, _ = signals_of(FlowCut(5, heads="joined", semantic_scale="head"), view)
    torch.testing.assert_close(recorded["value"][0], joined[1:].abs().sum(1))
    semantic = (joined @ joined[0] / math.sqrt(32)).softmax(0)[1:]
    torch.testing.assert_close(recorded["semantic"][0], semantic)
    recorded, _ = signals_of(FlowCut(5, softmax_over="patches"), view)
    assert recorded["attention"].sum().item() == pytest.approx(1)
    assert recorded["semantic"].sum().item() == pytest.approx(1)


def test_uniform_share():
    """Without the entropy every selection keeps the same share, up to rounding."""
    counts = [PATCHES, *(row[0] for row in run(FlowCut(9, adaptive=False)).leaving)]
    shares = [after / before for before, after in itertools.pairwise(counts) if after < before]
    assert len(shares) == 3
    assert shares == pytest.approx([(9 / PATCHES) ** (1 / 3)] * 3, abs=0.03)


def test_coupling():
    alone = run(FlowCut(10)).leaving
    coupled = run(FlowCut(10, batch_coupling="max")).leaving
    assert any(len(set(counts)) > 1 for counts in alone)
    assert all(len(set(counts)) == 1 for counts in coupled)
    assert coupled[1][0] == min(alone[1])


def test_rows_of_one_group_drop_equally():
    cuts = []
    for groups in ((0, 1, 2), (0, 0, 1)):
        view = view_of(rows=3, patches=60, groups=groups)
        view.q *= torch.tensor([0.1, 1.0, 5.0])[:, None, None, None]  # from flat to sharp attention
        cuts.append(FlowCut(5).vision(view).counts)
    flat, middle, sharp = cuts[0]
    assert flat > middle > sharp
    assert cuts[1] == (middle, middle, sharp)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_underflow_gives_no_nan(dtype):
    """CLS looks at itself alone: every patch's attention is exactly 0, in either half precision."""
    view = view_of(rows=1, dtype=dtype)
    view.q[:, :, 0] = 100.0
    view.k[:] = -100.0
    view.k[:, :, 0] = 100.0
    recorded, cut = signals_of(FlowCut(5), view)
    assert recorded["attention"].count_nonzero() == 0
    assert all(torch.isfinite(values).all() for values in recorded.values())
    assert len(cut.keep[0]) < 20


def test_without_cls_the_mean_takes_its_place():
    view = view_of(rows=2, prefix=0, counts=(20, 12))
    recorded, _ = signals_of(FlowCut(5), view)
    mean = view.q[1, :, :12].mean(1)
    row = torch.einsum("hd,hnd->hn", mean, view.k[1, :, :12]).mul(8**-0.5).softmax(-1).mean(0)
    torch.testing.assert_close(recorded["attention"][1, :12], row)


@pytest.mark.parametrize(
    "field",
    [
        {"budget": 0},
        {"budget": -3},
        {"budget": 6.4},
        {"budget": True},
        {"budget": "64"},
        {"interval": 0},
        {"last_layer": 0},
        {"history": 1.0},
        {"history": -0.1},
        {"batch_coupling": "mean"},
        {"semantic_scale": "model"},
        {"heads": "all"},
        {"softmax_over": "cls"},
        {"entropy_over": "cls"},
        {"steps_left": "all"},
        {"attention": False, "semantic": False, "value": False},
    ],
)
def test_bad_fields(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        FlowCut(**{"budget": 64, **field})
