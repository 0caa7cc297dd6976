"""Runs of published code on CLIP encoders, recorded in tests/golden/."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from tests.flowcut.recorded_llama import CASES, GOLDEN, names

__all__ = ["CASES", "clip", "features", "names", "near", "recorded", "weights"]


def recorded(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return CASES[name], load_file(GOLDEN / CASES[name]["data_file"])


def weights(case: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in load_file(GOLDEN / case["weights_file"]).items()}


def clip(case: dict[str, Any]) -> tuple[Any, Tensor, Tensor]:
    """-> model, pixels of the case's images, their unpruned features."""
    model = CLIPVisionModel(CLIPVisionConfig(**case["config"])).eval()
    model.load_state_dict({name.removeprefix("vision_model."): tensor for name, tensor in weights(case).items()})
    inputs = load_file(GOLDEN / case["inputs_file"])
    return model, inputs["pixel_values"][case["images"]], inputs["vanilla_features"][case["images"]]


def features(model: Any, pixels: Tensor) -> Tensor:
    return model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]


def near(mine: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=0, check_dtype=False)
