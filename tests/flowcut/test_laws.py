"""The laws every pruner keeps on every model: identity, restoration, isolation, budget, order, batch, implementation,
cache, recomputation, host.
"""

import pytest
import torch
from hosts import DEPTH, PATCHES, SAMPLES, Clip, HFLlava, OurLlava

from flowcut import FasterVLM, FlowCut, Random, attach, detach

BUDGET = 10
PRUNERS = {
    "flowcut": FlowCut(BUDGET),
    "paper": FlowCut.paper(BUDGET),
    "random": Random(BUDGET),
    "fastervlm": FasterVLM(BUDGET),
}
every_implementation = pytest.mark.parametrize("implementation", ["sdpa", "eager"])


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tower")
    clip = Clip()
    clip.build().save_pretrained(folder)
    return {host.name: host for host in (clip, HFLlava(), OurLlava(folder))}


@pytest.fixture(params=["clip", "llava_hf", "llava"])
def host(request, hosts):
    return hosts[request.param]


@pytest.fixture(params=["llava_hf", "llava"])
def speaker(request, hosts):
    return hosts[request.param]


@pytest.fixture(params=list(PRUNERS))
def pruner(request):
    return PRUNERS[request.param]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def hooks(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def close(one, other, tolerance=1e-4):
    return all(torch.allclose(a, b, atol=tolerance, rtol=1e-4) for a, b in zip(one, other, strict=True))


@every_implementation
def test_identity(host, pruner, implementation):
    model = host.build(implementation=implementation)
    vanilla = host.outputs(model, host.samples(), PATCHES)
    for budget in (PATCHES, PATCHES + 1, 10 * PATCHES):
        with attach(model, pruner) as handle:
            handle.budget = budget
            assert same(vanilla, host.outputs(model, host.samples(), PATCHES))
            assert handle.trace.kept == {}


def test_pruning_changes_something(host, pruner):
    model = host.build()
    vanilla = host.outputs(model, host.samples(), PATCHES)
    with attach(model, pruner):
        pruned = host.outputs(model, host.samples(), BUDGET)
    assert pruned[0].shape[0] == vanilla[0].shape[0] - PATCHES + BUDGET


def test_restore(host, pruner):
    model = host.build()
    vanilla = host.outputs(model, host.samples(), PATCHES)
    assert host.tower(model).config._attn_implementation == "sdpa"
    before = hooks(model), [module.__dict__.get("config") for module in model.modules()], set(model.__dict__)
    attach(model, pruner)
    host.outputs(model, host.samples(), BUDGET)
    detach(model)
    assert hooks(model) == before[0]
    assert all(module.__dict__.get("config") is c for module, c in zip(model.modules(), before[1], strict=True))
    assert set(model.__dict__) == before[2]
    assert host.tower(model).config._attn_implementation == "sdpa"
    assert same(vanilla, host.outputs(model, host.samples(), PATCHES))


def test_restore_after_an_error(host, pruner):
    model = host.build()
    vanilla = host.outputs(model, host.samples(), PATCHES)
    broken = host.tower(model).encoder.layers[4].register_forward_pre_hook(_boom)
    with pytest.raises(RuntimeError, match="boom"), attach(model, pruner):
        host.outputs(model, host.samples(), BUDGET)
    broken.remove()
    assert same(vanilla, host.outputs(model, host.samples(), PATCHES))


def _boom(*_):
    raise RuntimeError("boom")


def test_isolation(host, pruner):
    """Two models built from one config object, each its own way at the same time."""
    config = host.config()
    pruned, plain = host.build(config), host.build(config)
    vanilla = host.outputs(plain, host.samples(), PATCHES)
    with attach(pruned, pruner):
        ten = host.outputs(pruned, host.samples(), BUDGET)
        assert host.tower(plain).encoder.layers[0].self_attn.config._attn_implementation == "sdpa"
        assert same(vanilla, host.outputs(plain, host.samples(), PATCHES))
        with attach(plain, pruner) as other:
            other.budget = 20
            assert host.outputs(plain, host.samples(), 20)[0].shape[0] == ten[0].shape[0] + 10
            assert same(ten, host.outputs(pruned, host.samples(), BUDGET))


@every_implementation
def test_budget(host, pruner, implementation):
    """Counted where they arrive: by the language model's own input, or in the features of a bare encoder."""
    model = host.build(implementation=implementation)
    arrived = []
    if host.speaks:
        language = model.model if host.name == "llava" else model.model.language_model
        language.register_forward_pre_hook(_count_real(arrived), with_kwargs=True)
    with attach(model, pruner) as handle:
        for budget in (1, BUDGET, PATCHES - 1):
            handle.budget = budget
            for sample in host.samples():
                features = host.outputs(model, [sample], budget)[0]
                text = len(sample.prompt) - len(sample.images)
                got = arrived.pop() - text if host.speaks else len(features)
                assert got == budget * len(sample.images)
                if sample.images:
                    assert [len(final) for final in handle.trace.final] == [budget] * len(sample.images)


def _count_real(arrived):
    def hook(module, args, kwargs):
        mask = kwargs.get("attention_mask")
        arrived.append(kwargs["inputs_embeds"].shape[1] if mask is None else int(mask.sum()))

    return hook


def test_order(host, pruner):
    """Kept positions ascend, each selection chooses among the last one's, and the books agree."""
    model = host.build()
    with attach(model, pruner) as handle:
        host.outputs(model, host.samples(), BUDGET)
    trace = handle.trace
    assert trace.kept
    assert len(trace.entering) == len(trace.leaving) == (DEPTH - 1 if host.name == "llava" else DEPTH)
    before = [set(range(PATCHES))] * len(trace.final)
    for layer, kept in sorted(trace.kept.items()):
        assert trace.leaving[layer] == tuple(len(positions) for positions in kept)
        for sample, positions in enumerate(kept):
            assert torch.equal(positions, positions.unique())
            assert set(positions.tolist()) <= before[sample]
        before = [set(positions.tolist()) for positions in kept]
    assert list(trace.entering[1:]) == list(trace.leaving[:-1])


@every_implementation
@pytest.mark.parametrize("side", ["left", "right"])
def test_batch(host, pruner, implementation, side):
    """Rows with no, one and two images in one batch: each as if alone."""
    model = host.build(implementation=implementation)
    with attach(model, pruner) as handle:
        together = host.outputs(model, host.samples(), BUDGET, side)
        kept = handle.trace.final
        alone, found = [], []
        for sample in host.samples():
            alone += host.outputs(model, [sample], BUDGET, side)
            found += handle.trace.final if sample.images else []
    assert same(kept, found)
    assert close(together, alone)


def test_batch_of_different_numbers(hosts):
    """The images differ in sharpness, so the batch test really has rows of different length inside the encoder."""
    model = hosts["clip"].build()
    with attach(model, FlowCut(BUDGET)) as handle:
        hosts["clip"].outputs(model, hosts["clip"].samples(), BUDGET)
    assert any(len(set(counts)) > 1 for counts in handle.trace.leaving)


def test_implementation(host, pruner):
    results = []
    for implementation in ("sdpa", "eager"):
        model = host.build(implementation=implementation)
        with attach(model, pruner) as handle:
            results.append((host.outputs(model, host.samples(), BUDGET), handle.trace.final))
    assert same(results[0][1], results[1][1])
    assert close(results[0][0], results[1][0])


@every_implementation
def test_cache(speaker, pruner, implementation):
    model = speaker.build(implementation=implementation)
    with attach(model, pruner):
        cached = speaker.generate(model, SAMPLES)
        if speaker.name == "llava_hf":
            assert torch.equal(cached, speaker.generate(model, SAMPLES, use_cache=False))
        alone = torch.cat([speaker.generate(model, [sample]) for sample in SAMPLES])
        assert torch.equal(cached, alone)
        # A decoding step's logits are those of a forward over the whole text so far.
        follow = [type(s)([*s.prompt, *row[:-1].tolist()], s.images) for s, row in zip(SAMPLES, cached, strict=True)]
        logits = speaker.outputs(model, follow, BUDGET)
        assert [int(row[-1].argmax()) for row in logits] == cached[:, -1].tolist()


def test_beams(speaker, pruner):
    model = speaker.build()
    settings = {"num_beams": 3, "num_return_sequences": 2}
    with attach(model, pruner):
        together = speaker.generate(model, SAMPLES, **settings)
        alone = torch.cat([speaker.generate(model, [sample], **settings) for sample in SAMPLES])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recompute(speaker, pruner, reentrant):
    """Gradient checkpointing runs layers twice; loss and gradients must not notice."""
    losses, gradients = [], []
    for checkpointing in (False, True):
        model = speaker.build().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            speaker.tower(model).gradient_checkpointing_enable({"use_reentrant": reentrant})
        with torch.enable_grad(), attach(model, pruner):
            loss = speaker.loss(model, SAMPLES)
            loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert close(losses[:1], losses[1:], 1e-6)
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert close(gradients[0], gradients[1])


def test_host(hosts, pruner):
    """The same weights in both LLaVA classes keep the same tokens and give the same logits."""
    theirs, ours = hosts["llava_hf"].build(), hosts["llava"].build()
    renamed = {
        "model.vision_tower.": "model.vision_tower.vision_tower.",
        "model.multi_modal_projector.linear_1": "model.mm_projector.0",
        "model.multi_modal_projector.linear_2": "model.mm_projector.2",
        "model.language_model.": "model.",
    }
    state = {}
    for name, tensor in theirs.state_dict().items():
        for old, new in renamed.items():
            if name.startswith(old):
                name = new + name[len(old) :]
                break
        state[name] = tensor
    ours.load_state_dict(state)
    results = []
    for host, model in ((hosts["llava_hf"], theirs), (hosts["llava"], ours)):
        with attach(model, pruner) as handle:
            results.append((host.outputs(model, SAMPLES, BUDGET), handle.trace.final))
    assert same(results[0][1], results[1][1])
    assert close(results[0][0], results[1][0])
