"""Pruners from text and from a config's dict, and back."""

import json
from dataclasses import MISSING, dataclass, fields, replace
from typing import get_args, get_type_hints

import pytest

from flowcut import FasterVLM, FlowCut, Pruner, Random, parse_pruner
from flowcut.registered import registered
from flowcut.registry import METHODS, Method, pruner_from_config, pruner_to_config, pruner_to_text, settings_of
from scripts import methods as methods_table


@pytest.mark.parametrize(
    ("text", "pruner"),
    [
        ("none", None),
        ("flowcut:budget=64", FlowCut(64)),
        ("flowcut:budget=64,batch_coupling=max", FlowCut(64, batch_coupling="max")),
        (" flowcut: budget=64, history=0.25, semantic=false ", FlowCut(64, history=0.25, semantic=False)),
        ("flowcut-paper:budget=32", FlowCut.paper(32)),
        ("random:budget=64,seed=3", Random(64, seed=3)),
        ("fastervlm:budget=192", FasterVLM(192)),
    ],
)
def test_parse(text, pruner):
    assert parse_pruner(text) == pruner


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flowcat:budget=64", "choose none or one of flowcut"),
        ("", "unknown pruner"),
        ("flowcut", "write flowcut:budget=64"),
        ("flowcut:64", "'64' is not a setting of flowcut"),
        ("flowcut:budget=64,colour=red", "'colour=red' is not a setting of flowcut"),
        ("flowcut:budget=many", "budget=many is not a number"),
        ("flowcut:budget=0", "budget=0 is not a whole number"),
        ("flowcut:budget=64,value=perhaps", "neither true nor false"),
        ("flowcut:budget=64,batch_coupling=min", "batch_coupling=min is not allowed; batch_coupling takes none or max"),
        ("flowcut:budget=64,last_layer=x", "last_layer=x is not a number; last_layer takes a whole number, or None"),
        ("none:budget=64", "unknown pruner"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(ValueError, match=message):
        parse_pruner(text)


@pytest.mark.parametrize("name", METHODS)
def test_every_field_says_what_it_takes_and_means(name):
    settings = settings_of(name)
    assert [setting.name for setting in settings] == [field.name for field in fields(METHODS[name].cls)]
    assert settings[0].name == "budget"
    assert settings[0].default is None
    assert all(setting.meaning and setting.allowed for setting in settings)
    given = {s.name: s.default for s in settings if s.default is not None}
    text = ",".join(f"{key}={value}" for key, value in {"budget": 1, **given}.items())
    assert parse_pruner(f"{name}:{text}") == METHODS[name].make(budget=1)


def variants(pruner: Pruner) -> list[Pruner]:
    """The pruner, and it with every field in turn set to each of some values that its type allows."""
    found = [pruner]
    for field in fields(pruner):
        kind = get_type_hints(type(pruner))[field.name]
        options = get_args(kind) or (kind,)
        values = [option for option in options if isinstance(option, str)]
        values += [True, False] if bool in options else []
        values += [1, 3, -4] if int in options else []
        values += [0.25] if float in options else []
        values += [None] if type(None) in options else []
        for value in values:
            try:
                found.append(replace(pruner, **{field.name: value}))
            except ValueError:
                continue  # the class says that it cannot be
    assert len(found) > 1
    return found


@pytest.mark.parametrize("name", METHODS)
def test_every_method_comes_back_from_its_dict_and_its_text(name):
    for pruner in variants(METHODS[name].make(budget=7)):
        written = pruner_to_config(pruner)
        assert pruner_from_config(json.loads(json.dumps(written))) == pruner
        assert parse_pruner(pruner_to_text(pruner)) == pruner
        defaults = {field.name: field.default for field in fields(pruner) if field.default is not MISSING}
        assert not any(defaults[key] == value for key, value in written.items() if key in defaults)


def test_what_is_written():
    assert pruner_to_config(FlowCut(192)) == {"method": "flowcut", "budget": 192}
    assert pruner_to_config(Random(64, seed=3)) == {"method": "random", "budget": 64, "seed": 3}
    paper = {"semantic_scale": "head", "entropy_over": "all", "steps_left": "selections"}
    assert pruner_to_config(FlowCut.paper(64)) == {"method": "flowcut", "budget": 64, **paper}
    assert pruner_to_text(FlowCut(64, last_layer=-2, value=False)) == "flowcut:budget=64,last_layer=-2,value=False"
    assert pruner_to_text(None) == "none"


@dataclass(frozen=True)
class Stranger(Pruner):
    depth: int = 3


def test_a_method_that_is_registered_by_a_preset_alone_is_written_in_full(monkeypatch):
    with pytest.raises(
        ValueError, match=r"a Stranger has no name in .*; call flowcut.registry.register on its class, or use FlowCut"
    ):
        pruner_to_config(Stranger(5))
    preset = Method(Stranger, lambda budget, **fields: Stranger(budget, **{"depth": 9, **fields}), "none")
    monkeypatch.setitem(METHODS, "deep", preset)
    assert pruner_to_config(Stranger(5)) == {"method": "deep", "budget": 5, "depth": 3}
    assert pruner_from_config({"method": "deep", "budget": 5, "depth": 3}) == Stranger(5)
    assert pruner_from_config({"method": "deep", "budget": 5}) == Stranger(5, depth=9)


@pytest.mark.parametrize(
    ("config", "pruner"),
    [
        ({"budget": 192}, FlowCut(192)),
        ({"budget": 64, "history": 0, "semantic": False}, FlowCut(64, history=0, semantic=False)),
        ({"budget": 64, "last_layer": None}, FlowCut(64)),
        ({"method": "flowcut-paper", "budget": 32, "interval": 4}, FlowCut.paper(32, interval=4)),
    ],
)
def test_from_config(config, pruner):
    assert pruner_from_config(config) == pruner


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("flowcut:budget=64", "'flowcut:budget=64' is not a dict of fields"),
        ([64], "is not a dict of fields"),
        ({"method": "flowcat", "budget": 64}, "unknown pruner method 'flowcat'; choose one of flowcut, "),
        ({"method": ["flowcut"], "budget": 64}, "unknown pruner method"),
        ({"method": "none"}, "unknown pruner method 'none'"),
        ({}, 'has no budget; add "budget": 64'),
        ({"budget": 64, "colour": "red"}, "'colour' is not a setting of flowcut; choose from budget, interval"),
        ({"budget": 0}, "budget=0 is not a whole number"),
        ({"budget": "64"}, "budget='64' does not fit; give a whole number"),
        ({"budget": 64.0}, r"budget=64\.0 does not fit; give a whole number"),
        ({"budget": True}, "budget=True does not fit"),
        ({"budget": 64, "last_layer": "-2"}, r"give a whole number \(or null\)"),
        ({"budget": 64, "value": 1}, "value=1 does not fit; give true or false"),
        ({"budget": 64, "history": "half"}, "history='half' does not fit; give a number"),
        ({"budget": 64, "batch_coupling": "min"}, "batch_coupling='min' does not fit; give 'none' or 'max'"),
        ({"budget": 64, "history": 1.5}, r"history=1\.5 is not a weight"),
    ],
)
def test_bad_config(config, message):
    with pytest.raises(ValueError, match=message) as error:
        pruner_from_config(config)
    assert "\n" not in str(error.value)


def test_the_table_of_methods_is_what_the_classes_say():
    """`flowcut list` reads it without importing torch."""
    assert methods_table.main(["--check"]) == 0
    assert list(registered()) == list(METHODS)
