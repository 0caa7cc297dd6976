"""What pruned models have in common: images of one call go through the encoder in groups of one budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from flowcut.pruner import Pruner
from flowcut_vllm.processor import BUDGETS
from flowcut_vllm.pruner import budget_of
from flowcut_vllm.tower import PrunedTower


class PrunedImages:
    """Mixed in front of a model.

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

    def images_of(self, inputs: dict[str, Any]) -> Sequence[Any]:
        """The images of a call, one entry each."""
        return inputs["pixel_values"]

    def encode(self, pruner: Pruner, images: Sequence[Any]) -> list[Tensor]:
        """Images of one budget, as `images_of` gives them -> for each the tokens [k, D] of the language model."""
        raise NotImplementedError

    def embed_multimodal(self, **kwargs: Any) -> Any:
        budgets = kwargs.pop(BUDGETS, None)
        if self.pruned is None or budgets is None:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        images = self.images_of(kwargs)
        groups: dict[float, list[int]] = {}
        for number, budget in enumerate(budgets.flatten().tolist()):
            groups.setdefault(budget, []).append(number)
        found: dict[int, Tensor] = {}
        for budget, numbers in groups.items():
            pruner = replace(self.pruned.pruner, budget=budget_of(budget))
            for first in range(0, len(numbers), self.images_at_once):
                some = numbers[first : first + self.images_at_once]
                encoded = self.encode(pruner, [images[number] for number in some])
                found.update(zip(some, encoded, strict=True))
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
