"""transformers' own LLaVA-1.5 classes: LlavaModel, and LlavaForConditionalGeneration around it."""

from __future__ import annotations

from functools import partial
from typing import Any

from flowcut.anatomy.reading import Projector, body_and_head, feature_layer, language_model
from flowcut.anatomy.towers import vision_encoder, vision_encoders
from flowcut.hooks.call_context import rows
from flowcut.hooks.parts import Anatomy
from flowcut.hooks.placeholders import Modality, row_spans
from flowcut.hooks.prompt import PromptStage

FAMILY = "LlavaForConditionalGeneration, LlavaModel (transformers)"


def read(model: Any) -> Anatomy | None:
    found = body_and_head(model, {"LlavaForConditionalGeneration"}, {"LlavaModel"})
    if found is None:
        return None
    inner, head = found
    config = inner.config
    encoder = vision_encoder(inner.vision_tower)
    # Without a CLS token, "full" is the way to say that there is none to drop.
    forwarded = int(config.vision_feature_select_strategy == "full" and encoder.num_prefix_tokens > 0)
    encoders = vision_encoders(
        inner.vision_tower,
        num_forwarded_special_tokens=forwarded,
        feature_layer=feature_layer(encoder.depth, config.vision_feature_layer),
        project=Projector(inner.multi_modal_projector, config.vision_feature_layer),
    )
    return Anatomy(
        "llava_hf",
        tuple(encoders),
        **language_model(inner.language_model, head),
        stages=(partial(PromptStage, model=model, inner=inner, modalities=[Images()]),),
    )


class Images(Modality):
    """One span of placeholders per image, its tokens in the order of the patches."""

    def encode(self, session: Any, inner: Any, call: dict[str, Any]) -> Any:
        with rows() as known:
            outputs = self.original(inner, call)
        if known.trace is None:
            return outputs, [], None
        special = session.shape.encoders[0].num_forwarded_special_tokens
        return outputs, row_spans(known.trace, outputs.pooler_output, special), known.trace
