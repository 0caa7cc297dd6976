"""LLaVA on Mistral: config, body and head, registered with transformers' Auto classes as "llava_mistral"."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, MistralForCausalLM, MistralModel
from transformers.models.mistral.modeling_mistral import MistralPreTrainedModel

from llava.model.legacy_config import LegacyFields
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel


class LlavaMistralConfig(LegacyFields, MistralConfig):
    """Mistral's config plus LLaVA's `mm_*` fields, which are kept unchanged."""

    model_type = "llava_mistral"


class LlavaMistralModel(LlavaMetaModel, MistralModel):
    config_class = LlavaMistralConfig


class LlavaMistralForCausalLM(LlavaMetaForCausalLM, MistralForCausalLM):  # type: ignore[misc]  # generate takes images
    config_class = LlavaMistralConfig

    def __init__(self, config: Any) -> None:
        # Skips MistralForCausalLM's own constructor, which would build a second body and discard it.
        MistralPreTrainedModel.__init__(self, config)
        self.model = LlavaMistralModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


AutoConfig.register("llava_mistral", LlavaMistralConfig)
AutoModelForCausalLM.register(LlavaMistralConfig, LlavaMistralForCausalLM)
