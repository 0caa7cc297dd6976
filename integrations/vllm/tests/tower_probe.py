"""Run inside of vLLM's workers: which patches a tower keeps of two pictures of noise, on each rank."""

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


@torch.inference_mode()
def kept(model):
    model.visual.input_norm = Normalised()
    _, trace = model.pruned.forward(model.pruned.pruner, lambda: model.visual(pixels(), grid_thw=GRIDS))
    return [row.tolist() for row in trace.final]


def kept_without_gathering(model):
    """The control: the pruner sees the heads of its own rank alone."""
    original = flowcut_vllm.tower.tensor_model_parallel_all_gather
    flowcut_vllm.tower.tensor_model_parallel_all_gather = lambda heads, dim: heads
    try:
        return kept(model)
    finally:
        flowcut_vllm.tower.tensor_model_parallel_all_gather = original
