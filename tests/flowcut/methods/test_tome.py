"""ToMe against its released code's matching, against an encoder written as a loop, and its laws of merging."""

import itertools

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from flowcut import Cut, ToMe, Trace, attach
from flowcut.hooks.call_context import rows
from flowcut.hooks.merge_before_mlp import TokenSizes, merge_of
from flowcut.methods.block_merging import most
from flowcut.methods.tome import left_behind, match
from tests.flowcut.hosts import VISION, Clip, Dinov2, HFQwen2VL, Siglip, pixels, sharpen
from tests.flowcut.merging_encoder import embedded, merging_encoder
from tests.flowcut.recorded_clip import names, near, recorded


@pytest.mark.parametrize("name", names("tome"))
def test_recorded(name):
    """Matching, weighted means, sizes and their order, on recorded keys and on drawn ones with sizes."""
    case, gold = recorded(name)
    prefix, (batch, tokens, _) = int(case["class_token"]), gold["x"].shape
    number = min(case["r"], most(tokens - prefix))
    assert number == case["r_effective"]
    matching = match(gold["metric"].float(), number, prefix)
    ascending = matching.goes.argsort(dim=1)
    assert torch.equal(matching.goes.gather(1, ascending), gold["merged_from"].long())
    assert torch.equal(matching.into.gather(1, ascending), gold["merged_into"].long())
    assert torch.equal(matching.stays, gold["unmerged"].long())

    keep, into = left_behind(matching, tokens, prefix)
    sizes = gold["size"][:, prefix:, 0]
    before, after = (tokens - prefix,) * batch, (keep.shape[1],) * batch
    merged = merge_of(Cut(keep, into=into), sizes, prefix, before, after, packed=False)(gold["x"].float().flatten(0, 1))
    near(merged.view(batch, -1, gold["x"].shape[2]), gold["merged_x"], 1e-5)
    ledger = TokenSizes(sizes, torch.arange(tokens - prefix).expand(batch, -1))
    ledger.update(Cut(keep, into=into), before, after)
    near(ledger.sizes, gold["merged_size"][:, prefix:, 0], 1e-6)


def naive_match(metric, number, protected):
    """Section 3 in words, for one image: -> {goes: into}, and what stays of set A."""
    unit = [vector / vector.norm() for vector in metric]
    evens, odds = range(0, len(metric), 2), range(1, len(metric), 2)
    edges = []
    for one in evens:
        if one >= protected:
            likeness, other = max((float(unit[one] @ unit[other]), -other) for other in odds if other >= protected)
            edges.append((likeness, one, -other))
    edges.sort(reverse=True)
    goes = {one: other for _, one, other in edges[:number]}
    stays = [one for _, one, _ in edges[number:]]
    stays = sorted([*range(0, protected, 2), *stays]) if protected else stays
    return goes, stays


def deciding(numbers, prefix):
    """What a `merging_encoder` merges, block by block."""

    def decide(block, q, k, v, sizes):
        if block >= len(numbers) or not numbers[block]:
            return None
        goes, stays = naive_match(k.mean(dim=0), numbers[block], prefix)
        order = [*stays, *range(1, k.shape[1], 2)]
        return [[place, *(one for one, other in goes.items() if other == place)] for place in order]

    return decide


@pytest.mark.parametrize("host", [Clip(), Siglip()], ids=lambda host: host.name)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("proportional", [True, False])
def test_whole_encoder(host, implementation, proportional):
    """Features, what each is made of, and gradients, of two images at once."""
    model = host.build(implementation=implementation)
    samples = host.samples()[:2]
    numbers = [4, 4, 4, 4, 4, 3, 3]  # 26 merges in seven blocks
    with attach(model, ToMe(10, proportional=proportional)) as handle:
        mine = host.outputs(model, samples, handle)
        trace = handle.trace
        torch.stack(mine).square().sum().backward()
    assert trace.path() == [36, *(36 - sum(numbers[: block + 1]) for block in range(7))]
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if "layers.0" in name}
    model.zero_grad()
    total = 0
    for image in range(2):
        start, decide = embedded(model, pixels([image])[0]), deciding(numbers, host.prefix)
        theirs, members = merging_encoder(model.encoder.layers[:7], start, host.prefix, decide, proportional)
        near(mine[image], theirs[host.prefix :], 1e-4)
        assert [sorted(part.tolist()) for part in trace.members(image)] == members
        total = total + theirs[host.prefix :].square().sum()
    total.backward()
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        if name in gradients:
            near(gradients[name], parameter.grad, 1e-4 * float(largest))


