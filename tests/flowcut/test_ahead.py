"""What a layer is foretold to attend with is what it then attends with, in each kind of decoder."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

from flowcut import Cut, Pruner, attach
from flowcut.compat import CACHE
from tests.flowcut.hosts import all_hosts

HOSTS = ("llava_hf", "qwen2_vl", "llava_mistral", "llava_siglip")
KEEP = 12


@dataclass(frozen=True)
class Foretold(Pruner):
    """Cuts behind the first layer; elsewhere notes what the view says of the next layer, and what that layer sees."""

    reads_hidden: ClassVar[bool] = True
    renumber: bool = False
    ahead: dict = field(default_factory=dict)
    seen: dict = field(default_factory=dict)

    def language(self, view):
        self.seen[view.layer] = view
        if view.layer == 0:
            return Cut(torch.arange(KEEP).repeat(len(view.counts), 1) * 2, renumber=self.renumber)
        if view.layer + 1 < view.layers:
            self.ahead[view.layer + 1] = view.next_layer()
        return None


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    return all_hosts(tmp_path_factory.mktemp("tower"))


def check(pruner):
    assert sorted(pruner.ahead) == [2, 3]
    for layer, foretold in pruner.ahead.items():
        seen = pruner.seen[layer]
        assert foretold.layer == layer
        for name in ("q", "k", "v"):
            assert torch.equal(getattr(foretold, name), getattr(seen, name))
        assert all(
            torch.equal(one, other) for one, other in zip(foretold.source.rotary, seen.source.rotary, strict=True)
        )
        assert foretold.scaling == seen.scaling
        assert (foretold.layout.real is None) == (seen.layout.real is None)
        assert seen.layout.real is None or torch.equal(foretold.layout.real, seen.layout.real)


@pytest.mark.parametrize("renumber", [False, True])
@pytest.mark.parametrize("name", HOSTS)
def test_foretold_equals_seen(hosts, name, renumber):
    """In a padded batch, and again in a second question with another image on the same cache."""
    host = hosts[name]
    model = host.build()
    with torch.no_grad(), attach(model, Foretold(5, renumber=renumber)) as handle:
        host.outputs(model, host.samples(), handle, "left")
        check(handle.pruner)
        assert handle.pruner.seen[2].layout.real is not None


def test_foretold_equals_seen_behind_a_cache(hosts):
    host = hosts["llava_hf"]
    model, sample = host.build(), host.samples()[0]
    inputs = host.inputs([sample], "left")
    with torch.no_grad(), attach(model, Foretold(5)) as handle:
        cache = model(**inputs, use_cache=True)[CACHE]
        before = cache.get_seq_length(3)
        both = torch.cat([inputs["attention_mask"]] * 2, dim=1)
        model(**{**inputs, "attention_mask": both}, **{CACHE: cache}, use_cache=True)
        check(handle.pruner)
        assert handle.pruner.ahead[3].past == before
        assert cache.get_seq_length(3) == 2 * before


def test_looking_ahead_leaves_no_trace(hosts):
    host = hosts["llava_hf"]
    model, results = host.build(), []
    for look in (False, True):
        pruner = Foretold(5)
        with torch.no_grad(), attach(model, pruner if look else _Blind(5)) as handle:
            results.append(host.outputs(model, host.samples(), handle))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@dataclass(frozen=True)
class _Blind(Foretold):
    def language(self, view):
        return super().language(view) if view.layer == 0 else None


def test_nothing_follows_the_last_layer(hosts):
    @dataclass(frozen=True)
    class Eager(Foretold):
        def language(self, view):
            view.next_layer()

    host = hosts["llava_hf"]
    model = host.build()
    with pytest.raises(ValueError, match="no layer follows layer 3, the last one"), attach(model, Eager(5)):
        host.outputs(model, host.samples()[:1])
