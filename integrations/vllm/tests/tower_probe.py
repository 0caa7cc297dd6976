"""Run inside of vLLM's workers: which patches a tower keeps of two pictures of noise, on each rank."""

from contextlib import contextmanager

import torch

import flowcut_vllm.tower

GRIDS = [[1, 16, 24], [1, 12, 12]]
WIDTH = 3 * 2 * 4 * 4


def pixels():
    """Patches of the two pictures, [patches, WIDTH]."""
    patches = sum(height * width for _, height, width in GRIDS)
    return torch.randn(patches, WIDTH, generator=torch.Generator().manual_seed(5))


class Normalised(torch.nn.Module):
    """In the place of vLLM's normalisation of pixels on the device, which these pixels have behind them."""

    def forward(self, values, dtype):
        return values.to(dtype)


@contextmanager
def given_normalised(tower):
    normalise, tower.input_norm = tower.input_norm, Normalised()
    try:
        yield
    finally:
        tower.input_norm = normalise


@torch.inference_mode()
def encoded(model, pruner):
    """The patches kept of each picture, and what the encoder makes of it, [k, D + columns of positions]."""
    images = model.images_of({"pixel_values": pixels(), "image_grid_thw": torch.tensor(GRIDS)})
    with given_normalised(model.visual):
        tokens = model.encode(pruner, images)
    return [row.tolist() for row in model.pruned.session.trace.final], tokens


def kept(model):
    return encoded(model, model.pruned.pruner)[0]


def kept_without_gathering(model):
    """The control: the pruner sees the heads of its own rank alone."""
    original = flowcut_vllm.tower.tensor_model_parallel_all_gather
    flowcut_vllm.tower.tensor_model_parallel_all_gather = lambda heads, dim: heads
    try:
        return kept(model)
    finally:
        flowcut_vllm.tower.tensor_model_parallel_all_gather = original
