"""The formulas against torch's own counter on real modules, and against published figures."""

import pytest
import torch
import transformers
from hosts import (
    PATCHES,
    SAMPLES,
    TEXT,
    VISION,
    HFGemma3,
    HFGlm4v,
    HFGlm4vMoe,
    HFInternVL,
    HFLlava,
    HFLlavaNext,
    HFQwen2VL,
    HFQwen3VL,
    HFQwen3VLMoe,
    HFQwen35,
    HFQwen35Moe,
    HFSmolVLM,
    Sample,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaModel, LlavaConfig
from transformers.models.glm4v.configuration_glm4v import Glm4vVisionConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5VisionConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig, Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from flowcut import FastV, FlowCut, PyramidDrop, SparseVLM, ToMe, attach
from flowcut.bench.geometries import GEOMETRIES
from flowcut.bench.replay import Replay
from flowcut.compat import CACHE
from flowcut.cost import (
    Cost,
    cost_of,
    decode_flops,
    encoder_flops,
    kv_cache_bytes,
    merging_encoder_flops,
    prefill_flops,
)

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


MISTRAL = LlamaConfig(intermediate_size=14336, num_key_value_heads=8, num_hidden_layers=4)  # a slice of Mistral-7B


MERGING = [Qwen3VLVisionConfig(), Qwen3_5VisionConfig(), Glm4vVisionConfig()]


def counted(model, inputs) -> Cost:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.model(**inputs)
    counts, name = counter.get_flop_counts(), type(model.model).__name__
    parts = [sum(counts[f"{name}.{part}"].values()) for part in ("vision_tower", "multi_modal_projector")]
    return Cost(*parts, prefill=sum(counts[f"{name}.language_model"].values()))


def on_meta(model_class, config, implementation):
    """A model of full size that takes no memory."""
    with torch.device("meta"):
        model = model_class(config).eval()
    model.set_attn_implementation(implementation)
    return model


def total(model, **inputs) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops()


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
    inside = left if handle.trace.merged_before_mlp else None
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
@pytest.mark.parametrize("host", [HFQwen2VL(), HFQwen3VL(), HFGlm4v()], ids=lambda host: host.name)
def test_a_merging_encoder_against_the_counter(host, budget):
    model = host.build(implementation="eager")
    media = {name: values for name, values in host.media(SAMPLES[:1]).items() if "video" not in name}
    with attach(model, FlowCut(budget)) as handle, torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.model.get_image_features(**media)
    trace = handle.trace
    assert (trace.leaving[-1] < trace.entering[0]) == (budget == 3)
    flops = merging_encoder_flops(model.config.vision_config, trace.path(), trace.leaving[-1][0])
    assert flops == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(
    ("host", "more"),
    [(HFQwen3VLMoe(), {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]}), (HFGlm4vMoe(), {})],
    ids=["qwen3_vl_moe", "glm4v_moe"],
)
def test_experts_against_the_counter(host, more):
    """Each token goes through two of four experts: in every second layer but one, and after the first, with a third."""
    config = host.config_class()(text_config=host.text_config() | more).text_config
    model = AutoModel.from_config(config).eval()
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    counter = total(model, input_ids=torch.arange(1, 31)[None], use_cache=False)
    assert prefill_flops(config, [30] * config.num_hidden_layers) == pytest.approx(counter, rel=0.01)


