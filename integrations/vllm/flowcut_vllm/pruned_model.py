"""What pruned models have in common: images of one call go through the encoder in groups of one budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from flowcut.pruner import Pruner
from flowcut_vllm.processor import BUDGETS
from flowcut_vllm.pruner import budget_of
from flowcut_vllm.tower import PrunedTower


class PrunedImages:
    """Mixed in front of a model whose images all have pixels of one shape.

    Attributes:
        pruned: the pruner on the tower; None where the model is served as it is.
        images_at_once: how many images go through the tower together. vLLM counts an image's kept tokens as the
            encoder's work, which would let many more through than the memory was planned for.
    """

    pruned: PrunedTower | None = None
    images_at_once: int = 1

    def batch_limit(self, vllm_config: Any, unpruned: int) -> int:
        """How many images of so many unpruned tokens fit into vLLM's budget for the encoder."""
        return max(vllm_config.scheduler_config.max_num_encoder_input_tokens // unpruned, 1)

    def encode(self, pruner: Pruner, pixels: Tensor) -> list[Tensor]:
        """Images of one budget [n, 3, H, W] -> for each the tokens [k, D] that the language model gets."""
        raise NotImplementedError

    def embed_multimodal(self, **kwargs: Any) -> Any:
        budgets, pixels = kwargs.pop(BUDGETS, None), kwargs.get("pixel_values")
        if self.pruned is None or pixels is None:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        groups: dict[float, list[int]] = {}
        for image, budget in enumerate(budgets.flatten().tolist()):
            groups.setdefault(budget, []).append(image)
        found: dict[int, Tensor] = {}
        for budget, images in groups.items():
            pruner = replace(self.pruned.pruner, budget=budget_of(budget))
            for first in range(0, len(images), self.images_at_once):
                some = images[first : first + self.images_at_once]
                found.update(zip(some, self.encode(pruner, pixels[some]), strict=True))
        return [found[image] for image in range(len(found))]


def refuse_options(vllm_config: Any) -> None:
    """Raise ValueError, one line, for options of vLLM that pruning does not go with."""
    compilation, lora = vllm_config.compilation_config, vllm_config.lora_config
    if getattr(compilation, "compile_mm_encoder", False):
        raise ValueError("a pruned encoder cannot be compiled; leave compile_mm_encoder out")
    if getattr(compilation, "cudagraph_mm_encoder", False):
        raise ValueError("a pruned encoder cannot run as CUDA graphs; leave cudagraph_mm_encoder out")
    if lora is not None and lora.enable_tower_connector_lora:
        raise ValueError("adapters on a pruned vision tower are not supported; leave enable_tower_connector_lora out")
