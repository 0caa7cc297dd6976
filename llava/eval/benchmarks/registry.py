"""The benchmarks by name; a module is imported when its benchmark is requested."""

from __future__ import annotations

import importlib
from pathlib import Path

from llava.eval.benchmarks.contract import Benchmark

DATA = Path("playground/data/eval")
"""The folder of all benchmarks, where no other is given."""
MODULES = {
    name: f"llava.eval.benchmarks.{name}"
    for name in (
        "gqa",
        "mmbench",
        "mmbench_cn",
        "mme",
        "pope",
        "sqa",
        "vqav2",
        "textvqa",
        "vizwiz",
        "seed",
        "ai2d",
        "mmmu",
        "qbench",
        "embedded",
        "mmvet",
        "llavabench",
        "tgif",
        "msvd",
        "msrvtt",
    )
}


def benchmark(name: str) -> Benchmark:
    """The benchmark of that name. Raises ValueError for an unknown one."""
    if name not in MODULES:
        raise ValueError(f"no benchmark {name!r}; give one of {', '.join(MODULES)}")
    return importlib.import_module(MODULES[name]).BENCHMARK