@pytest.mark.parametrize("host", [HFQwen35(), HFQwen35Moe()], ids=lambda host: host.name)
def test_layers_without_attention(host):
    """Linear maps and experts against the counter, convolution and recurrence by hand, the states as they are kept."""
    config = host.config_class()(text_config=host.text_config()).text_config
    model = AutoModel.from_config(config).eval()
    model.set_attn_implementation("eager")
    if "moe" in host.name:
        model.set_experts_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        cache = model(input_ids=torch.arange(1, 31)[None], use_cache=True)[CACHE]
    counts = counter.get_flop_counts()
    maps = [
        sum(found.values())
        for name, found in counts.items()
        if "layers." in name
        and name.rsplit(".", 1)[1] in ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj")
    ]
    whole = [sum(found.values()) for name, found in counts.items() if name.endswith((".mlp", ".self_attn"))]
    convolution, recurrence = 4 * (16 + 16 + 32), 3 * 4 * 8 * 8
    expected = sum(maps) + sum(whole) + 3 * 30 * 2 * (convolution + recurrence)
    assert prefill_flops(config, [30] * 4) == pytest.approx(expected, rel=0.01)
    assert decode_flops(config, [0] * 4, 1) == prefill_flops(config, [1] * 4)
    states = [state for layer in cache.layers[:3] for state in (layer.conv_states[0], layer.recurrent_states[0])]
    kept = sum(state.numel() * state.element_size() for state in states)
    keys = cache.layers[3].keys
    assert kv_cache_bytes(config, [30] * 4, 4) == kept + 2 * keys.numel() * keys.element_size()


CELLS = {
    "internvl": (HFInternVL(), {"patches_per_token": 4}),
    "smolvlm": (HFSmolVLM(), {"patches_per_token": 4, "prefix": 0, "projector_layers": 1}),
    "gemma3": (HFGemma3(), {"patches_per_token": 4, "prefix": 0, "projector_layers": 1, "pooled": True}),
}


@pytest.mark.parametrize("family", CELLS)
@pytest.mark.parametrize("budget", [1000, 9])
def test_towers_whose_patches_become_cells_against_the_counter(family, budget):
    host, fields = CELLS[family]
    model = host.build(implementation="eager")
    with attach(model, FlowCut(budget)) as handle, torch.no_grad(), FlopCounterMode(display=False) as counter:
        outputs = model.model.get_image_features(**host.media(SAMPLES[1:2]))
    trace, tokens = handle.trace, sum(part.shape[:-1].numel() for part in outputs.pooler_output)
    paths = list(zip(*trace.computed, strict=True))
    assert (trace.leaving[-1] < trace.entering[0]) == (budget == 9)
    if family == "gemma3" and budget == 9:  # cells fill whole rasters of the projector
        tokens = 36
    cost = cost_of(model.config.vision_config, model.config.text_config, 0, paths, projected=tokens, **fields)
    assert cost.encoder + cost.projector == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_decoding_against_the_counter():
    model = HOST.build(implementation="eager").model.language_model
    ids = torch.arange(1, 15)[None]
    layers = model.config.num_hidden_layers
    with torch.no_grad():
        cache = model(input_ids=ids[:, :10], use_cache=True)[CACHE]
        assert bytes_of(cache) == kv_cache_bytes(model.config, [10] * layers, 4)
        with FlopCounterMode(display=False) as counter:
            for step in range(10, 14):
                model(input_ids=ids[:, step : step + 1], **{CACHE: cache}, use_cache=True)
    assert bytes_of(cache) == kv_cache_bytes(model.config, [14] * layers, 4)
    assert decode_flops(model.config, [10] * layers, 4) == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert decode_flops(model.config, [0] * layers, 1) == prefill_flops(model.config, [1] * layers)


def test_tokens_dropped_inside_the_language_model_are_not_charged():
    vision, language = CLIPVisionConfig(), LlamaConfig(num_hidden_layers=4)
    cut = cost_of(vision, language, 10, visual_tokens=[100, 100, 20, 20])
    assert cut.prefill == prefill_flops(language, [110, 110, 30, 30])
    assert cut.projector == cost_of(vision, language, 10, visual_tokens=100).projector


