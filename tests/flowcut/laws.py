"""What the laws share: every pruner, every family, and which of them meet where.

A law is a test with the arguments `host` and `pruner`. Under `every_pair` each pruner meets each family that takes it,
under `some_pairs` at least three families, and each family six pruners or more. Arguments named in SETTINGS are not
multiplied but spread over the pairs: each pruner and each family meets every setting, not each pair.
"""

import atexit
import inspect
import tempfile
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from covering import sample, spread
from hosts import all_hosts

from flowcut import (
    DART,
    SCOPE,
    ST3,
    VTW,
    CDPruner,
    DivPrune,
    FasterVLM,
    FastV,
    FlowCut,
    HiPrune,
    HoloV,
    Pooling,
    PruMerge,
    PyramidDrop,
    Random,
    RCom,
    SparseVLM,
    ToMe,
    Uniform,
    VisionZip,
    VisPruner,
    attach,
)
from flowcut.registry import METHODS

BUDGET = 10
PRUNERS = {
    "flowcut": FlowCut(BUDGET),
    "paper": FlowCut.paper(BUDGET),
    "qwen_released": FlowCut.released_qwen2_vl(BUDGET),
    "random": Random(BUDGET),
    "fastervlm": FasterVLM(BUDGET),
    "visionzip": VisionZip(BUDGET),
    "fastv": FastV.keeping(BUDGET),
    "sparsevlm": SparseVLM(BUDGET, layers=(0, 1, 2), keep=(24, 16, BUDGET)),
    "sparsevlm_plus": SparseVLM.plus(BUDGET, layers=(0, 1, 2), keep=(24, 16, BUDGET)),
    "pdrop": PyramidDrop(BUDGET, layers=(1, 2, 3), keep=(24, 16, BUDGET)),
    "st3": ST3(BUDGET, start=1, stride=1, keep=(24, 16, BUDGET)),
    "vtw": VTW(BUDGET, layer=2),
    "dart": DART(BUDGET, keep=BUDGET),
    "vispruner": VisPruner(BUDGET),
    "hiprune": HiPrune(BUDGET, alpha=0.5),
    "holov": HoloV(BUDGET, runs=4),
    "prumerge": PruMerge(BUDGET),
    "prumerge_plus": PruMerge.plus(BUDGET, repeats=False),  # else a patch may be kept twice, as released
    "tome": ToMe(BUDGET),
    "uniform": Uniform(BUDGET),
    "pooling": Pooling(BUDGET),
    "divprune": DivPrune(BUDGET),
    "scope": SCOPE(BUDGET),
    "cdpruner": CDPruner(BUDGET, condition=False),  # with a question: tests/flowcut/methods
    "rcom": RCom(BUDGET, condition=False),
}
# A method that is registered and not named above meets every law with its default settings.
KNOWN = {type(pruner) for pruner in PRUNERS.values()}
PRUNERS |= {name: method.make(budget=BUDGET) for name, method in METHODS.items() if method.cls not in KNOWN}

VARIANTS = {
    "qwen3_vl_moe": ("flowcut", "divprune", "fastv", "sparsevlm"),
    "glm46v": ("flowcut", "holov", "dart", "sparsevlm"),
    "qwen3_5": ("flowcut", "divprune", "holov", "hiprune"),
}
"""Families whose encoder, prompt and cuts are another family's, and the pruners that meet them."""
OURS = ["llava", "llava_mistral", "llava_next"]
SETTINGS: dict[str, list] = {
    "implementation": ["sdpa", "eager"],
    "side": ["left", "right"],
    "reentrant": [False, True],
    "budget": [1, BUDGET, 17],
}


@cache
def hosts() -> dict[str, Any]:
    """Every family by name."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return all_hosts(Path(folder.name))


@cache
def built(name: str, implementation: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
    """A model shared by the tests that leave it as it was, which the law of restoration says all do."""
    return hosts()[name].build(implementation=implementation).to(dtype)


@cache
def vanilla(name: str, implementation: str = "sdpa") -> list[torch.Tensor]:
    """What `built` says to all samples of its family without a pruner."""
    with torch.no_grad():
        return hosts()[name].outputs(built(name, implementation), hosts()[name].samples())


@cache
def refusals() -> dict[tuple[str, str], str]:
    """What `attach` says to a family and a pruner that do not go together, by their names."""
    said = {}
    for pair in product(hosts(), PRUNERS):
        try:
            attach(built(pair[0]), PRUNERS[pair[1]]).remove()
        except ValueError as error:
            said[pair] = str(error)
    return said


def pairs(speaking: bool = False) -> list[tuple[str, str]]:
    """(family, pruner) of all that go together; `speaking`: without the bare encoders."""
    every = product((name for name, host in hosts().items() if host.speaks or not speaking), PRUNERS)
    return [
        (family, pruner)
        for family, pruner in every
        if (family, pruner) not in refusals() and (pruner in VARIANTS.get(family, PRUNERS))
    ]


def _law(choose: Callable, speaking: bool, test: Callable) -> Callable:
    names = [name for name in SETTINGS if name in inspect.signature(test).parameters]
    chosen = choose(pairs(speaking), turn=crc32(test.__name__.encode()))
    cases = spread(chosen, list(product(*(SETTINGS[name] for name in names))))
    mark = pytest.mark.parametrize(("host", "pruner", *names), cases, indirect=["host", "pruner"])
    return mark(test)


def _all(pairs: list, turn: int) -> list:
    return pairs


_some = partial(sample, each_left=6, each_right=3)
every_pair = partial(_law, _all, False)
some_pairs = partial(_law, _some, False)
some_speaking_pairs = partial(_law, _some, True)


def same(one: list, other: list) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def close(one: list, other: list, tolerance: float = 1e-4) -> bool:
    return all(torch.allclose(a, b, atol=tolerance, rtol=1e-4) for a, b in zip(one, other, strict=True))


def remaining(handle: Any, samples: list) -> list:
    """What is left of each image; a forward without images leaves the trace of the one before."""
    return handle.trace.remaining if any(sample.images or sample.videos for sample in samples) else []


def merges_in_language(pruner: Any) -> bool:
    return isinstance(pruner, SparseVLM) and pruner.recycles
