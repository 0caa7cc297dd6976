"""What a run needs before it starts: gigabytes to download, and hours. All of it estimates, and printed as such.

Sizes are those that the Hub's and the data sets' own pages show, except for LLaVA-1.5-13B, Qwen2-VL, CLIP and Visual
Genome, whose pages were not at hand (docs/gpu_checks.md asks for a check). Where none is known, the size is unknown.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable

WEIGHTS = {
    "liuhaotian/llava-v1.5-7b": 13.6,
    "liuhaotian/llava-v1.5-13b": 26.1,
    "liuhaotian/llava-v1.6-vicuna-7b": 14.1,
    "lmsys/vicuna-7b-v1.5": 13.5,
    "lmsys/vicuna-13b-v1.5": 26.0,
    "openai/clip-vit-large-patch14-336": 1.7,
    "Qwen/Qwen2-VL-7B-Instruct": 16.6,
    "LanguageBind/Video-LLaVA-7B-hf": 14.7,
}
"""Gigabytes of what is downloaded of a repository of the Hub, by its name."""
PAPER_SECONDS = {"v1_5": (17 * 60 + 5) / 8910, "v1_6": (35 * 60 + 16) / 8910}
"""Seconds an answer of the unpruned LLaVA-1.5-7B and LLaVA-NeXT-7B: the minutes for POPE's 8,910 questions on an A800
in Table 5 of FlowCut's paper.
"""
PAPER_MODELS = {"v1_5": "LLaVA-1.5-7B", "v1_6": "LLaVA-NeXT-7B"}
SECONDS_PER_ANSWER = "SECONDS_PER_ANSWER"
"""The variable of the environment that overrides the time of an answer in every estimate."""


def missing_weights(names: Iterable[str | None], cache_dir: str | None = None) -> dict[str, float | None]:
    """Gigabytes of the models that are not on this machine and would be downloaded, by name. No network is asked."""
    from llava.model.checkpoint import folder_here

    missing: dict[str, float | None] = {}
    for name in names:
        folder = folder_here(name, cache_dir) if name else None
        here = folder is not None and any(file.suffix in (".bin", ".safetensors") for file in folder.iterdir())
        if name and not here:
            missing[name] = WEIGHTS.get(name)
    return missing


def size(gigabytes: float | None) -> str:
    if gigabytes is None:
        return "size unknown"
    return f"about {gigabytes:g} GB" if gigabytes >= 1 else f"about {max(1, round(1000 * gigabytes))} MB"


def total(sizes: Iterable[float | None]) -> str:
    """The sum of the sizes that are known, and how many are not."""
    every = list(sizes)
    known = [one for one in every if one is not None]
    unknown = len(every) - len(known)
    said = [size(round(sum(known), 1) if sum(known) >= 1 else sum(known))] if known else []
    said += [f"{unknown} of unknown size"] if unknown else []
    return " and ".join(said) or "nothing"


def duration(seconds: float) -> str:
    return f"about {seconds / 3600:.1f} hours" if seconds >= 3600 else f"about {max(1, round(seconds / 60))} minutes"


def from_environment(name: str) -> float | None:
    """A number above 0 that the environment gives; None where it gives nothing. Raises ValueError for anything else."""
    text = os.environ.get(name, "")
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{name}={text} is not a number above 0")
    return number