@pytest.mark.parametrize("site", ["vit", "output"])
@pytest.mark.parametrize("host", [Clip(), Siglip(), Dinov2()], ids=lambda host: host.name)
@torch.no_grad()
def test_every_patch_is_in_one_token(host, site):
    model = host.build()
    for budget in (1, 2, 9, 17, 35):
        with attach(model, ToMe(budget, merge_site=site)) as handle:
            host.outputs(model, host.samples(), handle)
        for row, kept in enumerate(handle.trace.final):
            members = handle.trace.members(row)
            assert sorted(torch.cat(members).tolist()) == list(range(36))
            assert len(members) == len(kept) == budget
            assert all(place in part for place, part in zip(kept.tolist(), members, strict=True))


@torch.no_grad()
def test_merging_behind_the_encoder():
    """Rounds of halving over the last but one layer's output, whose keys are averaged as its tokens are."""
    host = Clip()
    model, samples = host.build(), host.samples()[:1]
    with attach(model, ToMe(7, merge_site="output")) as handle:
        [mine] = host.outputs(model, samples, handle)
    assert handle.trace.path() == [36] * 7 + [7]
    inner = model.encoder.layers[6]
    plain = host.build()(pixels([0]), output_hidden_states=True)
    keys = inner.self_attn.k_proj(inner.layer_norm1(plain.hidden_states[6]))[0].view(37, 4, -1).mean(dim=1)
    hidden = plain.hidden_states[7][0]
    sizes = torch.ones(37)
    for number in (18, 9, 2):  # 36, 18, 9, 7
        goes, stays = naive_match(keys, number, 1)
        order = [*stays, *range(1, len(keys), 2)]
        groups = [[place, *(one for one, other in goes.items() if other == place)] for place in order]
        weights = [sizes[group][:, None] for group in groups]
        means = [
            [(w * part[g]).sum(dim=0) / w.sum() for g, w in zip(groups, weights, strict=True)]
            for part in (keys, hidden)
        ]
        keys, hidden = (torch.stack(part) for part in means)
        sizes = torch.stack([w.sum() for w in weights])
    near(mine, hidden[1:], 1e-4)


@pytest.mark.parametrize("tokens", [2, 3, 8, 9, 37])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_weighted_sums_survive_and_nothing_special_moves(tokens, prefix):
    """The sum of size times token is the same after any matching; special tokens neither go nor take others in."""
    torch.manual_seed(tokens)
    patches = tokens - prefix
    for number in range(most(patches) + 1 if patches > 0 else 0):
        matching = match(torch.randn(2, tokens, 4), number, prefix)
        assert bool((matching.goes >= prefix).all())
        assert bool((matching.into >= prefix).all())
        keep, into = left_behind(matching, tokens, prefix)
        assert keep.shape == (2, patches - number)
        sizes, states = torch.randint(1, 9, (2, patches)).float(), torch.randn(2, tokens, 3)
        before, after = (patches,) * 2, (patches - number,) * 2
        cut = Cut(keep, into=into)
        merged = merge_of(cut, sizes, prefix, before, after, False)(states.flatten(0, 1)).view(2, -1, 3)
        assert torch.equal(merged[:, :prefix], states[:, :prefix])
        ledger = TokenSizes(sizes, torch.arange(patches).expand(2, -1))
        ledger.update(cut, before, after)
        assert torch.allclose(
            (ledger.sizes[:, :, None] * merged[:, prefix:]).sum(dim=1),
            (sizes[:, :, None] * states[:, prefix:]).sum(dim=1),
            atol=1e-4,
        )
        if not number:
            assert torch.equal(merged[:, prefix:].sort(dim=1).values, states[:, prefix:].sort(dim=1).values)


