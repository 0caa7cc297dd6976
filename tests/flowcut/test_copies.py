"""A deep copy of an attached model, and one that was pickled and read back, is attached and its own."""

import copy
import io
import pickle
import sys
import threading
from functools import partial

import pytest
import torch
from hosts import WITH_PROMPT, Clip, all_hosts
from transformers import AttentionInterface

from flowcut import DivPrune, FlowCut, Random, ToMe, attach, detach, handle_of

NAMES = [
    *("clip", "siglip", "dinov2"),
    *WITH_PROMPT,
    *("llava_siglip", "qwen3_vl_moe", "qwen3_5", "glm4v", "glm46v"),
    *("llava", "llava_mistral", "llava_next"),
]
BUDGET = 10


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    found = all_hosts(tmp_path_factory.mktemp("tower"))
    assert sorted(found) == sorted(NAMES)
    return found


@pytest.fixture(params=NAMES)
def host(request, hosts):
    return hosts[request.param]


def answer(host, model):
    with torch.no_grad():
        return host.outputs(model, host.samples()[:1], handle_of(model))


def equal(one, other):
    return len(one) == len(other) and all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def attributes(model):
    """What stands on each module: names of attributes, how many hooks, and the attention its config names."""
    found = []
    for module in model.modules():
        hooks = [len(value) for name, value in vars(module).items() if name.endswith("hooks")]
        attention = getattr(getattr(module, "config", None), "_attn_implementation", None)
        found.append((type(module), sorted(vars(module)), hooks, attention))
    return found


def change(model):
    """Other weights, so that other patches are kept."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def test_a_deep_copy_is_attached_and_independent(host):
    """Of a method that cuts in both stages, where a family has them: answers, handles, detaching either first."""
    model = host.build()
    plain = answer(host, model)
    after_a_forward = attributes(model)  # transformers hooks some classes at their first forward
    handle = attach(model, FlowCut(BUDGET))
    pruned = answer(host, model)
    assert not equal(plain, pruned)

    twin = copy.deepcopy(model)
    other = handle_of(twin)
    assert other is not handle
    assert handle_of(model) is handle
    assert other.model is twin
    assert equal(answer(host, twin), pruned)
    other.budget = BUDGET + 2
    assert handle.budget == BUDGET

    detach(twin)
    assert handle_of(twin) is None
    assert not other.attached
    assert attributes(twin) == after_a_forward
    assert equal(answer(host, twin), plain)
    assert equal(answer(host, model), pruned)

    third = copy.deepcopy(model)
    handle.remove()
    assert attributes(model) == after_a_forward
    assert equal(answer(host, model), plain)
    assert equal(answer(host, third), pruned)
    detach(third)
    assert attributes(third) == after_a_forward


def test_a_copy_prunes_with_its_own_weights(host):
    """DivPrune compares projected tokens: the copy's projector has to be the copy's, and be no other model's."""
    model = host.build()
    attach(model, DivPrune(BUDGET))
    pruned = answer(host, model)
    twin = copy.deepcopy(model)
    change(twin)
    fresh = host.build()
    change(fresh)
    expected = attach(fresh, DivPrune(BUDGET))
    assert equal(answer(host, twin), answer(host, fresh))
    kept, other = handle_of(twin).trace.remaining, handle_of(model).trace.remaining
    assert equal(kept, expected.trace.remaining)
    assert not equal(kept, other)
    assert equal(answer(host, model), pruned)


def test_a_pickled_model_comes_back_attached(host):
    """In a process that never tapped an attention, too."""
    model = host.build()
    handle = attach(model, FlowCut(BUDGET))
    file = io.BytesIO()
    torch.save(model, file)
    if host.name == "clip":
        assert handle_of(pickle.loads(pickle.dumps(model))).pruner == handle.pruner
    file.seek(0)
    tapped = AttentionInterface._global_mapping.pop("flowcut_sdpa")
    try:
        back = torch.load(file, weights_only=False)
        assert handle_of(back) is not handle
        assert equal(answer(host, back), answer(host, model))
    finally:
        AttentionInterface._global_mapping["flowcut_sdpa"] = tapped
    detach(back)
    assert handle.attached
    handle.remove()
    assert attributes(back) == attributes(model)


def test_a_copy_merges_between_attention_and_mlp():
    host = Clip()
    model = host.build()
    attach(model, ToMe(BUDGET))
    twin = copy.deepcopy(model)
    pruned = answer(host, model)
    detach(model)
    assert equal(answer(host, twin), pruned)


def test_what_stood_in_a_method_s_place_comes_back(hosts):
    """An attribute that was there before attaching is there after it, in the copy as well."""
    model = hosts["llava_hf"].build()
    model._loss_function = len
    with attach(model, "fastv:budget=10,layer=1"):
        twin = copy.deepcopy(model)
        assert twin._loss_function is not len
    assert model._loss_function is len
    detach(twin)
    assert twin._loss_function is len


def test_a_copy_made_in_a_block_ends_with_its_own(hosts):
    model = Clip().build()
    with attach(model, FlowCut(BUDGET)):
        twin = copy.deepcopy(model)
    with handle_of(twin) as other:
        assert other.attached
    assert handle_of(twin) is None


def test_of_many_threads_one_attaches():
    model = Clip().build()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            assert sorted(at_once(4, partial(attach, model, Random(BUDGET)))) == [*[REFUSED] * 3, "done"]
            assert sorted(at_once(4, partial(detach, model))) == [*[REFUSED] * 3, "done"]
    finally:
        sys.setswitchinterval(interval)


REFUSED = "a ValueError of 1 line"


def at_once(number, act):
    """What becomes of `act` in each of so many threads that begin together."""
    barrier, said = threading.Barrier(number), []

    def one():
        barrier.wait()
        try:
            act()
            said.append("done")
        except ValueError as error:
            said.append(f"a ValueError of {len(str(error).splitlines())} line")

    threads = [threading.Thread(target=one) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said
