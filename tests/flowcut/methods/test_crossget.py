"""CrossGET against an encoder written as a loop, its laws of merging, and cross tokens that learn."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity

from flowcut import CrossGET, ToMe, attach, parse_pruner
from flowcut.hooks.learned import LEARNED, learned_on
from flowcut.methods.crossget import match
from tests.flowcut.hosts import DEPTH, Clip, HFLlava, HFVideoLlava, Siglip, pixels
from tests.flowcut.merging_encoder import embedded, merging_encoder
from tests.flowcut.recorded_clip import near

NUMBERS = [4, 4, 4, 4, 4, 3, 3]  # 26 merges in seven blocks leave ten of 36 patches
WIDTH = 8


def naive_match(keys, number, protected, importance):
    """The paper's matching in words, for one image: -> {goes: into}."""
    free = range(protected, len(keys))
    alike = {(a, b): float(cosine_similarity(keys[a], keys[b], dim=0)) for a in free for b in free if a != b}
    order = sorted(free, key=lambda a: -max(alike[a, b] for b in free if b != a))
    cost = {}
    for rank, one in enumerate(order[:-1]):
        cost[one] = importance[one] - max(alike[one, other] for other in order[rank + 1 :])
    goes = sorted(cost, key=cost.get)[:number]
    stays = [one for one in free if one not in goes]
    return {one: max(stays, key=lambda other: alike[one, other]) for one in goes}


def deciding(prefix, offsets=None):
    """What a `merging_encoder` merges, block by block."""

    def decide(block, q, k, v, sizes):
        keys, importance = k.mean(dim=0), torch.zeros(k.shape[1])
        if offsets is not None:
            query = (q[:, 0] if prefix else q.mean(dim=1)).mean(dim=0) + offsets[block]
            importance = cosine_similarity(keys, query[None], dim=1)
        goes = naive_match(keys, NUMBERS[block], prefix, importance.tolist())
        stays = [place for place in range(k.shape[1]) if place not in goes]
        groups = [[place, *(one for one, other in goes.items() if other == place)] for place in stays]
        return groups if offsets is None else (groups, list(importance.exp()))

    return decide


def drawn(file):
    """A file of cross tokens that are not zero."""
    offsets = torch.randn(DEPTH - 1, WIDTH, generator=torch.Generator().manual_seed(0)) * 3
    save_file({"offsets": offsets}, file)
    return offsets


@pytest.mark.parametrize("host", [Clip(), Siglip()], ids=lambda host: host.name)
@pytest.mark.parametrize("crossed", [False, True])
def test_whole_encoder(host, crossed, tmp_path):
    """Features, what each is made of, and gradients, of two images at once."""
    model = host.build()
    offsets = drawn(tmp_path / "tokens").requires_grad_() if crossed else None
    pruner = CrossGET(10, cross_tokens=str(tmp_path / "tokens") if crossed else None)
    with attach(model, pruner) as handle:
        mine = host.outputs(model, host.samples()[:2], handle)
        trace, total = handle.trace, torch.stack(mine).square().sum()
        learned = learned_on(handle.anatomy.encoders[0].model)
        total.backward()
    assert trace.path() == [36, *(36 - sum(NUMBERS[: block + 1]) for block in range(7))]
    expected = 0
    for image in range(2):
        start = embedded(model, pixels([image])[0])
        theirs, members = merging_encoder(model.encoder.layers[:7], start, host.prefix, deciding(host.prefix, offsets))
        near(mine[image], theirs[host.prefix :], 1e-4)
        assert [sorted(part.tolist()) for part in trace.members(image)] == members
        expected = expected + theirs[host.prefix :].square().sum()
    if crossed:
        expected.backward()
        assert bool((offsets.grad.abs().amax(dim=1) > 0).all())
        near(learned.offsets.grad, offsets.grad, 1e-4 * float(offsets.grad.abs().max()))