@pytest.mark.parametrize(("geometry", "tokens"), [("internvl3-8b", 256), ("smolvlm2-2.2b", 81), ("gemma3-4b", 256)])
def test_towers_and_projectors_of_published_size(geometry, tokens):
    """Tower and projector by themselves, because how many tiles are no padding cannot be told without their pixels."""
    sizes = GEOMETRIES[geometry]
    config = getattr(transformers, f"{sizes.family}Config")(
        vision_config=sizes.vision, text_config={**sizes.text, "num_hidden_layers": 2}, **sizes.fields
    )
    model = on_meta(getattr(transformers, f"{sizes.family}Model"), config, "sdpa")
    vision, text = model.config.vision_config, model.config.text_config
    pixels = torch.zeros(1, 3, sizes.side, sizes.side, device="meta")
    if sizes.family == "SmolVLM":
        tower, projector, patches = model.vision_model, model.connector, 729
        states = torch.zeros(1, patches, vision.hidden_size, device="meta")
        counted = total(tower.embeddings.patch_embedding, input=pixels) + total(tower.encoder, inputs_embeds=states)
        counted += total(projector, image_hidden_states=states)
        language = model.text_model
    else:
        counted, language = total(model.vision_tower, pixel_values=pixels), model.language_model
        shuffled = {"internvl3-8b": (256, 4 * 1024), "gemma3-4b": (4096, 1152)}[geometry]
        counted += _of(model.multi_modal_projector, torch.zeros(1, *shuffled, device="meta"))
    fields = {"patches_per_token": sizes.patches_per_token, "pooled": sizes.pooled, "prefix": sizes.prefix}
    cost = cost_of(vision, text, 62, projector_layers=sizes.projector, **fields)
    assert cost.encoder + cost.projector == pytest.approx(counted, rel=0.001)
    length = 62 + tokens
    mask = torch.zeros(1, 1, length, length, device="meta")
    masks = {"full_attention": mask, "sliding_attention": mask} if sizes.family == "Gemma3" else mask
    embeds = torch.zeros(1, length, text.hidden_size, device="meta")
    assert cost.prefill == pytest.approx(
        total(language, inputs_embeds=embeds, attention_mask=masks, use_cache=False), rel=0.001
    )


def _of(module, states) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(states)
    return counter.get_total_flops()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
class TestFullSize:
    """The modules that the formulas are about, as large as published."""

    def test_clip_large(self, implementation):
        model = on_meta(CLIPVisionModel, CLIP_LARGE, implementation)
        counter = total(model, pixel_values=torch.zeros(1, 3, 336, 336, device="meta"))
        assert cost_of(CLIP_LARGE, VICUNA, 62).encoder == pytest.approx(counter, rel=0.001)

    def test_clip_large_with_the_counts_of_a_trace(self, implementation):
        """A narrow encoder decides how many go where; one of full width then drops as many."""
        torch.manual_seed(0)
        narrow = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
        small = CLIPVisionModel(CLIPVisionConfig(**{**CLIP_LARGE.to_dict(), **narrow})).eval()
        for name, parameter in small.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.data *= 25
        with torch.no_grad(), attach(small, FlowCut(64)) as handle:
            small(torch.randn(1, 3, 336, 336))
        path = handle.trace.path()
        assert len(set(path)) > 10
        model = on_meta(CLIPVisionModel, CLIP_LARGE, implementation)
        with attach(model, Replay.of(handle, torch.device("meta"))) as again:
            counter = total(model, pixel_values=torch.zeros(1, 3, 336, 336, device="meta"))
        assert again.trace.path() == path
        assert cost_of(CLIP_LARGE, VICUNA, 62, path).encoder == pytest.approx(counter, rel=0.001)
        assert counter < 0.6 * cost_of(CLIP_LARGE, VICUNA, 62).encoder

    @pytest.mark.parametrize(("config", "visual"), [(VICUNA, 576), (VICUNA, 64), (MISTRAL, 64)])
    def test_language_models_of_7b(self, config, visual, implementation):
        length = 62 + visual
        embeddings = torch.zeros(1, length, config.hidden_size, device="meta")
        mask = torch.zeros(1, 1, length, length, device="meta")
        model = on_meta(LlamaModel, config, implementation)
        counter = total(model, inputs_embeds=embeddings, attention_mask=mask, use_cache=False)
        assert cost_of(CLIP_LARGE, config, 62, visual_tokens=visual).prefill == pytest.approx(counter, rel=0.001)

    @pytest.mark.parametrize("config", MERGING, ids=lambda config: config.model_type)
    def test_merging_encoders(self, config, implementation):
        """Of a picture of 28 x 40 patches. What the sizes of pictures decide is computed ahead, not on meta."""
        model, grid = on_meta(AutoModel.from_config, config, implementation), torch.tensor([[1, 28, 40]])
        if hasattr(model, "embeddings"):  # adds positions to patches, without a product
            model.embeddings.forward = lambda patches, *_: patches
        patches = torch.zeros(1120, 3 * 2 * config.patch_size**2, device="meta")
        ahead = {
            "cu_seqlens": torch.tensor([0, 1120]),
            "position_ids": torch.zeros(1120, 2, dtype=torch.long, device="meta"),
            "interp_indices": torch.zeros(1120, 4, dtype=torch.long, device="meta"),
            "interp_weights": torch.zeros(1120, 4, device="meta"),
        }
        counter = total(model, hidden_states=patches, grid_thw=grid, **ahead)
        flops = merging_encoder_flops(config, [1120] * config.depth, 1120)
        assert flops == pytest.approx(counter, rel=0.001)

    def test_the_language_model_of_qwen3_vl(self, implementation):
        config = Qwen3VLTextConfig(**GEOMETRIES["qwen3-vl-8b"].text | {"num_hidden_layers": 2})
        model = on_meta(Qwen3VLTextModel, config, implementation)
        counter = total(
            model,
            inputs_embeds=torch.zeros(1, 300, config.hidden_size, device="meta"),
            attention_mask=torch.zeros(1, 1, 300, 300, device="meta"),
            position_ids=torch.zeros(3, 1, 300, dtype=torch.long, device="meta"),
            use_cache=False,
        )
        assert prefill_flops(config, [300] * 2) == pytest.approx(counter, rel=0.001)


