"""Recoverable Compression against a loop over its four steps, and its outliers against scikit-learn's."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from flowcut import RCom, asked, attach
from flowcut.methods.rcom import Parts, Tokens, choose, compress, outlier_share
from tests.flowcut.hosts import Clip, HFLlava, HFLlavaNext, HFQwen2VL, Siglip
from tests.flowcut.seen import watch

pytestmark = pytest.mark.usefixtures("no_gradients")


def golden(power, count=60):
    return [(number * 0.618034 % 1) ** power for number in range(count)]


# What scikit-learn 1.9.1's LocalOutlierFactor(contamination="auto") finds in these values.
@pytest.mark.parametrize(
    ("values", "neighbours", "found"),
    [
        (golden(1), 10, 0),
        (golden(4), 10, 13),
        (golden(4), 20, 36),
        (golden(12), 10, 49),
        (golden(12), 20, 39),
        ([0.5] * 20 + golden(8, 40), 10, 29),
    ],
)
def test_outliers_are_scikit_learns(values, neighbours, found):
    assert outlier_share(torch.tensor(values, dtype=torch.float64), neighbours) == found / 60


def share_by_loop(values, neighbours):
    """The local outlier factor, value by value."""
    values, count = values.tolist(), len(values)
    near = [
        sorted((abs(values[a] - values[b]), b) for b in range(count) if b != a)[: min(neighbours, count - 1)]
        for a in range(count)
    ]
    density = []
    for a in range(count):
        reach = [max(distance, near[b][-1][0]) for distance, b in near[a]]
        density.append(1 / (sum(reach) / len(reach) + 1e-10))
    factors = [sum(density[b] for _, b in near[a]) / len(near[a]) / density[a] for a in range(count)]
    return sum(factor > 1.5 for factor in factors) / count


@pytest.mark.parametrize("count", [2, 5, 36, 50])
def test_outliers_by_loop(count):
    values = torch.rand(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64) ** 6
    for neighbours in (10, 20):
        assert outlier_share(values, neighbours) == pytest.approx(share_by_loop(values, neighbours))
    assert outlier_share(values[:1], 10) == 0


def by_loop(visual, text, keys, states, condition, adaptive, budget):
    """The steps of the docstring, in plain lists. -> what is kept (-1 for the sum) and the tokens' states."""
    count, order = len(visual), list(range(len(visual)))
    best = sorted(order, key=lambda one: -float(visual[one]))
    sight = best[: int(count * share_by_loop(visual.double(), 20))]
    recovered, score = [], text.double().clone()
    score[sight] = score.min()
    if condition:
        number = int((count - len(sight)) * share_by_loop(score, 20))
        others = [one for one in order if one not in sight]
        recovered = sorted(others, key=lambda one: -float(text[one]))[:number]
    rest = [one for one in order if one not in sight + recovered]
    number = min(int(count * share_by_loop(visual[rest].double(), 10)), len(rest) - 1)
    parts = [len(sight), len(recovered), number]
    if not adaptive:
        total = budget - 1 if number else budget
        exact = [total * part / sum(parts) for part in parts]
        parts = [int(part) for part in exact]
        for part in sorted(range(3), key=lambda part: parts[part] - exact[part])[: total - sum(parts)]:
            parts[part] += 1
    sight = best[: parts[0]]
    others = [one for one in order if one not in sight]
    recovered = sorted(others, key=lambda one: -float(text[one]))[: parts[1]]
    kept = sorted(sight + recovered)
    result = [states[one] for one in kept]
    rest = [one for one in order if one not in kept]
    centres = sorted(rest, key=lambda one: -float(visual[one]))[: parts[2]]
    for centre in centres:
        likeness = {
            one: float(cosine_similarity(keys[centre], keys[one], dim=0)) + 50 * float(text[one])
            for one in rest
            if one != centre
        }
        members = sorted(likeness, key=lambda one: -likeness[one])[:32]
        result.append(states[centre] + sum(visual[one] * states[one] for one in members))
    if centres:
        result.append(sum(visual[one] * states[one] for one in rest if one not in centres))
    return [*kept, *centres, *([-1] if centres else [])], torch.stack(result)


