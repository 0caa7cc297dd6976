"""Visual token pruning inside vLLM, from outside of its tree: a plug-in that vLLM finds by its entry point.

A model whose config has the field `flowcut` is served pruned; every other model is vLLM's own.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version

VLLM = "0.32"
"""The minor version of vLLM whose internals this release was written for."""

MODELS = {
    "LlavaForConditionalGeneration": "flowcut_vllm.llava:PrunedLlava",
    "LlavaNextForConditionalGeneration": "flowcut_vllm.llava_next:PrunedLlavaNext",
    "Qwen2VLForConditionalGeneration": "flowcut_vllm.qwen2_vl:PrunedQwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "flowcut_vllm.qwen2_5_vl:PrunedQwen2_5_VL",
    "Qwen3VLForConditionalGeneration": "flowcut_vllm.qwen3_vl:PrunedQwen3VL",
    "Qwen3VLMoeForConditionalGeneration": "flowcut_vllm.qwen3_vl:PrunedQwen3VLMoe",
}
"""Where the class of each architecture is that is served pruned."""
_NOT_YET = "it has no pruned class here yet"
REFUSED = dict.fromkeys(
    (
        "LlavaNextVideoForConditionalGeneration",
        "LlavaOnevisionForConditionalGeneration",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration",
        "InternVLForConditionalGeneration",
        "Gemma3ForConditionalGeneration",
        "Glm4vForConditionalGeneration",
        "Glm4vMoeForConditionalGeneration",
        "Idefics3ForConditionalGeneration",
        "SmolVLMForConditionalGeneration",
    ),
    _NOT_YET,
)
"""Architectures that are refused where their config names a pruner, and why."""


def register() -> None:
    """Called by vLLM in each of its processes: put these classes in the place of vLLM's own.

    Raises:
        RuntimeError: vLLM is of another minor version.
    """
    import vllm
    from vllm.platforms import current_platform

    check_version(vllm.__version__)
    with warnings.catch_warnings():
        # vLLM allows no version of transformers that the library's own tests run with; this plug-in's tests do.
        warnings.filterwarnings("ignore", message="transformers .* is untested here")
        import flowcut  # noqa: F401
    for name, place in {**MODELS, **{name: f"flowcut_vllm.refused:{name}" for name in REFUSED}}.items():
        vllm.ModelRegistry.register_model(name, place)
    if current_platform.is_cpu():
        from flowcut_vllm.cpu import ask_on_the_cpu

        ask_on_the_cpu()


def check_version(installed: str) -> None:
    """Raise RuntimeError unless a version of vLLM, as it writes it, is supported."""
    if ".".join(installed.split(".")[:2]) != VLLM:
        raise RuntimeError(
            f"llava-flowcut-vllm {version('llava-flowcut-vllm')} works inside vLLM {VLLM}, not {installed}; install "
            f"vLLM {VLLM}, or uninstall llava-flowcut-vllm to use vLLM without pruning"
        )
