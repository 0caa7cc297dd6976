"""PruMerge and PruMerge+ against their released code's numbers, against a loop, and on patches one can count."""

import math
from itertools import pairwise

import pytest
import torch

from flowcut import PruMerge, attach
from flowcut.methods.prumerge import Chosen, even_places, merge, outliers
from tests.flowcut.hosts import IMAGE, Clip, HFLlava, HFQwen2VL, Sample, Siglip
from tests.flowcut.recorded_clip import clip, features, names, near, recorded
from tests.flowcut.seen import watch


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", names("prumerge") + names("prumerge_plus"))
def test_recorded(name):
    case, gold = recorded(name)
    model, pixels, vanilla = clip(case)
    last = model.encoder.layers[-1].self_attn.q_proj
    last.weight *= case["last_layer_q_scale"]
    last.bias *= case["last_layer_q_scale"]
    near(features(model, pixels), vanilla)
    # The released code shares one count among a batch; a budget of N or more would leave the image alone.
    pruner = PruMerge(
        min(case["kept"] + 1, case["num_patches"] - 1),
        spatial=case["family"] == "prumerge_plus",
        adaptive=case["adaptive"],
        batch_coupling="shared",
    )
    with attach(model, pruner, signals=True) as handle:
        mine = features(model, pixels)
    kept = torch.stack(handle.trace.final)
    assert torch.equal(kept[:, :-1], gold["kept"].long())
    assert bool((kept[:, -1] == -1).all())
    near(torch.stack(handle.trace.signals[case["score_layer"] - 1]["attention"]), gold["cls_attn"], 1e-5)
    # A neighbour that ties with the next may be another one where sums round otherwise.
    sure = torch.cat([gold["neighbour_gap"].abs() > 1e-6, torch.ones(len(kept), 1, dtype=torch.bool)], dim=1)
    sure |= torch.cat([gold["neighbour_gap"] == 0, torch.ones(len(kept), 1, dtype=torch.bool)], dim=1)
    assert sure.float().mean() > 0.99
    near(mine[sure], gold["features"][sure])


def naive(attention, keys, states, kept, neighbours):
    """Sections 3.2 and 3.3, patch by patch; `kept` may name a patch twice."""
    patches = list(range(len(attention)))
    rest = [p for p in patches if p not in kept][len(kept) - len(set(kept)) :]
    pool, tokens = [*kept, *rest], []
    for place, patch in enumerate(kept):
        others = [other for other in range(len(pool)) if other != place]
        likeness = [float(torch.cosine_similarity(keys[patch], keys[pool[o]], dim=0)) for o in others]
        nearest = sorted(zip(likeness, others, strict=True), reverse=True)[:neighbours]
        token = states[patch].clone()
        for _, other in nearest:
            token += attention[pool[other]] * states[pool[other]]
        tokens.append(token)
    extra = torch.zeros_like(states[0])
    for patch in rest:
        extra += attention[patch] * states[patch]
    return torch.stack([*tokens, extra])


@pytest.mark.parametrize("kept", [[3, 17, 5], [4, 2, 2, 9], list(range(20)), []], ids=str)
@pytest.mark.parametrize("neighbours", [1, 6, 32])
def test_merging_is_the_papers(kept, neighbours):
    torch.manual_seed(0)
    attention = torch.rand(20, dtype=torch.float64)
    keys, states = torch.randn(20, 8, dtype=torch.float64), torch.randn(20, 5, dtype=torch.float64)
    rest = [p for p in range(20) if p not in kept][len(kept) - len(set(kept)) :]
    chosen = Chosen(torch.tensor(kept, dtype=torch.long), torch.tensor(rest, dtype=torch.long))
    near(merge(chosen, attention, keys, states, neighbours), naive(attention, keys, states, kept, neighbours), 1e-12)


@pytest.mark.parametrize("host", [Clip(), Siglip()], ids=lambda host: host.name)
@pytest.mark.parametrize("spatial", [False, True])
def test_whole_method(host, spatial):
    """On an encoder, from its own projections: queries and keys of the layer behind, heads joined."""
    model, samples = host.build(), host.samples()[:2]
    states = watch(host, model, samples).views[6].hidden
    inner = model.encoder.layers[7]
    hidden = inner.layer_norm1(states)
    queries, keys = inner.self_attn.q_proj(hidden), inner.self_attn.k_proj(hidden)
    query = queries[:, :1] if host.prefix else queries.mean(dim=1, keepdim=True)
    rows = (query @ keys.transpose(1, 2) / math.sqrt(32)).softmax(dim=-1)[:, 0, host.prefix :]
    with attach(model, PruMerge(9, spatial=spatial, neighbours=5)) as handle:
        mine = host.outputs(model, samples, handle)
    for image in range(2):
        order = rows[image].argsort(descending=True).tolist()
        kept = [*order[:4], 4, 13, 22, 31] if spatial else order[:8]
        assert handle.trace.final[image].tolist() == [*kept, -1]
        patches = keys[image, host.prefix :], states[image, host.prefix :]
        near(mine[image], naive(rows[image], *patches, kept, 5))