@torch.no_grad()
def test_every_patch_is_in_one_token_and_order_is_kept():
    host = Clip()
    model = host.build()
    for budget in (1, 9, 35):
        with attach(model, CrossGET(budget)) as handle:
            host.outputs(model, host.samples(), handle)
        for row, kept in enumerate(handle.trace.final):
            members = handle.trace.members(row)
            assert sorted(torch.cat(members).tolist()) == list(range(36))
            assert torch.equal(kept, kept.unique())
            assert len(members) == len(kept) == budget


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_matching(prefix):
    """Against the plain loop, with importance and without, for every number up to half."""
    keys = torch.randn(2, 13, 5, generator=torch.Generator().manual_seed(prefix))
    importance = torch.rand(2, 13, generator=torch.Generator().manual_seed(9)) - 0.5
    for given in (None, importance):
        for number in range((13 - prefix) // 2 + 1):
            keep, into = match(keys, number, prefix, given)
            for row in range(2):
                costs = torch.zeros(13) if given is None else given[row]
                goes = naive_match(keys[row], number, prefix, costs.tolist())
                stays = [place for place in range(prefix, 13) if place not in goes]
                assert keep[row].tolist() == [place - prefix for place in stays]
                found = {place: stays[into[row, place - prefix]] for place in range(prefix, 13)}
                assert found == {place: goes.get(place, place) for place in range(prefix, 13)}


@torch.no_grad()
def test_any_pair_may_be_merged():
    """Two patches alike at even places: the complete graph merges them, ToMe's two sets cannot."""
    host = Clip()
    model = host.build()
    seen = []
    for pruner in (CrossGET(35), ToMe(35)):
        with attach(model, pruner) as handle:
            host.outputs(model, host.samples()[:3], handle)
        seen += [[part.tolist() for part in handle.trace.members(row) if len(part) > 1] for row in range(3)]
    pairs = [pair for [pair] in seen[:3]]
    assert any((one - other) % 2 == 0 for one, other in pairs)
    assert all((one - other) % 2 for [[one, other]] in seen[3:])


def test_cross_tokens_learn_and_change_what_is_merged(tmp_path):
    """Twenty steps on one batch: loss falls, matching changes, and the file brings back the same features."""
    host = Clip()
    model = host.build().requires_grad_(False)
    plain = host.outputs(model, host.samples()[:2])
    target = torch.stack([one.mean(dim=0) for one in plain])
    with attach(model, CrossGET(6, cross_tokens="new")) as handle:
        learned = learned_on(model)
        assert [name for name, value in model.named_parameters() if value.requires_grad] == [f"{LEARNED}.offsets"]
        before, losses = None, []
        optimizer = torch.optim.Adam(learned.parameters(), lr=0.02)
        for _ in range(20):
            states = torch.stack(host.outputs(model, host.samples()[:2], handle))
            before = before or [part.tolist() for part in handle.trace.members(0)]
            loss = (states.mean(dim=1) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert min(losses[1:]) < losses[0]
        after = host.outputs(model, host.samples()[:2], handle)
        assert [part.tolist() for part in handle.trace.members(0)] != before
        kept = handle.pruner.keep_learned(learned, tmp_path)
    assert learned_on(model) is None
    assert kept == CrossGET(6, cross_tokens="crossget/cross_tokens.safetensors")
    assert parse_pruner("crossget:budget=6,cross_tokens=new") == CrossGET(6, cross_tokens="new")
    found = kept.beside(tmp_path)
    assert found.cross_tokens == str(tmp_path / "crossget/cross_tokens.safetensors")
    with attach(model, found) as handle, torch.inference_mode():
        assert all(map(torch.equal, after, host.outputs(model, host.samples()[:2], handle)))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_learn_the_same(reentrant, tmp_path):
    drawn(tmp_path / "tokens")
    gradients = []
    for checkpointing in (False, True):
        host = HFLlava()
        model = host.build().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        with attach(model, CrossGET(10, cross_tokens=str(tmp_path / "tokens"))) as handle:
            host.loss(model, host.samples()).backward()
            gradients.append(learned_on(handle.anatomy.encoders[0].model).offsets.grad)
    assert float(gradients[0].abs().max()) > 0
    near(gradients[1], gradients[0], 1e-5 * float(gradients[0].abs().max()))


def test_a_copy_of_the_model_has_cross_tokens_of_its_own(tmp_path):
    drawn(tmp_path / "tokens")
    model = Clip().build()
    with attach(model, CrossGET(10, cross_tokens=str(tmp_path / "tokens"))):
        other = copy.deepcopy(model)
        with torch.no_grad():
            learned_on(model).offsets.zero_()
        assert float(learned_on(other).offsets.detach().abs().max()) > 0


def test_misfits(tmp_path):
    file = tmp_path / "tokens"
    with pytest.raises(ValueError, match=r"cross_tokens=.*tokens cannot be read \(FileNotFoundError"):
        attach(Clip().build(), CrossGET(10, cross_tokens=str(file)))
    file.write_text("none")
    with pytest.raises(ValueError, match=r"cross_tokens=.*tokens cannot be read \(SafetensorError"):
        attach(Clip().build(), CrossGET(10, cross_tokens=str(file)))
    save_file({"offsets": torch.zeros(3, 5)}, file)
    with pytest.raises(ValueError, match=r"are of an encoder with 4 layers and heads of width 5, this one has 8 and 8"):
        attach(Clip().build(), CrossGET(10, cross_tokens=str(file)))
    assert load_file(file)["offsets"].shape == (3, 5)
    with pytest.raises(ValueError, match="CrossGET has cross tokens for a model with one vision encoder"):
        attach(HFVideoLlava().build(), CrossGET(10, cross_tokens="new"))
    with pytest.raises(ValueError, match="36 patches cannot be merged into 1 by halving"):
        CrossGET(1).number(36, 1, 4, 6)