def test_the_projector_at_full_size():
    with torch.device("meta"):
        projector = LlavaMultiModalProjector(LlavaConfig(vision_config=CLIP_LARGE, text_config=VICUNA))
    counter = total(projector, image_features=torch.zeros(1, 576, 1024, device="meta"))
    assert cost_of(CLIP_LARGE, VICUNA, 62).projector == counter


def bytes_of(cache) -> int:
    return sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))


@pytest.mark.parametrize(
    ("host", "pruner"),
    [
        (HOST, FlowCut(PATCHES)),
        (HOST, FlowCut(10)),
        (HOST, FastV(20, layer=2)),
        (HOST, SparseVLM(20, layers=(0, 1, 2), keep=(20, 9, 3))),
        (HOST, PyramidDrop(18, layers=(1, 2, 3))),
        (HFLlavaNext(), FlowCut(8)),
    ],
    ids=lambda value: str(value) if isinstance(value, FlowCut | FastV) else type(value).__name__,
)
def test_the_cache_of_a_pruned_model(host, pruner):
    """Keys are grouped two by two in these; cuts inside leave longer caches in the layers in front."""
    model, sample = host.build(), Sample([1, 5, -200, 7, 8, 9], [0])
    with torch.no_grad(), attach(model, pruner) as handle:
        cache = model(**host.inputs([sample], "left"), use_cache=True)[CACHE]
    layers, trace = model.config.text_config.num_hidden_layers, handle.trace
    visual = trace.language.path() if trace.language else [len(trace.tokens[0])] * layers
    assert (len(set(visual)) > 1) == (trace.language is not None)
    assert bytes_of(cache) == kv_cache_bytes(model.config.text_config, [5 + count for count in visual], 4)


def test_a_cache_in_other_precisions():
    assert kv_cache_bytes(VICUNA, [1] * 32) == 32 * 2 * 4096 * 2  # half a MiB for each token of a 7B model
    assert kv_cache_bytes(MISTRAL, [1] * 32) == kv_cache_bytes(VICUNA, [1] * 32) / 4
    assert kv_cache_bytes(VICUNA, [5, 3], 0.5) == (5 + 3) * 2 * 4096 / 2
    with pytest.raises(ValueError, match="bytes_per_value=0 is not above 0"):
        kv_cache_bytes(VICUNA, [1], 0)


