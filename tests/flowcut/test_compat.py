"""Either name of the KV cache works, both at once are refused; the declared versions are the tested ones."""

import inspect
import re
import tomllib
import warnings
from pathlib import Path

import pytest
import torch
from hosts import all_hosts, padded
from packaging.requirements import Requirement
from packaging.version import Version

from flowcut import FastV, FlowCut, attach
from flowcut.compat import CACHE, CACHE_NAMES, TESTED, check_versions, one_cache, rename_cache

ROOT = Path(__file__).resolve().parents[2]
OTHER = next(name for name in CACHE_NAMES if name != CACHE)


def test_one_cache_under_either_name():
    assert one_cache({}) is None
    assert one_cache({"cache": 1}) == one_cache({"past_key_values": 1}) == 1
    assert one_cache({"cache": 1, "past_key_values": None}) == one_cache({"cache": None, "past_key_values": 1}) == 1
    with pytest.raises(ValueError, match=f"pass one of them, `{CACHE}`"):
        one_cache({"cache": 1, "past_key_values": 2})


@pytest.mark.parametrize("call", [{"cache": 1}, {"past_key_values": 1}, {"cache": None, "past_key_values": 1}])
def test_renamed(call):
    rename_cache(call)
    assert call == {CACHE: 1}


def test_a_call_without_a_cache_stays_without():
    call = {"x": 1}
    rename_cache(call)
    assert call == {"x": 1}


@pytest.fixture(params=[FlowCut(10), FastV(30, keep=20)], ids=["flowcut", "fastv"])
def pruner(request):
    return request.param


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    return all_hosts(tmp_path_factory.mktemp("tower"))


@pytest.fixture(params=["llava_hf", "llava_next_hf", "llava", "llava_mistral"])
def host(request, hosts):
    return hosts[request.param]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers warns of the old name
@pytest.mark.parametrize("name", CACHE_NAMES)
def test_a_second_turn_under_either_name(host, pruner, name):
    """It reads and extends the cache that was given: one entry more in every layer for each new token."""
    model, sample = host.build(), host.samples()[:1]
    ids = torch.tensor([[20, 21, 22]])
    with torch.no_grad(), attach(model, pruner):
        first = model(**host.inputs(sample, "left"), use_cache=True)
        before = [first[CACHE].get_seq_length(layer) for layer in range(4)]
        second = model(input_ids=ids, **{name: first[CACHE]}, use_cache=True)
    assert second[CACHE] is first[CACHE]
    assert [second[CACHE].get_seq_length(layer) for layer in range(4)] == [length + 3 for length in before]


def test_a_cache_made_while_training_without_gradients(host, pruner):
    """Newer versions make one although the layers could be checkpointed. It is as good as one made in evaluation."""
    model, sample = host.build(), host.samples()[:1]
    ids = torch.tensor([[20, 21, 22]])
    logits = []
    with torch.no_grad(), attach(model, pruner):
        for training in (False, True):
            model.train(training)
            if training:
                model.gradient_checkpointing_enable()
            cache = model(**host.inputs(sample, "left"), use_cache=True).get(CACHE)
            logits.append(None if cache is None else model(input_ids=ids, **{CACHE: cache}, use_cache=True).logits)
    assert logits[1] is None or torch.equal(*logits)


@pytest.mark.parametrize("inner", [False, True])
def test_both_names_at_once_are_refused(host, pruner, inner):
    """At the outer model and at the one inside."""
    model = host.build()
    ids, _ = padded([[5, 6, 7]], "left")
    with torch.no_grad(), attach(model, pruner):
        cache = model(input_ids=ids, use_cache=True)[CACHE]
        called = model.model if inner else model
        with pytest.raises(ValueError, match="pass one of them"):
            called(input_ids=ids, cache=cache, past_key_values=cache)


def test_versions_outside_the_tested_range_are_told_of_once_each():
    newest = {package: versions[1] for package, versions in TESTED.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_versions(newest) == []
        assert check_versions({package: versions[0] for package, versions in TESTED.items()}) == []
        assert check_versions({**newest, "torch": newest["torch"] + "+cu130"}) == []
    with pytest.warns(UserWarning, match=r"transformers 5\.99\.0\.dev0 is untested here, .* are tested"):
        assert len(check_versions({**newest, "transformers": "5.99.0.dev0"})) == 1
    with pytest.warns(UserWarning, match="torch 2.1.0"):
        assert len(check_versions({**newest, "torch": "2.1.0"})) == 1


def test_the_declared_range_is_the_tested_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {requirement.name: requirement for requirement in map(Requirement, project["dependencies"])}
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for package, (oldest, newest) in TESTED.items():
        bounds = {spec.operator: Version(spec.version) for spec in declared[package].specifier}
        assert bounds[">="].release[:2] == Version(oldest).release[:2]
        major, minor = Version(newest).release[:2]
        assert bounds["<"].release[:2] == (major, minor + 1)
        assert pinned[package] == newest


def test_the_name_of_the_cache_is_that_of_the_installed_version():
    from transformers.masking_utils import create_causal_mask

    assert CACHE in inspect.signature(create_causal_mask).parameters
