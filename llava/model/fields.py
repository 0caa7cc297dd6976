"""Checks of a config.json in LLaVA's layout, before anything is built from it.

A value that this code base does not know would change what the model gets to see, silently; it is an error here.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava.mm_utils import Size

GRIDS = "[(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]"  # LLaVA-1.6's
MOST_LAYERS = 1000
# The values that change how pictures are prepared or arranged; None stands for a field that is absent.
KNOWN: dict[str, tuple[Any, ...]] = {
    "image_aspect_ratio": (None, "square", "pad", "anyres"),
    "mm_patch_merge_type": (None, "flat", "spatial", "spatial_unpad"),
    "mm_vision_select_feature": (None, "patch", "cls_patch"),
    "mm_resampler_type": (None,),
    "s2": (None, False),
    "tokenizer_padding_side": (None, "left", "right"),
}
_COUNTS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "max_position_embeddings", "mm_hidden_size", "max_sequence_length", "tokenizer_model_max_length"),
)
_TYPES: dict[str, tuple[type, str]] = {
    **dict.fromkeys(_COUNTS, (int, "a whole number above 0")),
    "mm_vision_select_layer": (int, "a whole number"),
    **dict.fromkeys(
        ("mm_use_im_start_end", "mm_use_im_patch_token", "unfreeze_mm_vision_tower"), (bool, "true or false")
    ),
    **dict.fromkeys(("model_type", "mm_vision_tower", "mm_projector_type", "conv_version"), (str, "text")),
}


def check_fields(fields: Mapping[str, Any], where: object) -> None:
    """Raise ValueError, one line, for values of the wrong type, unknown ones, and fields that a LLaVA has to have.

    where: the checkpoint, for messages.
    """

    def refuse(name: str, wanted: str) -> None:
        given = str(fields.get(name, "absent"))[:80]
        raise ValueError(f"{name} in the config.json of {where} is {given}; it has to be {wanted}")

    for name, (kind, wanted) in _TYPES.items():
        value = fields.get(name)
        wrong = value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool)))
        if wrong or (name in _COUNTS and value is not None and value < 1):
            refuse(name, wanted)
    if (fields.get("num_hidden_layers") or 1) > MOST_LAYERS:
        refuse("num_hidden_layers", f"at most {MOST_LAYERS}")
    architectures = fields.get("architectures")
    if architectures is not None and not (isinstance(architectures, list) and all(map(_is_text, architectures))):
        refuse("architectures", "a list of class names")
    for name, known in KNOWN.items():
        if not any(type(fields.get(name)) is type(one) and fields.get(name) == one for one in known):
            refuse(name, " or ".join("absent" if one is None else str(one).lower() for one in known))
    method = fields.get("quantization_config")
    method = method.get("quant_method", "an unknown method") if isinstance(method, Mapping) else method
    if method not in (None, "bitsandbytes"):
        raise ValueError(
            f"the weights of {where} are quantised by {str(method)[:40]}, which LLaVA's classes do not read; give the "
            f"unquantised checkpoint, and load_4bit or load_8bit if it has to be small"
        )
    if fields.get("mm_vision_tower"):
        if fields.get("mm_hidden_size") is None:
            refuse("mm_hidden_size", "the width of the vision tower, 1024 for CLIP ViT-L")
        if fields.get("mm_vision_select_layer") is None:
            refuse("mm_vision_select_layer", "the vision layer of the features, -2 for LLaVA-1.5")
    if fields.get("image_aspect_ratio") == "anyres":
        parse_grids(fields.get("image_grid_pinpoints"), f"image_grid_pinpoints in the config.json of {where}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def parse_grids(text: Any, where: str) -> list[Size]:
    """Canvas sizes (width, height) from the text of a list of pairs, or from such a list.

    Raises ValueError, one line, that begins with `where`.
    """
    advice = f'give a list of (width, height), such as "{GRIDS}"'
    try:
        grids = [tuple(pair) for pair in (ast.literal_eval(text) if isinstance(text, str) else text)]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"{where} {str(text)[:80]} is not a list of pairs; {advice}") from error
    right = [len(pair) == 2 and all(type(side) is int and side > 0 for side in pair) for pair in grids]
    if not grids or not all(right):
        raise ValueError(f"{where} {str(text)[:80]} is not made of pairs of whole numbers above 0; {advice}")
    return [(width, height) for width, height in grids]
