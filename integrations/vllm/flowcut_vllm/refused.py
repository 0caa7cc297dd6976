"""Architectures that the library prunes and this plug-in does not: refused where the config names a pruner.

Without that, a checkpoint that was trained with one, or a flag that asks for one, would be served unpruned in silence.
Each class is vLLM's own, and everything is stock while the config has no field `flowcut`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vllm.model_executor.models.registry import _MULTIMODAL_MODELS
from vllm.multimodal import MULTIMODAL_REGISTRY

from flowcut_vllm import REFUSED
from flowcut_vllm.pruner import server_pruner


def __getattr__(name: str) -> Any:
    """The class of an architecture in `REFUSED`, made when vLLM asks for it."""
    if name not in REFUSED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, class_name = _MULTIMODAL_MODELS[name]
    stock: Any = getattr(import_module(f"vllm.model_executor.models.{module}"), class_name)
    found = type(name, (stock,), {"__module__": __name__, "__doc__": stock.__doc__})
    factories = stock._processor_factory

    def info(ctx: Any) -> Any:
        if server_pruner(ctx.model_config.hf_config) is not None:
            raise ValueError(
                f"{name} is not served pruned: {REFUSED[name]}. Run it with transformers, or serve it unpruned with "
                "--hf-overrides '{\"flowcut\": null}'"
            )
        return factories.info(ctx)

    register = MULTIMODAL_REGISTRY.register_processor(
        factories.processor, info=info, dummy_inputs=factories.dummy_inputs
    )
    globals()[name] = register(found)
    return globals()[name]