@torch.no_grad()
def test_tiles_with_shares_that_differ():
    """Ten tokens over three tiles: 4, 3 and 3, so rows of different length between the blocks; each as if alone."""
    for host in (Clip(), Siglip()):
        model, samples = host.build(), host.samples()[:3]
        with attach(model, ToMe(10)) as handle:
            with rows([0, 0, 0], spread=True):
                together = host.outputs(model, samples, handle)
            finals, members = handle.trace.final, [handle.trace.members(row) for row in range(3)]
            assert [len(final) for final in finals] == [4, 3, 3]
            for image, count in enumerate((4, 3, 3)):
                handle.budget = count
                [alone] = host.outputs(model, samples[image : image + 1], handle)
                assert torch.equal(handle.trace.final[0], finals[image])
                assert all(torch.equal(*pair) for pair in zip(handle.trace.members(0), members[image], strict=True))
                near(together[image][:count], alone, 1e-4)


@torch.no_grad()
def test_registers_are_special_too():
    config = Dinov2WithRegistersConfig(
        **{name: value for name, value in VISION.items() if name != "intermediate_size"},
        mlp_ratio=2,
        num_register_tokens=4,
    )
    torch.manual_seed(0)
    model = Dinov2WithRegistersModel(config).eval()
    sharpen(model)
    with attach(model, ToMe(6)) as handle:
        states = model(torch.randn(2, 3, 24, 24), output_hidden_states=True).hidden_states[-2]
    assert states.shape[1] == 5 + 6
    assert sorted(torch.cat(handle.trace.members(1)).tolist()) == list(range(36))


def path(pruner, patches, goal, blocks):
    counts = [patches]
    for block in range(blocks):
        counts.append(counts[-1] - pruner.number(counts[-1], goal, block, blocks - 1))
    return counts


@pytest.mark.parametrize(("budget", "more", "base"), [(192, 16, 16), (128, 11, 19), (64, 6, 22)])
def test_published_schedules(budget, more, base):
    """16.7, 19.5 and 22.3 merges a block over CLIP-L's 23, the first ones one more."""
    counts = path(ToMe(budget), 576, budget, 23)
    merges = [a - b for a, b in itertools.pairwise(counts)]
    assert merges == [base + 1] * more + [base] * (23 - more)


@pytest.mark.parametrize("goal", [1, 2, 5, 20, 36])
@pytest.mark.parametrize("inflect", [-1.0, -0.3, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("blocks", [6, 7, 23])
def test_every_budget_in_reach_is_met(goal, inflect, blocks):
    counts = path(ToMe(goal, inflect=inflect), 36, goal, blocks)
    assert counts[-1] == goal
    assert all(a - b <= a // 2 for a, b in itertools.pairwise(counts))


def test_inflection():
    """Weights 0, .4, .8, 1.2, 1.6, 2 for thirty merges in six blocks, and the same the other way round."""
    for inflect, expected in ((1.0, [0, 2, 4, 6, 8, 10]), (-1.0, [10, 8, 6, 4, 2, 0])):
        counts = path(ToMe(42, inflect=inflect), 72, 42, 6)
        assert [a - b for a, b in itertools.pairwise(counts)] == expected


def test_a_budget_out_of_reach():
    with pytest.raises(ValueError, match="36 patches cannot be merged into 2 by halving them in each of the 3 blocks"):
        ToMe(2).number(36, 2, 0, 2)


def test_traces_join():
    """Images that were merged, and frames that were not."""
    merged = Trace(kept={0: [torch.tensor([1])]}, entering=[(2,)], leaving=[(1,)], sources=[torch.tensor([0, 0])])
    plain = Trace(kept={0: [torch.tensor([2, 0])]}, entering=[(3,)], leaving=[(2,)])
    merged.join(plain)
    assert [part.tolist() for part in merged.members(0)] == [[0, 1]]
    assert [part.tolist() for part in merged.members(1)] == [[2], [0]]
    assert [part.tolist() for part in plain.members(0)] == [[2], [0]]


def test_bad_fields():
    with pytest.raises(ValueError, match="merge_site='llm' is not allowed; choose vit or output"):
        ToMe(8, merge_site="llm")
    with pytest.raises(ValueError, match=r"inflect=2 is not in -1 \.\.\. 1"):
        ToMe(8, inflect=2)


def test_stochastic_depth_is_refused():
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=24, patch_size=4)
    config.drop_path_rate = 0.1
    with pytest.raises(ValueError, match="ToMe cannot merge inside the layers of this Dinov2Model"):
        attach(Dinov2Model(config), ToMe(8))


def test_models_that_merge_patches_themselves_are_refused():
    with pytest.raises(ValueError, match="ToMe cannot merge patches in a model that joins several"):
        attach(HFQwen2VL().build(), ToMe(8))
