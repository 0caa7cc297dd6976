"""Conversion of names and configs between LLaVA's checkpoint layout and transformers' (`llava-hf/*` on the Hub).

Names of weights come in three spellings: LLaVA's; that of the files on the Hub; and that of the modules of transformers
5, which it writes for models that were not loaded from the Hub's spelling.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, LlavaConfig, LlavaNextConfig

from llava.model.multimodal_encoder.clip_encoder import KNOWN_TOWERS

# As regular expressions, tried one after the other: from the Hub's and transformers 5's names to LLaVA's. transformers'
# `key_mapping` reads them too, which is why the replacements have no groups.
TO_LLAVA = {
    r"^language_model\.lm_head\.": "lm_head.",
    r"^(?:model\.)?language_model\.(?:model\.)?": "model.",
    r"^(?:model\.)?vision_tower\.(?:vision_model\.)?": "model.vision_tower.vision_tower.",
    r"^(?:model\.)?multi_modal_projector\.linear_1\.": "model.mm_projector.0.",
    r"^(?:model\.)?multi_modal_projector\.linear_2\.": "model.mm_projector.2.",
    r"^(?:model\.)?image_newline$": "model.image_newline",
}
_TO_HUB = {
    r"^lm_head\.": "language_model.lm_head.",
    r"^model\.vision_tower\.vision_tower\.(?:vision_model\.)?": "vision_tower.vision_model.",
    r"^model\.mm_projector\.0\.": "multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "multi_modal_projector.linear_2.",
    r"^model\.image_newline$": "image_newline",
    r"^model\.": "language_model.model.",
}
IMAGE_TOKEN = "image_token_index"  # shows, until the tokenizer is loaded, which tokens transformers added
_CLASSES = {"llama": "LlavaLlamaForCausalLM", "mistral": "LlavaMistralForCausalLM"}
_STRATEGIES = {"default": "patch", "full": "cls_patch"}
# Fields of LLaVA that transformers keeps without reading them, so that a round trip preserves the model.
_KEPT = ("conv_version", "flowcut", "tokenizer_model_max_length", "tokenizer_padding_side", "max_sequence_length")


def to_llava_name(name: str) -> str:
    """LLaVA's name of a weight in a file of transformers' layout, the tower's without the level `vision_model.`."""
    return _rename(name, TO_LLAVA)


def to_hub_name(name: str) -> str:
    """The name that a weight of LLaVA has in the files of `llava-hf/*`."""
    return _rename(name, _TO_HUB)


def _rename(name: str, table: dict[str, str]) -> str:
    return next((re.sub(old, new, name) for old, new in table.items() if re.match(old, name)), name)


def is_transformers_layout(fields: dict[str, Any]) -> bool:
    """Whether the fields of a config.json are those of transformers' own LLaVA classes."""
    names = fields.get("architectures")
    name = names[0] if isinstance(names, list) and names else ""
    return "text_config" in fields or str(name).endswith("ForConditionalGeneration")


