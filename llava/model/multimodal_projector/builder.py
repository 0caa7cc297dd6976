"""From the vision tower's width to the language model's: `linear`, `mlpNx_gelu` or `identity`."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn


class IdentityMap(nn.Module):
    """Passes the tower's features on unchanged; tower and language model must have the same width."""

    def forward(self, features: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return features

    @property
    def config(self) -> dict[str, str]:
        return {"mm_projector_type": "identity"}


def build_vision_projector(config: Any, delay_load: bool = False, **kwargs: Any) -> nn.Module:
    """Build the projector named by `config.mm_projector_type` (default "linear").

    Reads `mm_hidden_size` (width of the tower) and `hidden_size` (of the language model). `mlpNx_gelu` is N linear
    layers with exact GELU between them, so its keys are `0.*`, `2.*`, and so on. `delay_load` is accepted for
    LLaVA's callers and has no effect: nothing is loaded here.

    Raises ValueError for an unknown type.
    """
    kind = getattr(config, "mm_projector_type", "linear")
    if kind == "linear":
        return nn.Linear(config.mm_hidden_size, config.hidden_size)
    if kind == "identity":
        return IdentityMap()
    mlp = re.fullmatch(r"mlp([1-9]\d?)x_gelu", str(kind))
    if mlp is None:
        raise ValueError(f"Unknown projector type: {kind}; use linear, identity or mlpNx_gelu, N below 100")
    layers: list[nn.Module] = [nn.Linear(config.mm_hidden_size, config.hidden_size)]
    for _ in range(int(mlp[1]) - 1):
        layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
    return nn.Sequential(*layers)
