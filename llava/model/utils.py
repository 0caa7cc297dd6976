"""Updates of old configs."""

from __future__ import annotations

import json
from pathlib import Path

from llava.model.checkpoint import local_folder, read_config


def auto_upgrade(config: str) -> bool:
    """Set the model type of a checkpoint of the first LLaVA, whose config.json says plain Llama; asks for confirmation.

    config: the checkpoint's folder. Returns whether the file was changed. This is for other programs: the loader here
    uses the field `mm_vision_tower`.
    """
    folder = local_folder(config)
    fields = read_config(folder)
    if not fields.get("mm_vision_tower") or "llava" in str(fields.get("model_type")):
        return False
    kind = fields.get("model_type")
    print(f"{folder} is a LLaVA checkpoint of the first version; its config.json has model_type {kind!r}.")
    if input("Write 'llava' there? [y/N] ").strip().lower() not in ("y", "yes"):
        return False
    fields |= {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]}
    Path(folder, "config.json").write_text(json.dumps(fields, indent=2) + "\n", "utf-8")
    return True
