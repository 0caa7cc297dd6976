"""The formulas against torch's own counter on real modules, and against published figures."""

import pytest
import torch
from hosts import PATCHES, SAMPLES, HFLlava, HFQwen2VL
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig

from flowcut import FlowCut, ToMe, attach
from flowcut.cost import Cost, cost_of, decode_flops, merging_encoder_flops, prefill_flops

HOST = HFLlava()
CLIP_LARGE = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
)
VICUNA = LlamaConfig()  # transformers' defaults are Llama-7B's


def counted(model, inputs) -> Cost:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.model(**inputs)
    counts = counter.get_flop_counts()
    parts = [sum(counts[f"LlavaModel.{name}"].values()) for name in ("vision_tower", "multi_modal_projector")]
    return Cost(*parts, prefill=sum(counts["LlavaModel.language_model"].values()))


# Sizes as keys make heads wider, by as much as these tiny ones are wide, so that is left out.
@pytest.mark.parametrize("pruner", [FlowCut(PATCHES), FlowCut(10), ToMe(10, proportional=False)], ids=str)
def test_formulas_against_the_counter(pruner):
    model = HOST.build(implementation="eager")
    sample = SAMPLES[0]
    with attach(model, pruner) as handle:
        counter = counted(model, HOST.inputs([sample], "left"))
    text = len(sample.prompt) - 1
    config = model.config
    path, left = handle.trace.path(), [counts[0] for counts in handle.trace.leaving]
    inside = left if handle.trace.inside else None
    formula = cost_of(config.vision_config, config.text_config, text, path, mlp_path=inside)
    assert formula.encoder == pytest.approx(counter.encoder, rel=0.01)
    assert formula.projector == counter.projector
    assert formula.prefill == pytest.approx(counter.prefill, rel=0.01)
    assert formula.total == formula.encoder + formula.projector + formula.prefill


def test_llava_7b_as_published():
    """The field prints 3.82 T multiply-accumulates for 576 visual tokens, 0.382 TFLOPs for CLIP-L, 8.88 in all."""
    assert prefill_flops(VICUNA, [576] * 32) / 2 == pytest.approx(3.82e12, rel=2e-3)
    cost = cost_of(CLIP_LARGE, VICUNA, text_tokens=62)
    assert cost.encoder == pytest.approx(0.382e12, rel=2e-3)
    assert cost.projector == pytest.approx(0.024e12, rel=2e-2)
    assert cost.total == pytest.approx(8.88e12, rel=1e-3)


@pytest.mark.parametrize("budget", [PATCHES, 3])
def test_a_merging_encoder_against_the_counter(budget):
    host = HFQwen2VL()
    model = host.build(implementation="eager")
    media = {name: values for name, values in host.media(SAMPLES[:1]).items() if "video" not in name}
    with attach(model, FlowCut(budget)) as handle, torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.model.get_image_features(**media)
    trace = handle.trace
    assert (trace.leaving[-1] < trace.entering[0]) == (budget == 3)
    flops = merging_encoder_flops(model.config.vision_config, trace.path(), trace.leaving[-1][0])
    assert flops == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_decoding_against_the_counter():
    model = HOST.build(implementation="eager").model.language_model
    ids = torch.arange(1, 15)[None]
    with torch.no_grad():
        cache = model(input_ids=ids[:, :10], use_cache=True).past_key_values
        with FlopCounterMode(display=False) as counter:
            for step in range(10, 14):
                model(input_ids=ids[:, step : step + 1], past_key_values=cache, use_cache=True)
    layers = model.config.num_hidden_layers
    assert decode_flops(model.config, [10] * layers, 4) == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert decode_flops(model.config, [0] * layers, 1) == prefill_flops(model.config, [1] * layers)


def test_tokens_dropped_inside_the_language_model_are_not_charged():
    vision, language = CLIPVisionConfig(), LlamaConfig(num_hidden_layers=4)
    cut = cost_of(vision, language, 10, visual_tokens=[100, 100, 20, 20])
    assert cut.prefill == prefill_flops(language, [110, 110, 30, 30])
    assert cut.projector == cost_of(vision, language, 10, visual_tokens=100).projector
