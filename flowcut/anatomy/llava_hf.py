"""transformers' own LLaVA-1.5 classes: LlavaModel, and LlavaForConditionalGeneration around it."""

from __future__ import annotations

from typing import Any

from flowcut.anatomy import Anatomy, body_and_head, decoder_of, feature_layer, projector, vision_encoder
from flowcut.encoder import rows
from flowcut.prompt import Modality, PromptStage, row_units

FAMILY = "LlavaForConditionalGeneration, LlavaModel (transformers)"


def read(model: Any) -> Anatomy | None:
    found = body_and_head(model, {"LlavaForConditionalGeneration"}, {"LlavaModel"})
    if found is None:
        return None
    inner, head = found
    config = inner.config
    reserved = int(config.vision_feature_select_strategy == "full")
    encoder = vision_encoder(inner.vision_tower)
    read_after = feature_layer(encoder.depth, config.vision_feature_layer)
    if not encoder.prefix:
        reserved = 0  # "full" is then the way to say that there is no CLS to drop
    project = projector(inner.multi_modal_projector, config.vision_feature_layer)
    encoder = vision_encoder(inner.vision_tower, reserved=reserved, feature_layer=read_after, project=project)
    return Anatomy(
        "llava_hf",
        (encoder,),
        decoder_of(inner.language_model, head),
        stages=(lambda handle: PromptStage(handle, model, inner, [Images()]),),
    )


class Images(Modality):
    """One unit of placeholders per image, its tokens in the order of the patches."""

    def encode(self, handle: Any, inner: Any, call: dict[str, Any]) -> Any:
        with rows() as known:
            outputs = self.original(inner, call)
        if known.trace is None:
            return outputs, [], None
        reserved = handle.anatomy.encoders[0].reserved
        return outputs, row_units(known.trace, outputs.pooler_output, reserved), known.trace
