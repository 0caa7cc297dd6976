"""The laws every pruner keeps on every model family: identity, restoration, isolation, budget, order.

Those of batches and precision, of generation and of training are in the files beside this one; which pruner meets
which family is in laws.py.
"""

from dataclasses import replace

import pytest
import torch
from hosts import DEPTH
from laws import BUDGET, OURS, built, every_pair, merges_in_language, remaining, same, some_pairs, vanilla

from flowcut import (
    DART,
    ST3,
    VTW,
    FastV,
    FlowCut,
    HoloV,
    PruMerge,
    PyramidDrop,
    RCom,
    SparseVLM,
    ToMe,
    VisionZip,
    attach,
    detach,
)

pytestmark = pytest.mark.usefixtures("no_gradients")


def hooks(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@every_pair
def test_identity(host, pruner, implementation):
    model, plain = built(host.name, implementation), vanilla(host.name, implementation)
    with attach(model, pruner) as handle:
        handle.budget = host.most
        assert same(plain, host.outputs(model, host.samples(), handle))
        assert handle.trace.kept == {}
        assert handle.trace.language is None or handle.trace.language.kept == {}


@some_pairs
def test_pruning_changes_something(host, pruner):
    model, plain = built(host.name), vanilla(host.name)
    with attach(model, pruner) as handle:
        pruned = host.outputs(model, host.samples(), handle)
    assert pruned[0].shape[0] < plain[0].shape[0]


@every_pair
def test_restore(host, pruner, implementation):
    model, plain = built(host.name, implementation), vanilla(host.name, implementation)
    parts = list(model.modules())
    before = hooks(model), [part.__dict__.get("config") for part in parts], [set(part.__dict__) for part in parts]
    handle = attach(model, pruner)
    host.outputs(model, host.samples(), handle)
    detach(model)
    assert hooks(model) == before[0]
    assert all(part.__dict__.get("config") is config for part, config in zip(parts, before[1], strict=True))
    assert [set(part.__dict__) for part in parts] == before[2]
    assert host.tower(model).config._attn_implementation == implementation
    assert same(plain, host.outputs(model, host.samples()))


@some_pairs
def test_restore_after_an_error(host, pruner):
    model, plain = built(host.name), vanilla(host.name)
    places = [host.layers(model)[4], *([host.decoder(model).layers[2]] if host.speaks else [])]
    for place in places:
        broken = place.register_forward_pre_hook(_boom)
        with pytest.raises(RuntimeError, match="boom"), attach(model, pruner) as handle:
            host.outputs(model, host.samples(), handle)
        broken.remove()
        assert same(plain, host.outputs(model, host.samples()))


def _boom(*_):
    raise RuntimeError("boom")


@some_pairs
def test_isolation(host, pruner):
    """Two models built from one config object, each its own way at the same time."""
    config = host.config()
    pruned, plain = host.build(config), host.build(config)
    whole = host.outputs(plain, host.samples())
    with attach(pruned, pruner) as handle:
        ten = host.outputs(pruned, host.samples(), handle)
        assert host.tower(plain).config._attn_implementation == "sdpa"
        assert same(whole, host.outputs(plain, host.samples()))
        with attach(plain, pruner) as other:
            other.budget = 20
            assert host.outputs(plain, host.samples(), other)[0].shape[0] >= ten[0].shape[0]
            assert same(ten, host.outputs(pruned, host.samples(), handle))


@some_pairs
def test_two_budgets_one_after_the_other(host, pruner):
    model, seen = built(host.name), []
    with attach(model, pruner) as handle:
        for budget in (BUDGET, 7, BUDGET):
            handle.budget = budget
            seen.append(host.outputs(model, host.samples(), handle))
    assert same(seen[0], seen[2])


@every_pair
def test_budget(host, pruner, budget):
    """Counted where they arrive: in the language model's last layer, or in the features of a bare encoder."""
    model = built(host.name)
    arrived = []
    counting = None
    if host.speaks:
        last = host.decoder(model).layers[-1]
        counting = last.register_forward_pre_hook(lambda module, args: arrived.append(args[0].shape[1]))
    if host.name == "video_llava":
        budget = max(budget, 2)  # its CLS token counts
    with attach(model, pruner) as handle:
        handle.budget = budget
        handle.pruner = exactly(handle.pruner, budget)
        for sample in host.samples():
            features = host.outputs(model, [sample], handle)[0]
            got = arrived.pop() - host.text(sample) if host.speaks else len(features)
            images = len(sample.images) + sum(len(host.frames(video)) for video in sample.videos)
            left = [len(tokens) for tokens in remaining(handle, [sample])]
            assert got == sum(left)
            if hasattr(pruner, "schedule"):
                sizes = [len(tokens) for tokens in handle.trace.tokens[:images]]
                assert left == [handle.pruner.schedule(size, 4).left[-1] for size in sizes]
                # Two are different by design: clusters come on top, and nothing at all is left.
                assert pruner.positions is None or isinstance(pruner, VTW) or set(left) <= {budget}
            elif host.tiled and isinstance(pruner, FlowCut):
                # Two stages; an image that is mostly padding may enter the language model with less.
                assert left == [min(budget, len(tokens)) for tokens in handle.trace.tokens][:images]
                assert sample.images != [0] or left == [budget]
            elif host.tiled and not isinstance(pruner, FastV):
                # Each tile has its share of the budget, and what shows padding is taken off afterwards.
                assert all(0 < count <= max(budget, 5) for count in left)
            else:
                assert left == [budget] * images
    if counting is not None:
        counting.remove()


def exactly(pruner, budget):
    """Pruners whose budget is a mean over the decoder's layers: leaving that many tokens behind their last cut."""
    if isinstance(pruner, FastV):
        return FastV.keeping(budget)
    if isinstance(pruner, PyramidDrop | SparseVLM | ST3):
        return replace(pruner, keep=(24, 16, budget) if budget < 16 else (24, 20, budget))
    return replace(pruner, keep=budget) if isinstance(pruner, DART) else pruner


@some_pairs
def test_order(host, pruner):
    """Kept positions ascend, each selection chooses among the last one's, and the books agree."""
    model = built(host.name)
    with attach(model, pruner) as handle:
        host.outputs(model, host.samples(), handle)
    trace = handle.trace
    assert trace.kept or trace.language.kept
    layers = DEPTH - 1 if host.name in OURS else DEPTH
    assert len(trace.entering) == len(trace.leaving) == layers
    check_order(trace, merges=isinstance(pruner, VisionZip | PruMerge | ToMe | HoloV | RCom))
    if trace.language is not None:
        assert trace.language.entering[0] == tuple(len(tokens) for tokens in trace.tokens)
        check_order(trace.language, merges=merges_in_language(pruner))


def check_order(trace, merges=False):
    before = [set(range(count)) for count in trace.entering[0]]
    for layer, kept in sorted(trace.kept.items()):
        assert trace.leaving[layer] == tuple(len(positions) for positions in kept)
        for sample, positions in enumerate(kept):
            assert len(positions.unique()) == len(positions)
            if merges:  # such as the CLS token, then the dominant patches, then those that others were merged into
                assert set(positions.tolist()) <= before[sample] | {-1}
            else:
                assert torch.equal(positions, positions.unique())
                assert set(positions.tolist()) <= before[sample]
        before = [set(positions.tolist()) for positions in kept]
    assert list(trace.entering[1:]) == list(trace.leaving[:-1])
