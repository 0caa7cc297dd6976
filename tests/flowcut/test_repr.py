"""`repr(pruner)` identifies a committed result: renaming a class or a field, or another order, makes results stale."""

import json
from pathlib import Path

import pytest

from flowcut import parse_pruner

RESULTS = Path(__file__).resolve().parents[2] / "results"


def committed():
    """{text of a pruner: its repr} over all committed results."""
    found = {}
    for file in sorted(RESULTS.rglob("*.json")):
        document = json.loads(file.read_text())
        if isinstance(document, dict) and "identity" in document:
            found[document["pruner"]] = document["identity"]["pruner"]
    return found


@pytest.mark.parametrize("text", sorted(committed()))
def test_the_repr_of_a_committed_result(text):
    pruner = parse_pruner(text)
    assert (repr(pruner) if pruner else "none") == committed()[text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "flowcut-qwen2-vl-released:budget=9",
            "FlowCut(budget=9, interval=2, last_layer=None, history=0.5, attention=True, semantic=False, value=True, "
            "adaptive=True, batch_coupling='none', semantic_scale='none', heads='split', softmax_over='all', "
            "entropy_over='patches', steps_left='layers', merge='patches', patch_positions='first', language_layer=1)",
        ),
        ("fastv:budget=9,keep=3", "FastV(budget=9, layer=2, keep=3, positions='original')"),
        ("dart:budget=9", "DART(budget=9, layer=2, keep=None, image_pivots=4, text_pivots=4, positions='original')"),
        ("vtw:budget=0.5", "VTW(budget=0.5, layer=None, positions='original')"),
        ("pdrop:budget=9", "PyramidDrop(budget=9, layers=(2, 8, 16), ratio=None, keep=None, positions='renumbered')"),
        ("hiprune:budget=9", "HiPrune(budget=9, alpha=0.1, object_layer=None, wrap=True)"),
        ("visionzip:budget=9", "VisionZip(budget=9, contextual=None)"),
        ("rcom:budget=9", "RCom(budget=9, condition=True, adaptive=False, text_tower=None)"),
        (
            "prumerge_plus:budget=9",
            "PruMerge(budget=9, spatial=True, adaptive=False, neighbours=32, repeats=True, batch_coupling='none')",
        ),
    ],
)
def test_the_repr_of_methods_and_presets(text, expected):
    assert repr(parse_pruner(text)) == expected