@pytest.mark.parametrize("adaptive", [False, True], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("condition", [True, False], ids=["asked", "unasked"])
@pytest.mark.parametrize("host", [Clip(), Siglip()], ids=["clip", "siglip"])
def test_on_what_a_model_computes(host, condition, adaptive, tower):
    model, samples = host.build(), host.samples()
    watcher = watch(host, model, samples)
    view, ahead = watcher.views[6], watcher.ahead[6]
    texts = ["a cat\nabcdefghijklmnop", "b", "c d e", "ffff"]
    pruner = RCom(12 if not adaptive else 35, condition=condition, adaptive=adaptive)
    with attach(model, pruner) as handle, asked(handle, texts, tower):
        outputs = host.outputs(model, samples, handle)
    merging = 0
    for row in range(4):
        query = ahead.q[row, :, 0] if host.prefix else ahead.q[row].mean(dim=1)
        logits = [float((ahead.k[row, :, token] * query).sum()) / 32**0.5 for token in range(ahead.k.shape[2])]
        visual = torch.tensor(logits).softmax(dim=0)[host.prefix :]
        keys = ahead.k[row].transpose(0, 1).flatten(1)[host.prefix :]
        states = view.visual(view.hidden)[row]
        text = torch.zeros(36)
        if condition:
            words = tower.embed(texts[row].split("\n")[0])[0]
            text = cosine_similarity(tower.patches(states, layer_norm=False), words[None], dim=-1) / 4
        kept, expected = by_loop(visual, text, keys, states, condition, adaptive, 12)
        assert handle.trace.final[row].tolist() == kept
        assert torch.allclose(outputs[row][: len(kept)], expected, atol=1e-4)
        merging += -1 in kept
    assert merging  # the cases do have clusters
    if not adaptive:
        assert all(len(final) == 12 for final in handle.trace.final)


def test_adaptive_never_exceeds_the_budget(tower):
    host = HFLlava()
    model = host.build()
    with attach(model, RCom(35, adaptive=True)) as handle, asked(handle, "a", tower):
        host.outputs(model, host.samples(), handle)
        free = [len(tokens) for tokens in handle.trace.remaining]
        assert len(set(free)) > 1
        handle.budget = 3
        host.outputs(model, host.samples(), handle)
        assert [len(tokens) for tokens in handle.trace.remaining] == [min(count, 3) for count in free]


def test_parts():
    assert Parts(3, 2, 0).tokens == 5
    assert Parts(3, 2, 1).tokens == 7
    pruner = RCom(10)
    even = torch.full((36,), 1 / 36)
    assert pruner.split(even, even, 10) == (10, 0, 0)  # nothing stands out
    assert RCom(10, adaptive=True).split(even, even, 10) == (1, 0, 0)
    for target in range(1, 36):
        generator = torch.Generator().manual_seed(target)
        visual, text = torch.rand(2, 36, generator=generator) ** 8
        assert pruner.split(visual, text, target).tokens == target


def test_without_clusters_nothing_is_merged():
    tokens = Tokens(torch.arange(5.0), torch.zeros(5), torch.eye(5), torch.arange(10.0).view(5, 2))
    keep, hidden = compress(tokens, *choose(tokens.visual, tokens.text, Parts(2, 1, 0)))
    assert keep.tolist() == [0, 3, 4]
    assert torch.equal(hidden, tokens.states[keep])


def test_clusters_by_hand():
    visual = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04])
    tokens = Tokens(visual, torch.zeros(5), torch.eye(5), torch.eye(5))
    keep, hidden = compress(tokens, *choose(visual, tokens.text, Parts(1, 0, 1)))
    assert keep.tolist() == [0, 1, -1]
    assert torch.allclose(hidden[1], torch.tensor([0, 1, 0.1, 0.06, 0.04]))  # the centre, and what little there is
    assert torch.allclose(hidden[2], torch.tensor([0, 0, 0.1, 0.06, 0.04]))


def test_tiles(tower):
    host = HFLlavaNext()
    model = host.build()
    with attach(model, RCom(40)) as handle, asked(handle, "what", tower):
        host.outputs(model, host.samples(), handle)
    assert all(len(tokens) <= 40 for tokens in handle.trace.tokens)
    assert [len(final) for final in handle.trace.final[:5]] == [8] * 5


def test_mistakes():
    host = Clip()
    with pytest.raises(ValueError, match=r"RCom cannot merge patches in a model that joins several"):
        attach(HFQwen2VL().build(), RCom(10))
    model = host.build()
    with attach(model, RCom(10)), pytest.raises(ValueError, match="RCom needs the question: wrap"):
        host.outputs(model, host.samples())
