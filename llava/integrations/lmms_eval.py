"""What lmms-eval finds by the entry point `lmms_eval.models`: that there is a model `llava_flowcut`.

lmms-eval calls `manifests` whenever it starts, so this imports nothing heavy; the model itself is in
`llava.integrations.lmms_eval_model`.
"""

from __future__ import annotations

from typing import Any

MODEL = "llava_flowcut"


def manifests() -> list[Any]:
    """One lmms-eval `ModelManifest`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(MODEL, simple_class_path="llava.integrations.lmms_eval_model.LlavaFlowcut")]
