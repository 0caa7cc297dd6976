"""SparseVLM and SparseVLM+ against their released code's numbers, against loops, and their published schedules."""

import math
from dataclasses import dataclass, field

import pytest
import torch

from flowcut import SparseVLM, attach, parse_pruner
from flowcut.methods.sparsevlm import density_peaks
from flowcut.methods.text_attention import text_columns
from tests.flowcut.hosts import Clip, HFLlava
from tests.flowcut.naive_llama import TEXT_IN_FRONT, batch, prompt, run, tiny_llava
from tests.flowcut.recorded_llama import names, near, replay

LAYERS = (2, 6, 15)


@dataclass(frozen=True)
class Injected(SparseVLM):
    """With the noise that a recorded run drew, and a note of the raters and of where the text begins."""

    drawn: dict = field(default_factory=dict)
    seen: dict = field(default_factory=dict)

    def noise(self, layer, number):
        return self.drawn[layer][:number]

    def language(self, view):
        cut = super().language(view)
        self.seen["raters"] = view.memory["raters"][0]
        self.seen["text"] = text_columns(view, 0)
        return cut


@pytest.mark.parametrize("name", names("sparsevlm_v1") + names("sparsevlm_v2"))
def test_recorded(name, tmp_path):
    run = replay(name, tmp_path)
    gold, image = run.gold, run.case["image_start"]
    version = "1.5" if run.case["family"] == "sparsevlm_v1" else "2"
    drawn = {layer: gold.get(f"stage{stage}.noise") for stage, layer in enumerate(LAYERS)}
    heads = run.case.get("n_heads_used")
    pruner = Injected(1, version=version, keep=tuple(run.case["keeps"]), heads=heads, drawn=drawn)
    run.run(pruner)
    assert (pruner.seen["raters"] - image).tolist() == gold["text_raters"].tolist()
    numbers = {token: token for token in range(run.case["n_visual"])}  # theirs to ours: a cluster's is its centre's
    for stage, layer in enumerate(LAYERS):
        near(run.language.signals[layer]["score"][0], gold[f"stage{stage}.score"], 1e-5)
        fresh = [token for token in gold[f"stage{stage}.ids_after"].tolist() if token not in numbers]
        if fresh:
            recycled, centres = gold[f"stage{stage}.recycled"], gold[f"stage{stage}.centres"]
            centres = centres if len(centres) > 1 else torch.tensor([0])  # the recorded one is noise
            numbers |= {new: numbers[token] for new, token in zip(fresh, recycled[centres].tolist(), strict=True)}
            kept = len(gold[f"stage{stage}.keep"])
            there = run.entering[layer + 1][image + kept : image + kept + len(fresh)]
            near(there, gold[f"stage{stage}.cluster_tokens"], 1e-4)
        expected = [numbers[token] for token in gold[f"stage{stage}.ids_after"].tolist()]
        assert run.language.kept[layer][0].tolist() == expected


def clusters_by_loop(points, number, noise):
    """Density peaks, one token after the other. -> centres, each token's cluster, means."""
    count, width = points.shape
    apart = [[math.dist(one.tolist(), other.tolist()) / math.sqrt(width) for other in points] for one in points]
    density = []
    for token in range(count):
        nearest = sorted(apart[token])[:number]  # oneself, at distance 0, is one of them
        density.append(math.exp(-sum(d * d for d in nearest) / len(nearest)) + float(noise[token]) * 1e-6)
    peak = []
    for token in range(count):
        denser = [apart[token][other] for other in range(count) if density[other] > density[token]]
        peak.append(density[token] * (min(denser) if denser else max(map(max, apart))))
    centres = sorted(range(count), key=lambda token: -peak[token])[:number] if number > 1 else [0]
    joined = [min(range(len(centres)), key=lambda c: apart[token][centres[c]]) for token in range(count)]
    for cluster, centre in enumerate(centres):
        joined[centre] = cluster
    means = []
    for cluster in range(len(centres)):
        members = [points[token] for token in range(count) if joined[token] == cluster]
        means.append(sum(members) / (len(members) + 1e-6))
    return centres, joined, torch.stack(means)


