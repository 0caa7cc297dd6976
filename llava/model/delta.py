"""Delta checkpoints: a LLaVA's weights minus those of its base model, which the user adds again.

Vicuna's and the first LLaVA's weights were published as deltas. Rows that the base's embeddings do not have, and parts
that it lacks (projector, vision tower), are unchanged in a delta.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from llava.model.checkpoint import read_weights

FIELD = "delta_of"  # in a delta's config.json; older deltas are recognised by their folder's name only


def is_delta(fields: dict[str, Any], name: str) -> bool:
    return FIELD in fields or "delta" in name.lower()


def shift(weights: dict[str, Tensor], base: Path, sign: int) -> None:
    """Add (`sign` 1) the base's weights to a delta's, in place; or subtract them (-1) from a whole model's.

    Raises ValueError, one line, when the base has another size or lacks weights.
    """
    rest = {name for name in weights if not _is_vision(name)}
    for name, tensor in read_weights(base):
        if name.endswith("rotary_emb.inv_freq"):
            continue
        target = weights.get(name)
        if target is None or target.shape[1:] != tensor.shape[1:] or len(target) < len(tensor):
            here = "nothing of that name" if target is None else f"shape {tuple(target.shape)}"
            raise ValueError(
                f"{base} is another base: its {name} has shape {tuple(tensor.shape)}, the checkpoint {here}; give the "
                f"language model that this checkpoint was trained from"
            )
        target[: len(tensor)] += sign * tensor.to(device=target.device, dtype=target.dtype)
        rest.discard(name)
    if rest:
        raise ValueError(f"{base} lacks {len(rest)} weights of a whole language model, such as {min(rest)}")


def _is_vision(name: str) -> bool:
    return any(part in name for part in ("mm_projector.", "vision_tower.", "image_newline"))