def llava_fields(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The config.json of the same model in LLaVA's layout, with the vision tower in the checkpoint.

    fields: the config.json of a `LlavaForConditionalGeneration` or `LlavaNextForConditionalGeneration`.
    folder: of the checkpoint; it has the tower's image processor.

    LLaVA-1.5 pads pictures to a square ("pad"), as it was trained, unless the config says otherwise
    (`image_aspect_ratio`); the image processor on the Hub crops them. Grids are (height, width) in transformers and
    (width, height) in LLaVA; a list that is the same in both orders, as the published one, keeps its order.

    Raises ValueError, one line, for what LLaVA's layout cannot express.
    """
    known = {"llava": LlavaConfig, "llava_next": LlavaNextConfig}
    if fields.get("model_type") not in known:
        kind = (fields.get("architectures") or [fields.get("model_type")])[0]
        raise ValueError(f"{folder} is a {kind}; of transformers' models this loader reads {' and '.join(known)}")
    config_class: Any = known[fields["model_type"]]
    try:
        config = config_class.from_dict(fields)
    except Exception as error:  # transformers validates some fields itself, in many ways
        reason = " ".join(str(error).split())
        raise ValueError(f"the config.json of {folder} is not a model's: {reason}; copy it again") from error
    text, vision = config.text_config, config.vision_config
    for what, given, allowed in (
        ("language model", text.model_type, tuple(_CLASSES)),
        ("vision model", vision.model_type, ("clip_vision_model",)),
        ("projector_hidden_act", config.projector_hidden_act, ("gelu",)),
        ("multimodal_projector_bias", config.multimodal_projector_bias, (True,)),
        ("vision_feature_layer", type(config.vision_feature_layer), (int,)),
    ):
        if given not in allowed:
            raise ValueError(f"{folder} has {what} {given}; LLaVA's classes take {' or '.join(map(str, allowed))}")
    is_next = config.model_type == "llava_next"
    own = {name: value for name, value in text.to_dict().items() if name not in ("model_type", "architectures")}
    if (own.get("pad_token_id") or 0) >= config.image_token_index:
        own["pad_token_id"] = 0  # transformers' own pad token; LLaVA pads with <unk>
    tower = vision.to_dict()
    name = _known_tower(vision)
    return own | {
        "architectures": [_CLASSES[text.model_type]],
        "dtype": fields.get("dtype") or fields.get("torch_dtype") or own.get("dtype"),
        IMAGE_TOKEN: config.image_token_index,
        "use_mm_proj": True,
        "mm_vision_tower": f"openai/{name}" if name else str(folder),
        **({} if name else {"mm_vision_tower_config": tower}),
        "mm_hidden_size": vision.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": _STRATEGIES[config.vision_feature_select_strategy],
        "mm_patch_merge_type": "spatial_unpad" if is_next else "flat",
        "image_aspect_ratio": "anyres" if is_next else fields.get("image_aspect_ratio", "pad"),
        **({"image_grid_pinpoints": swap_grids(config.image_grid_pinpoints)} if is_next else {}),
        "mm_use_im_start_end": bool(fields.get("mm_use_im_start_end", False)),
        "mm_use_im_patch_token": False,
        "unfreeze_mm_vision_tower": True,
        **{field: fields[field] for field in _KEPT if fields.get(field) is not None},
    }


def transformers_config(config: Any, vision: Any, vocab_size: int, image_token: int, pad_token: int) -> Any:
    """The `LlavaConfig` or `LlavaNextConfig` of transformers for a model in LLaVA's layout.

    config: of one of LLaVA's classes. vision: the tower's `CLIPVisionConfig`. vocab_size: with the added rows;
    image_token, pad_token: ids of the two tokens that transformers needs and LLaVA does not have.

    Raises ValueError, one line, for what transformers' classes cannot express.
    """
    merge = getattr(config, "mm_patch_merge_type", None) or "flat"
    for what, given, allowed in (
        ("mm_projector_type", getattr(config, "mm_projector_type", "linear"), ("mlp2x_gelu",)),
        ("mm_patch_merge_type", merge, ("flat", "spatial_unpad")),
    ):
        if given not in allowed:
            raise ValueError(f"{what} {given} has no counterpart in transformers; it knows {' and '.join(allowed)}")
    text = {name: value for name, value in config.to_dict().items() if not name.startswith(("mm_", "image_"))}
    family = "mistral" if "Mistral" in type(config).__name__ else "llama"
    text |= {"model_type": family, "vocab_size": vocab_size, "pad_token_id": pad_token}
    text = {name: value for name, value in text.items() if name not in ("architectures", *_KEPT)}
    select = getattr(config, "mm_vision_select_feature", "patch")
    patches = (vision.image_size // vision.patch_size) ** 2
    shared = {
        "vision_config": vision.to_dict() | {"model_type": "clip_vision_model"},
        "text_config": text,
        IMAGE_TOKEN: image_token,
        "image_seq_length": patches + (select == "cls_patch"),
        "projector_hidden_act": "gelu",
        "vision_feature_select_strategy": next(name for name, value in _STRATEGIES.items() if value == select),
        "vision_feature_layer": config.mm_vision_select_layer,
        "multimodal_projector_bias": True,
        "image_aspect_ratio": getattr(config, "image_aspect_ratio", "square"),
        "mm_use_im_start_end": getattr(config, "mm_use_im_start_end", False),
        "tie_word_embeddings": False,
        **{field: getattr(config, field) for field in _KEPT if getattr(config, field, None) is not None},
    }
    if merge == "flat":
        return LlavaConfig(architectures=["LlavaForConditionalGeneration"], **shared)
    grids = swap_grids(config.image_grid_pinpoints)
    return LlavaNextConfig(architectures=["LlavaNextForConditionalGeneration"], image_grid_pinpoints=grids, **shared)


def swap_grids(pinpoints: Any) -> list[list[int]]:
    """Exchange width and height of every canvas; unchanged where that gives the same canvases."""
    grids = [list(pair) for pair in (ast.literal_eval(pinpoints) if isinstance(pinpoints, str) else pinpoints)]
    swapped = [pair[::-1] for pair in grids]
    return grids if sorted(swapped) == sorted(grids) else swapped


def _known_tower(vision: Any) -> str | None:
    """The name of the published tower with exactly this architecture, if there is one."""
    for name, settings in KNOWN_TOWERS.items():
        published = CLIPVisionConfig(**settings)
        if all(getattr(vision, field) == getattr(published, field) for field in settings):
            return name
    return None
