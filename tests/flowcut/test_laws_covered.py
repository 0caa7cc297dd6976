"""Which pruner meets which family: what is refused, and that no law leaves anyone out."""

from collections import defaultdict
from itertools import product

import pytest
import test_laws
import test_laws_agreement
import test_laws_generation
import test_laws_training
from laws import PRUNERS, SETTINGS, hosts, pairs, refusals

SPEAKING = (test_laws_generation, test_laws_training)  # laws of language models alone
FILES = (test_laws, test_laws_agreement, *SPEAKING)
ON_EVERY_PAIR = {"test_identity", "test_restore", "test_budget", "test_batch"}
ENCODERS = ["clip", "siglip", "dinov2"]
PACKED = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "glm4v", "glm46v"]
CELLS = ["internvl", "smolvlm", "gemma3"]
INSIDE = "cuts inside a language model, and this is a vision encoder alone"
RECURRENT = "; every layer of the language model must have a causal self_attn"
MERGES = "cannot merge patches in a model that joins several patches into one token"
PATCHES_OF_CELLS = "merge='patches' is what the released code does in Qwen2-VL; here use 'groups'"
REFUSED = {
    "fastv": (ENCODERS, f"FastV {INSIDE}"),
    "sparsevlm": (ENCODERS, f"SparseVLM {INSIDE}"),
    "sparsevlm_plus": (ENCODERS, f"SparseVLM {INSIDE}"),
    "pdrop": (ENCODERS, f"PyramidDrop {INSIDE}"),
    "st3": (ENCODERS, f"ST3 {INSIDE}"),
    "vtw": (ENCODERS, f"VTW {INSIDE}"),
    "dart": (ENCODERS, f"DART {INSIDE}"),
    "visionzip": (PACKED + CELLS, f"VisionZip {MERGES}"),
    "prumerge": (PACKED + CELLS, f"PruMerge {MERGES}"),
    "prumerge_plus": (PACKED + CELLS, f"PruMerge {MERGES}"),
    "tome": (PACKED + CELLS, f"ToMe {MERGES}"),
    "crossget": (PACKED + CELLS, f"CrossGET {MERGES}"),
    "pooling": (PACKED + CELLS, f"Pooling {MERGES}"),
    "rcom": (PACKED + CELLS, f"RCom {MERGES}"),
    "flowcut_plus": (PACKED + CELLS, f"FlowCut+ {MERGES}"),
    "qwen_released": (
        ["qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"],
        "merge='patches' is what the released code does in Qwen2-VL; in Qwen2.5-VL and Qwen3-VL use 'groups'",
    ),
}


def test_what_is_refused_and_why():
    expected = {(family, pruner): reason for pruner, (families, reason) in REFUSED.items() for family in families}
    expected |= {(family, "qwen_released"): PATCHES_OF_CELLS for family in CELLS}
    found, inside = dict(refusals()), ("fastv", "sparsevlm", "sparsevlm_plus", "pdrop", "st3", "vtw", "dart")
    assert all(f"a Qwen3_5TextModel{RECURRENT}" in found.pop(("qwen3_5", pruner)) for pruner in inside)
    assert found == expected


def test_this_projects_llava_takes_what_transformers_takes():
    """docs/families.md says so, where only transformers' classes are listed."""
    for ours, theirs in (("llava", "llava_hf"), ("llava_mistral", "llava_hf"), ("llava_next", "llava_next_hf")):
        refused = [{pruner for family, pruner in refusals() if family == name} for name in (ours, theirs)]
        assert refused[0] == refused[1]


def laws():
    """(name, file, names of its arguments, cases) of every test that a decorator of laws.py has given pairs."""
    for file in FILES:
        for name, test in vars(file).items():
            for mark in getattr(test, "pytestmark", []) if name.startswith("test_") else []:
                if mark.name == "parametrize" and mark.args[0][:2] == ("host", "pruner"):
                    yield name, file, *mark.args


LAWS = {name: law for name, *law in laws()}


def test_all_laws_are_here():
    assert len(LAWS) == 17
    assert set(LAWS) >= ON_EVERY_PAIR


@pytest.mark.parametrize("law", LAWS)
def test_everyone_meets_the_law(law):
    file, _, cases = LAWS[law]
    cases = [case[:2] for case in cases]
    assert len(set(cases)) == len(cases)
    if law in ON_EVERY_PAIR:
        assert cases == pairs()
    for place, least in ((0, 6), (1, 3)):
        fitting, met = defaultdict(set), defaultdict(set)
        for found, among in ((fitting, pairs(speaking=file in SPEAKING)), (met, cases)):
            for pair in among:
                found[pair[place]].add(pair[1 - place])
        assert set(met) == set(fitting)
        assert all(len(met[name]) >= min(least, len(fitting[name])) for name in fitting)


@pytest.mark.parametrize("law", [law for law, (_, arguments, _) in LAWS.items() if len(arguments) > 2])
def test_everyone_meets_every_setting(law):
    _, arguments, cases = LAWS[law]
    settings = set(product(*(SETTINGS[name] for name in arguments[2:])))
    met = defaultdict(set)
    for host, pruner, *setting in cases:
        met[host].add(tuple(setting))
        met[pruner].add(tuple(setting))
    assert all(met[name] == settings for name in (*hosts(), *PRUNERS) if name in met)


def test_every_pruner_meets_both_sides_where_there_is_text():
    """A bare encoder knows no padding."""
    met = defaultdict(set)
    for host, pruner, _, side in LAWS["test_batch"][-1]:
        if hosts()[host].speaks:
            met[pruner].add(side)
    assert all(met[pruner] == {"left", "right"} for pruner in PRUNERS)
