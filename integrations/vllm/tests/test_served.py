"""What a config and a request may say, and which methods are refused, without an engine."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from flowcut.pruner import EncoderShape
from flowcut.registry import parse_pruner, pruner_to_config
from flowcut_vllm import VLLM, check_version
from flowcut_vllm.pruner import (
    budget_of,
    check_reachable,
    check_served,
    number_of,
    request_pruner,
    server_pruner,
    tokens_of,
)

CLIP = EncoderShape("CLIPVisionModel", 24, 23, num_prefix_tokens=1, feature_layer=22, merges_before_mlp=True)
SERVED = {"flowcut", "random", "fastervlm", "divprune", "visionzip", "vispruner", "holov", "hiprune", "scope"}
MERGING = {"flowcut_plus", "tome", "crossget"}
REFUSED = {
    **dict.fromkeys(("fastv", "pdrop", "sparsevlm", "vtw", "dart", "st3"), "cuts inside the language model"),
    "prumerge": "reads the encoder's last layer",
}


def test_the_server_s_pruner():
    assert server_pruner(SimpleNamespace()) is None
    assert server_pruner(SimpleNamespace(flowcut=None)) is None
    assert server_pruner(SimpleNamespace(flowcut={"budget": 64})) == parse_pruner("flowcut:budget=64")
    named = SimpleNamespace(flowcut={"method": "random", "budget": 0.5})
    assert server_pruner(named) == parse_pruner("random:budget=0.5")
    with pytest.raises(ValueError, match="field \"flowcut\" of the model's config: unknown pruner method 'nothing'"):
        server_pruner(SimpleNamespace(flowcut={"method": "nothing", "budget": 1}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "takes a budget, "),
        (32, "takes a budget, "),
        ({"budget": 32, "method": "random"}, "this server prunes with flowcut:budget=64, and a request may change"),
        ({"budget": 32, "method": "flowcut", "interval": 3}, "this server prunes with flowcut:budget=64"),
        ({"budget": 32, "method": "nothing"}, "unknown pruner method 'nothing'"),
        ({"method": "flowcut"}, "takes a budget, "),
        ({"budget": "32"}, "budget='32' is not a number"),
        ({"budget": None}, "budget=None is not a number"),
        ({"budget": 0}, "budget=0 is not a whole number"),
        ({"budget": -3}, "budget=-3 is not a whole number"),
        ({"budget": True}, "budget=True is not a whole number"),
        ({"budget": 1.5}, "budget=1.5 is not a whole number"),
        ({"budget": float("nan")}, "budget=nan is not a whole number"),
    ],
)
def test_what_a_request_may_not_say(given, message):
    with pytest.raises(ValueError, match=message) as error:
        request_pruner(parse_pruner("flowcut:budget=64"), given)
    assert "\n" not in str(error.value)


def test_a_request_may_name_the_server_s_pruner():
    pruner = parse_pruner("visionzip:budget=64")
    for given in (pruner_to_config(pruner), {**pruner_to_config(pruner), "budget": 32}):
        assert request_pruner(pruner, given) == parse_pruner(f"visionzip:budget={given['budget']}")


@pytest.mark.parametrize("budget", [1, 64, 100000, 0.25, 0.999])
def test_a_budget_travels_as_a_number(budget):
    pruner = parse_pruner("random:budget=64,seed=3")
    asked = request_pruner(pruner, {"budget": budget})
    assert asked == parse_pruner(f"random:budget={budget},seed=3")
    assert budget_of(number_of(budget)) == budget
    assert type(budget_of(number_of(budget))) is type(budget)
    assert tokens_of(asked, 576) == min(round(576 * budget) if budget < 1 else budget, 576)


@pytest.mark.parametrize("name", sorted(SERVED | MERGING))
def test_served(name):
    check_served(parse_pruner(f"{name}:budget=64"), CLIP)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name):
    with pytest.raises(ValueError, match=REFUSED[name]) as error:
        check_served(parse_pruner(f"{name}:budget=64"), CLIP)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(MERGING))
def test_a_method_that_merges_needs_layers_that_can(name):
    with pytest.raises(ValueError, match="cannot merge inside the layers") as error:
        check_served(parse_pruner(f"{name}:budget=64"), replace(CLIP, merges_before_mlp=False))
    assert "\n" not in str(error.value)


def test_a_budget_that_the_method_cannot_meet():
    """576 patches, halved in each of three layers, leave 72; the CLS token that a model passes on counts too."""
    few, with_cls = replace(CLIP, layers=4), replace(CLIP, num_forwarded_special_tokens=1)
    tome = parse_pruner("tome:budget=64")
    with pytest.raises(
        ValueError, match="budget=64 is 64 of 576 tokens, and tome can leave no fewer than 72 here; ask"
    ):
        check_reachable(tome, 64, 576, few)
    check_reachable(tome, 72, 576, few)
    check_reachable(tome, 64, 64, few)
    check_reachable(tome, 64, 576, CLIP)
    with pytest.raises(ValueError, match="flowcut can leave no fewer than 2 here"):
        check_reachable(parse_pruner("flowcut:budget=1"), 1, 577, with_cls)


def test_a_method_that_reads_the_question():
    with pytest.raises(ValueError, match="reads the question"):
        check_served(parse_pruner("cdpruner:budget=64"), CLIP)


def test_one_minor_version():
    check_version(f"{VLLM}.7")
    with pytest.raises(RuntimeError, match=r"works inside vLLM 0\.32, not 0\.33\.1; install vLLM 0\.32"):
        check_version("0.33.1")
