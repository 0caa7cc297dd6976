"""What differs between the supported versions of transformers, and the check that the installed versions are supported.

transformers 5.24 renamed the argument that carries the KV cache from `past_key_values` to `cache`, in every forward, in
`generate` and in the mask functions. Callers of either version may use either name; models are called by the name that
the installed version knows. transformers itself takes seconds to import, so no module of the library does it before a
model is there. torch is not imported here either, so that the programs can show their help without it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from packaging.version import Version

if TYPE_CHECKING:
    from torch import Tensor

TESTED = {"transformers": ("5.23.0", "5.24.0"), "torch": ("2.6.0", "2.15.0")}
"""Oldest and newest version of each package that the test suite passes with; pyproject.toml declares the same range."""

CACHE_NAMES = ("cache", "past_key_values")
"""Every name under which a KV cache may arrive."""
CACHE = "cache" if Version(version("transformers")).release[:2] >= (5, 24) else "past_key_values"
"""The name that the installed transformers uses."""


def check_versions(installed: Mapping[str, str] | None = None) -> list[str]:
    """Warn once for each package whose version is outside the tested range.

    Args:
        installed: version of each package by name; None asks the packages.

    Returns:
        The warnings, one line each.
    """
    if installed is None:
        installed = {"transformers": version("transformers"), "torch": version("torch")}
    lines = []
    for package, (oldest, newest) in TESTED.items():
        minor = Version(installed[package]).release[:2]
        if not Version(oldest).release[:2] <= minor <= Version(newest).release[:2]:
            lines.append(
                f"{package} {installed[package]} is untested here, {oldest} to {newest} are tested; "
                f"`python -m llava.doctor` checks results on tiny models, `pip install {package}=={newest}` is safe"
            )
    for line in lines:
        warnings.warn(line, stacklevel=3)
    return lines


def one_cache(call: Mapping[str, Any]) -> Any:
    """The KV cache among a call's keyword arguments, under whichever name; None if there is none.

    Raises:
        ValueError: two caches are given, one under each name.
    """
    given = [call[name] for name in CACHE_NAMES if call.get(name) is not None]
    if len(given) > 1:
        raise ValueError(
            f"a KV cache was given as `cache` and another as `past_key_values`; pass one of them, `{CACHE}`"
        )
    return given[0] if given else None


def rename_cache(call: dict[str, Any]) -> None:
    """Bring a call's KV cache, if it names one, under the name `CACHE`.

    Raises:
        ValueError: two caches are given, one under each name.
    """
    cache = one_cache(call)
    named = any(name in call for name in CACHE_NAMES)
    for name in CACHE_NAMES:
        call.pop(name, None)
    if named:
        call[CACHE] = cache


def checkpoints_layers(module: Any) -> bool:
    """Whether a decoder's layers run checkpointed in the present forward, in which case it makes no KV cache.

    transformers before 5.24 does so without gradients too.
    """
    if not (module.training and getattr(module, "gradient_checkpointing", False)):
        return False
    import torch

    return torch.is_grad_enabled() or CACHE == "past_key_values"


def causal_mask(
    config: Any,
    hidden: Tensor,
    real: Tensor | None,
    cache: Any,
    layer: int | None,
    sliding: bool = False,
    blocks: Tensor | None = None,
) -> Any:
    """The attention mask of one decoder layer, in the form that the model's attention implementation takes.

    Args:
        hidden: [B, S, D], what the layer is given.
        real: [B, P + S], False on padding, of the P cached entries and the S new ones; None if nothing is padded.
        cache: the KV cache or None.
        layer: the layer whose entries in the cache count.
        sliding: whether the layer attends within `config.sliding_window` only.
        blocks: [B, P + S], in which block each token is, that attends in both directions; -1 in none.
    """
    from transformers import masking_utils  # not before a model is there

    make = masking_utils.create_sliding_window_causal_mask if sliding else masking_utils.create_causal_mask
    mask = None if real is None else real.long()
    given: dict[str, Any] = {CACHE: cache, "layer_idx": layer if cache is not None else None}
    if blocks is not None and not sliding:
        given["block_sequence_ids"] = blocks
    elif blocks is not None:
        make, given["or_mask_function"] = masking_utils.create_causal_mask, masking_utils.blockwise_overlay(blocks)
        given["and_mask_function"] = masking_utils.sliding_window_overlay(config.sliding_window)
    return make(config=config, inputs_embeds=hidden, attention_mask=mask, **given)