def loop(model, given, pruner):
    """Both releases for one sample, from the text of the methods."""
    visual = range(TEXT_IN_FRONT, TEXT_IN_FRONT + given.image)
    behind = list(range(TEXT_IN_FRONT + given.image, len(given.embeds)))
    shares = [torch.stack([given.embeds[v] @ given.embeds[t] for t in behind]).softmax(dim=0) for v in visual]
    relevance = (sum(shares) / len(shares)).tolist()
    mean = sum(relevance) / len(relevance)
    judges = [number for number, value in enumerate(relevance) if value > mean] or list(range(len(behind)))

    def after(number, sequence, weights):
        if number not in pruner.layers:
            return
        stage, columns = pruner.layers.index(number), sequence.visual
        first = len(sequence.tokens) - len(behind)
        rows = [first + judge for judge in judges]
        weights = weights[:, rows][:, :, columns]
        if pruner.version == "2":
            weights = by_loop_without_places(weights, sequence, rows, columns)
            heads = sorted(range(len(weights)), key=lambda head: -float(weights[head].sum()))
            weights = weights[heads[: pruner.heads]]
        score = weights.mean(dim=(0, 1)).tolist()
        order = sorted(range(len(columns)), key=lambda place: -score[place])
        count = min(pruner.keep[stage], len(columns) - 1)
        kept, dropped = sorted(order[:count]), order[count:]
        front = list(range(columns[0]))
        text = list(range(first, len(sequence.tokens)))
        chosen = [columns[place] for place in kept]
        if pruner.version == "2":
            sequence.keep(front + chosen + text, renumber=False)
            return
        members = [columns[place] for place in dropped[: int(0.3 * len(dropped)) + 1]]
        noise = pruner.noise(number, len(members))
        centres, _, means = clusters_by_loop(sequence.states[members], len(members) // 10 + 1, noise)
        places = [members[centre] for centre in centres]
        for place, merged in zip(places, means, strict=True):
            sequence.states[place] = merged
        sequence.keep(front + chosen + places + text, renumber=True)

    return run(model, given, after=after)


def by_loop_without_places(weights, sequence, rows, columns):
    """Attention over the product of all-ones queries and keys, which is a sum of cosines of how far apart they are."""
    width = 32 // 4
    divided = weights.clone()
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            away = float(sequence.places[row] - sequence.places[column])
            prior = sum(2 * math.cos(away / 10000.0 ** (2 * pair / width)) for pair in range(width // 2))
            divided[:, i, j] /= prior / math.sqrt(width)
    return divided


PROMPTS = [prompt(0, 30, 5), prompt(1, 22, 1), prompt(2, 34, 9)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "pruner",
    [
        SparseVLM(1, layers=(0, 1, 2), keep=(16, 10, 5)),
        SparseVLM(1, layers=(0, 2), keep=(8, 30)),
        SparseVLM.plus(1, layers=(0, 2), keep=(16, 7), heads=2),
    ],
    ids=["1.5", "1.5-cap", "2"],
)
def test_each_sample_of_a_padded_batch_equals_the_loop(pruner, side, tmp_path):
    model = tiny_llava(tmp_path)
    logits, handle = batch(model, pruner, PROMPTS, side)
    for row, given in enumerate(PROMPTS):
        expected, sequence = loop(model, given, pruner)
        assert handle.trace.language.final[row].tolist() == [token for token in sequence.tokens if token >= 0]
        near(logits[row], expected, 2e-4)


@pytest.mark.parametrize("number", [1, 2, 3, 6])
def test_clusters_equal_the_loop(number):
    generator = torch.Generator().manual_seed(number)
    points, noise = torch.randn(25, 7, generator=generator), torch.rand(25, generator=generator)
    found = density_peaks(points, number, noise)
    centres, joined, means = clusters_by_loop(points, number, noise)
    assert (found.centres.tolist(), found.assign.tolist()) == (centres, joined)
    near(found.means, means, 1e-5)


def test_clusters_by_hand():
    """Two pairs far apart: the noise makes the second of each pair the denser one, and so a centre."""
    points = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    found = density_peaks(points, 2, torch.tensor([0.0, 0.5, 0.1, 0.9]))
    assert found.centres.tolist() == [3, 1]
    assert found.assign.tolist() == [1, 1, 0, 0]
    near(found.means, torch.tensor([[10.5], [0.5]]), 1e-5)
    alone = density_peaks(points[:1], 1, torch.zeros(1))
    assert (alone.centres.tolist(), alone.assign.tolist()) == ([0], [0])


@pytest.mark.parametrize(
    ("version", "budget", "left", "outputs", "inputs"),
    [
        ("1.5", 192, (309, 204, 113), 192.03, 206.5),
        ("1.5", 128, (312, 117, 39), 128.63, 145.4),
        ("1.5", 96, (249, 55, 27), 96.9, 114.1),
        ("1.5", 64, (82, 32, 18), 64.8, 82.3),
        ("2", 192, (300, 200, 118), 192.4, 206.8),
        ("2", 128, (238, 108, 60), 128.0, 144.1),
        ("2", 96, (246, 54, 28), 96.8, 113.9),
        ("2", 64, (66, 34, 20), 64.4, 81.8),
    ],
)
def test_published_schedules(version, budget, left, outputs, inputs):
    """Both means as the specification of the budgets gives them."""
    schedule = SparseVLM(budget, version=version).schedule(576, 32)
    assert schedule.left == left
    assert schedule.outputs == pytest.approx(outputs, abs=0.06)
    assert schedule.inputs == pytest.approx(inputs, abs=0.06)


@pytest.mark.parametrize("version", ["1.5", "2"])
def test_other_budgets_are_met(version):
    for tokens, layers, budget in [(576, 32, 100), (576, 40, 64), (2880, 32, 320), (144, 32, 30), (576, 32, 560)]:
        schedule = SparseVLM(budget, version=version).schedule(tokens, layers)
        assert abs(schedule.outputs - budget) < 1.2
        assert schedule.inputs >= schedule.outputs
    assert SparseVLM(576, version=version).schedule(576, 32).leaving == [576] * 32


def test_what_is_kept_passes_gradients_and_what_is_merged_does_not(tmp_path):
    model, given = tiny_llava(tmp_path), PROMPTS[0]
    embeds = given.embeds[None].clone().requires_grad_()
    pruner = SparseVLM(1, layers=(0,), keep=(10,))
    changed = []
    with attach(model, pruner) as handle:
        layer = model.model.layers[1]
        hook = layer.register_forward_pre_hook(lambda _, args: changed.append(args[0]))
        model(inputs_embeds=embeds, image_index=given.index[None])
        hook.remove()
    [gradient] = torch.autograd.grad(changed[0][0, TEXT_IN_FRONT + 9].sum(), embeds, retain_graph=True)
    last = handle.trace.language.kept[0][0][9]
    assert gradient[0, TEXT_IN_FRONT + last].abs().sum() > 0
    [gradient] = torch.autograd.grad(changed[0][0, TEXT_IN_FRONT + 10].sum(), embeds, allow_unused=True)
    assert not gradient.any()


def test_noise_is_the_same_for_every_image_and_another_for_another_seed():
    assert torch.equal(SparseVLM(9).noise(2, 5), SparseVLM(9).noise(2, 5))
    assert not torch.equal(SparseVLM(9).noise(2, 5), SparseVLM(9, seed=1).noise(2, 5))
    assert not torch.equal(SparseVLM(9).noise(2, 5), SparseVLM(9).noise(6, 5))


def test_text():
    assert parse_pruner("sparsevlm:budget=64") == SparseVLM(64)
    for text in ("sparsevlm:budget=64,version=2", "sparsevlm-plus:budget=64"):
        assert parse_pruner(text) == SparseVLM.plus(64)
    assert parse_pruner("sparsevlm:budget=9,layers=0/1,keep=4/3") == SparseVLM(9, layers=(0, 1), keep=(4, 3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": "1"}, r"version='1' is not allowed; choose 1\.5 or 2"),
        ({"layers": (2, 2)}, "layers=2/2 are not ascending layer numbers >= 0"),
        ({"keep": (3, 0, 1)}, "keep=3/0/1 is not one number of tokens >= 1 for each of the 3 cuts"),
        ({"heads": 0}, "heads=0 is not a number of heads >= 1"),
        ({"positions": "kept"}, "positions='kept' is not allowed"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        SparseVLM(64, **fields)


def test_misfits():
    with pytest.raises(ValueError, match="SparseVLM cuts inside a language model"):
        attach(Clip().build(), SparseVLM(64))
    with pytest.raises(ValueError, match="layers=3 is not in this decoder of only 4 layers; use at most 2"):
        attach(HFLlava().build(), SparseVLM(64, layers=(1, 3)))
    with pytest.raises(ValueError, match="budget=20 cannot be met on average over 32 layers with 576 tokens"):
        SparseVLM(20).schedule(576, 32)