def test_outliers_by_hand():
    values = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, 14.9, 15.1])
    # Quartiles at places 2.25 and 6.75: 3.25 and 7.75, so the bound is 7.75 + 1.5 * 4.5 = 14.5.
    assert outliers(values).tolist() == [False] * 8 + [True] * 2
    assert not outliers(torch.ones(7)).any()


@pytest.mark.parametrize(("patches", "number"), [(576, 72), (576, 31), (36, 5), (7, 7), (9, 1), (9, 0)])
def test_spatial_places_are_even(patches, number):
    places = even_places(patches, number)
    assert len(set(places)) == number
    gaps = [b - a for a, b in pairwise(places)]
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert number != 72 or places == list(range(4, 575, 8))  # what the released code takes for an eighth


def choose(pruner, scores, number):
    kept, rest = pruner.choose(torch.tensor(scores), number)
    return kept.tolist(), rest.tolist()


def test_choices_by_hand():
    scores = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.0, 0.6]
    assert choose(PruMerge(4), scores, 3) == ([1, 3, 5], [0, 2, 4, 6, 7])
    # Three by attention, and the middles of two halves; 2 is new, 6 too.
    assert choose(PruMerge.plus(6), scores, 5) == ([1, 3, 5, 2, 6], [0, 4, 7])
    # The middle of the whole is 4 ... and of three parts 1, 4, 6; 1 comes twice, so patch 0 is forgotten.
    assert choose(PruMerge.plus(7), scores, 6) == ([1, 3, 5, 1, 4, 6], [2, 7])
    assert choose(PruMerge.plus(7, repeats=False), scores, 6) == ([1, 3, 5, 0, 4, 7], [2, 6])
    # Adaptive: a step of 8 // 2 // 3 = 1 over all patches but the last.
    assert choose(PruMerge.plus(7, adaptive=True), scores, 2) == ([1, 3, 0, 2, 4, 5, 6], [7])
    assert choose(PruMerge.plus(7, adaptive=True), scores, 0) == ([], list(range(8)))
    assert choose(PruMerge(1), scores, 0) == ([], list(range(8)))


@pytest.mark.parametrize("make", [PruMerge, PruMerge.plus])
def test_adaptive_counts_are_each_images_own(make):
    host = HFLlava()
    model = host.build()
    samples = [Sample([1, IMAGE, 5], [image]) for image in range(4)]
    with attach(model, make(8, adaptive=True)) as handle:
        together = host.outputs(model, samples, handle, "left")
        counts = [len(tokens) for tokens in handle.trace.remaining]
        for sample, count, row in zip(samples, counts, together, strict=True):
            [alone] = host.outputs(model, [sample], handle)
            assert [len(tokens) for tokens in handle.trace.remaining] == [count]
            near(alone, row, 1e-3)
    assert len(set(counts)) > 1
    with attach(model, make(8, adaptive=True, batch_coupling="shared")) as handle:
        host.outputs(model, samples, handle)
        assert make is not PruMerge or len({len(tokens) for tokens in handle.trace.remaining}) == 1


def test_a_repeated_patch_is_sent_twice():
    host = Clip()
    model = host.build()
    with attach(model, PruMerge.plus(17)) as handle:
        [mine] = host.outputs(model, host.samples()[:1], handle)
    kept = handle.trace.final[0].tolist()
    twice = [patch for patch in kept if kept.count(patch) > 1]
    assert len(kept) == len(mine) == 17
    assert twice


def test_bad_fields():
    with pytest.raises(ValueError, match="neighbours=0 is not a number of patches >= 1"):
        PruMerge(8, neighbours=0)
    with pytest.raises(ValueError, match="batch_coupling='max' is not allowed; choose none or shared"):
        PruMerge(8, batch_coupling="max")


def test_an_encoder_without_its_last_layer_is_refused():
    model = Clip().build()
    model.encoder.layers = model.encoder.layers[:-1]
    with pytest.raises(ValueError, match="reads the encoder's last layer"):
        attach(model, PruMerge(8))


def test_models_that_merge_patches_themselves_are_refused():
    with pytest.raises(ValueError, match="PruMerge cannot merge patches in a model that joins several"):
        attach(HFQwen2VL().build(), PruMerge(8))