def test_tokens_dropped_inside_the_language_model_against_the_counter():
    model = HOST.build(implementation="eager")
    with attach(model, FastV(20, layer=2)) as handle:
        counter = counted(model, HOST.inputs(SAMPLES[:1], "left"))
    visual = handle.trace.language.path()
    assert visual[0] > visual[-1]
    formula = cost_of(model.config.vision_config, model.config.text_config, 5, visual_tokens=visual)
    # The score of the last token against all keys is not in the formula; in so narrow a model it is half a percent.
    assert formula.prefill == pytest.approx(counter.prefill, rel=0.01)
    assert formula.projector == counter.projector


def test_tiles_against_the_counter():
    """Five tiles; tokens of padding and line ends come and go behind the projector."""
    host, budget = HFLlavaNext(), 14
    model = host.build(implementation="eager")
    with attach(model, FlowCut(budget)) as handle:
        counter = counted(model, host.inputs([Sample([1, -200, 7], [0])], "left"))
    trace = handle.trace
    paths = [trace.path(tile) for tile in range(5)]
    sums = [sum(counts) for counts in trace.entering]
    assert sums[0] == 5 * PATCHES
    configs, projected = (model.config.vision_config, model.config.text_config), sum(trace.leaving[-1])
    visual = trace.language.path()
    for given in ({"path": paths}, {"path": sums, "tiles": 5}):
        formula = cost_of(*configs, 2, visual_tokens=visual, projected=projected, **given)
        assert formula.encoder == pytest.approx(counter.encoder, rel=0.01)
        assert formula.projector == counter.projector
        assert formula.prefill == pytest.approx(counter.prefill, rel=0.01)
    assert cost_of(*configs, 2, tiles=5) == cost_of(*configs, 2, [5 * PATCHES] * 8, tiles=5)


def test_sums_over_tiles_are_too_low_by_their_variance():
    vision, language = CLIPVisionConfig(**VISION), LlamaConfig(**TEXT)
    paths = [[36, 30, 20], [36, 24, 10], [36, 6, 9]]
    exact, even = cost_of(vision, language, 5, paths), cost_of(vision, language, 5, [108, 60, 39], tiles=3)
    assert exact.encoder == sum(encoder_flops(vision, path) for path in paths)
    squares = sum((one - mean) ** 2 for one, mean in [(30, 20), (24, 20), (6, 20), (20, 13), (10, 13), (9, 13)])
    assert exact.encoder - even.encoder == 2 * 2 * vision.hidden_size * squares
    assert (exact.projector, exact.prefill) == (even.projector, even.prefill)
    behind = [[*path[1:], 5] for path in paths]
    merged = cost_of(vision, language, 5, paths, mlp_path=behind)
    gone = sum(map(sum, paths)) - sum(map(sum, behind))
    assert exact.encoder - merged.encoder == gone * 2 * 2 * vision.hidden_size * vision.intermediate_size


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"path": [180] * 8}, "180 tokens into an encoder of 36 patches; give tiles="),
        ({"path": [180] * 8, "tiles": 4}, "45 tokens into an encoder of 36"),
        ({"path": [36] * 8, "mlp_path": [37] * 8}, "mlp_path puts 37"),
        ({"tiles": 0}, "tiles=0 is not a number of tiles >= 1"),
        ({"path": [[36] * 8] * 3, "tiles": 5}, "tiles=5, but path holds 3 paths"),
        ({"path": [[36] * 8, [36] * 7]}, "several lengths"),
        ({"path": [[36] * 8, 36]}, "mixes numbers and paths"),
        ({"path": [[36] * 8] * 2, "mlp_path": [36] * 8}, "path is for 2 tiles and mlp_path for 1"),
    ],
)
def test_paths_that_cannot_be(given, message):
    with pytest.raises(ValueError, match=message):
        cost_of(CLIPVisionConfig(**VISION), LlamaConfig(**TEXT), 5, **given)
