"""The entry point `lmms_eval.models`, which registers the model `llava_flowcut` with lmms-eval.

lmms-eval calls `manifests` at every start, so this module imports nothing heavy; the model itself is in
`llava.integrations.lmms_eval_model`.
"""

from __future__ import annotations

from typing import Any

MODEL = "llava_flowcut"


def manifests() -> list[Any]:
    """One lmms-eval `ModelManifest`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(MODEL, simple_class_path="llava.integrations.lmms_eval_model.LlavaFlowcut")]
