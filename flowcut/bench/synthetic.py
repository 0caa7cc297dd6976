"""Models of published sizes with random weights that attend as trained ones do, and pictures to show them.

Random weights attend evenly, trained ones ever more sharply with depth, and FlowCut's schedule follows that. So the
weights of each encoder layer's query and key projections are multiplied by one number, found by bisection on other
images, at which the global token's attention has a given entropy ratio H / ln n: `RATIOS` in the first and last layer,
equal steps between. Images are colour fields under noise, of different grain and contrast, so their schedules differ
and batches are ragged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flowcut import scores
from flowcut.attach import attach
from flowcut.bench.geometries import Geometry
from flowcut.pruner import Cut, Pruner, View

RATIOS = 0.97, 0.75


def draw_weights(model: torch.nn.Module, seed: int) -> None:
    """Normal weights of standard deviation 1 / sqrt(inputs), norms and layer scales 1, biases 0; in place."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if parameter.ndim == 1 and name.endswith(("weight", "bias", "lambda_1", "lambda_2")):
            # Gemma's norms add the 1 themselves.
            gain = 0 if "Gemma" in type(model).__name__ and "norm" in name and "vision" not in name else 1
            parameter.fill_(0 if name.endswith("bias") else gain)
        else:
            generator = torch.Generator(parameter.device).manual_seed(seed)
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
            seed += 1


def pictures(count: int, side: int, seed: int) -> Tensor:
    """[count, 3, side, side]: colour fields under noise, of different grain, contrast and noise."""
    images = []
    for number in range(count):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        grain, contrast, noise = torch.rand(3, generator=generator).tolist()
        fields = torch.randn(1, 3, 6 + int(18 * grain), 6 + int(18 * grain), generator=generator)
        fields = torch.nn.functional.interpolate(fields, size=(side, side))[0]
        noise = (0.2 + 0.4 * noise) * torch.randn(3, side, side, generator=generator)
        images.append((0.4 + 0.8 * contrast) * fields + noise)
    return torch.stack(images)


def media(geometry: Geometry, samples: int, seed: int) -> dict[str, Tensor]:
    """Keyword arguments that bring one image, or one video, per sample, as the family's processor lays them out."""
    side, rows = geometry.side, geometry.rows
    images = pictures(samples * rows, side, seed)
    if geometry.family in ("Llava", "InternVL", "Gemma3"):
        return {"pixel_values": images}
    if geometry.family == "SmolVLM":
        return {"pixel_values": images.view(samples, rows, 3, side, side)}
    if geometry.family == "VideoLlava":
        return {"pixel_values_videos": images.view(samples, rows, 3, side, side)}
    if geometry.family == "LlavaNext":
        sizes = torch.tensor([[2 * side, 2 * side]] * samples)
        return {"pixel_values": images.view(samples, rows, 3, side, side), "image_sizes": sizes}
    # 2 x 2 merge groups one after the other; a patch as [channel, time, height, width]
    patch, groups = geometry.patch, side // (2 * geometry.patch)
    patches = images.view(samples, 3, groups, 2, patch, groups, 2, patch).permute(0, 2, 5, 3, 6, 1, 4, 7)
    pixels = torch.stack([patches, patches], dim=6).reshape(-1, 3 * 2 * patch * patch)
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 2 * groups, 2 * groups]] * samples)}


def sharpen(model: nn.Module, encode: Callable[[], Any], passes: int = 2) -> None:
    """Give the global attention of every encoder layer its entropy ratio; see the top of this file.

    Args:
        encode: runs the encoder over pictures to go by.

    A layer is corrected after it ran, and those after it see what came of the wrong one: hence a second pass.
    """
    probe = _Sharpen(budget=10**9)
    with torch.inference_mode(), attach(model, probe) as handle:
        probe.attentions.extend(handle.anatomy.encoders[-1].attentions)
        for _ in range(passes):
            encode()


@dataclass(frozen=True)
class _Sharpen(Pruner):
    """Drops nothing, but after each encoder layer scales its query and key projections."""

    attentions: list[Any] = field(default_factory=list)

    def vision(self, view: View) -> Cut | None:
        target = RATIOS[0] + (RATIOS[1] - RATIOS[0]) * view.layer / (view.layers - 1)
        low, high = -10.0, 10.0
        for _ in range(30):
            middle = (low + high) / 2
            row = scores.softmax_row(view.global_token(view.q), view.k, view.scaling * math.exp(middle)).mean(dim=1)
            weights = scores.normalise(row[:, view.shape.num_prefix_tokens :])
            sharp = float(scores.entropy(weights).mean()) < target * math.log(weights.shape[1])
            low, high = (low, middle) if sharp else (middle, high)
        attention = self.attentions[view.layer]
        if hasattr(attention, "qkv"):
            parts = [part[: 2 * len(part) // 3] for part in attention.qkv.parameters()]
        else:
            parts = [*attention.q_proj.parameters(), *attention.k_proj.parameters()]
        for part in parts:
            part.mul_(math.exp(middle / 2))
        return None
