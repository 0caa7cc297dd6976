"""transformers' Video-LLaVA: one tower for images and one for videos, whose frames are encoded one by one.

No code was published for FlowCut in Video-LLaVA; this follows the paper (table 4: of 8 frames x 256 patches 32 each
are kept, in the encoder) with the formulas of the CLIP encoder. The frames of a video drop the same number, the largest
of any of them, as the tiles of an image do. In videos the model passes each frame's CLS token on, which counts in the
budget. Both towers are CLIP in layout, as transformers builds LanguageBind's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from flowcut.anatomy.reading import Projector, body_and_head, feature_layer, language_model
from flowcut.anatomy.towers import vision_encoders
from flowcut.hooks.call_context import rows
from flowcut.hooks.parts import Anatomy
from flowcut.hooks.placeholders import Modality, row_spans
from flowcut.hooks.prompt import PromptStage

FAMILY = "VideoLlavaForConditionalGeneration, VideoLlavaModel (transformers)"


def read(model: Any) -> Anatomy | None:
    found = body_and_head(model, {"VideoLlavaForConditionalGeneration"}, {"VideoLlavaModel"})
    if found is None:
        return None
    inner, head = found
    config = inner.config
    read_after = feature_layer(config.vision_config.num_hidden_layers, config.vision_feature_layer)
    full = int(config.vision_feature_select_strategy == "full")
    read: dict[str, Any] = {
        "feature_layer": read_after,
        "project": Projector(inner.multi_modal_projector, config.vision_feature_layer),
    }
    images, *more = vision_encoders(inner.image_tower, num_forwarded_special_tokens=full, **read)
    videos = vision_encoders(inner.video_tower, num_forwarded_special_tokens=1, **read)
    return Anatomy(
        "video_llava_hf",
        (images, *videos, *more),
        **language_model(inner.language_model, head),
        stages=(partial(PromptStage, model=model, inner=inner, modalities=[Images(), Videos()]),),
    )


class Images(Modality):
    def __init__(self) -> None:
        super().__init__(former="pixel_values_images")

    def encode(self, session: Any, inner: Any, call: dict[str, Any]) -> Any:
        with rows() as known:
            outputs = self.original(inner, call)
        if known.trace is None:
            return outputs, [], None
        special = session.shape.encoders[0].num_forwarded_special_tokens
        return outputs, row_spans(known.trace, outputs.pooler_output, special), known.trace


class Videos(Modality):
    """One span of placeholders per frame."""

    def __init__(self) -> None:
        more = ("vision_feature_layer",)
        super().__init__("video", "get_video_features", "pixel_values_videos", more, "video_token_id")

    def encode(self, session: Any, inner: Any, call: dict[str, Any]) -> Any:
        videos, frames = call["pixel_values_videos"].shape[:2]
        with rows([video for video in range(videos) for _ in range(frames)]) as known:
            outputs = self.original(inner, call)
        if known.trace is None:
            return outputs, [], None
        return outputs, row_spans(known.trace, outputs.pooler_output, 1), known.trace
