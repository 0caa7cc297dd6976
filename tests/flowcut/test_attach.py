"""attach, detach, flowcut: the handle, what it refuses, and that a refused model is left as it was."""

import importlib.metadata
import sys

import pytest
import torch
from hosts import DEPTH, PATCHES, Clip, HFLlava, HFLlavaNext, HFQwen25VL, all_hosts
from torch import nn

import flowcut as package
from flowcut import DivPrune, FastV, FlowCut, HoloV, Random, VisionZip, attach, detach, flowcut, handle_of
from flowcut.__main__ import main
from flowcut.hooks.attention import VISION

CLIP, LLAVA = Clip(), HFLlava()


@pytest.fixture
def model():
    return CLIP.build()


def count(model):
    with torch.no_grad():
        return CLIP.outputs(model, CLIP.samples()[:1])[0].shape[0]


def test_one_line(model):
    assert flowcut(model, target_num=7) is model
    assert count(model) == 7
    detach(model)
    assert count(model) == PATCHES


def test_one_line_again_changes_the_budget(model):
    flowcut(model)
    handle = handle_of(model)
    assert handle.budget == 128
    assert flowcut(model, 7) is model
    assert handle_of(model) is handle
    assert count(model) == 7
    detach(model)
    with attach(model, Random(5)), pytest.raises(ValueError, match=r"has Random\(budget=5\) attached; detach"):
        flowcut(model, 7)


def test_written_forms(model):
    """A pruner's text and its dict, as command lines and checkpoints have them."""
    for form in ("flowcut:budget=7", {"method": "flowcut", "budget": 7}, {"budget": 7}):
        with attach(model, form) as handle:
            assert handle.pruner == FlowCut(7)
    assert count(model) == PATCHES


@pytest.mark.parametrize(
    ("pruner", "message"),
    [
        ("none", "'none' is not a pruner to attach"),
        ("flowcat:budget=7", "unknown pruner 'flowcat:budget=7'; choose none or one of"),
        ("flowcut", "has no budget; write flowcut:budget=64"),
        ({"method": "flowcut", "budget": "7"}, "flowcut: budget='7' does not fit"),
        (None, "None is not a pruner; write attach"),
        (FlowCut, "FlowCut is not a pruner; write attach"),
        (torch.zeros(9, 9), r"tensor\(.*\.\.\. is not a pruner; write attach"),
    ],
)
def test_what_is_no_pruner_is_refused_in_one_line(model, pruner, message):
    with pytest.raises(ValueError, match=message) as error:
        attach(model, pruner)
    assert "\n" not in str(error.value)
    assert handle_of(model) is None


def test_other_arguments_are_refused_in_one_line(model):
    with pytest.raises(
        TypeError, match="takes model, pruner, signals, full_logits and compile, not budget; write attach"
    ):
        attach(model, "flowcut", budget=7)
    with pytest.raises(ValueError, match=r"FlowCut.* is not a model \(a torch.nn.Module\)"):
        attach(FlowCut(7), model)
    with pytest.raises(ValueError, match="signals=1 is neither True nor False"):
        attach(model, FlowCut(7), signals=1)


def test_a_block_entered_again_attaches_again(model):
    handle = attach(model, FlowCut(7))
    for _ in range(2):
        with handle:
            assert handle.attached
            assert count(model) == 7
            with handle:  # blocks inside each other: the outer one decides
                pass
            assert count(model) == 7
        assert not handle.attached
        assert count(model) == PATCHES
    with pytest.raises(ValueError, match="already removed"):
        handle.remove()
    with attach(model, Random(5)), pytest.raises(ValueError, match="already has a pruner"), handle:
        pass
    assert count(model) == PATCHES
    with handle:
        handle.remove()
    assert handle_of(model) is None


def test_a_handle_says_what_happened(model):
    handle = attach(model, FlowCut(7))
    assert repr(handle) == "FlowCut(budget=7) on CLIPVisionModel, no forward yet"
    count(model)
    assert repr(handle) == "FlowCut, 36 -> 7 tokens per image, encoder FLOPs -43 %"
    assert handle.trace.within_budget == []
    handle.budget = 1000
    count(model)
    assert repr(handle) == "FlowCut, 36 of 36 tokens kept: budget=1000 is not below them"
    assert handle.trace.within_budget == [0]
    handle.remove()
    assert repr(handle).endswith("not below them, removed")
    handle = attach(model, FlowCut(7, interval=3))
    handle.remove()
    assert repr(handle) == "FlowCut(budget=7, interval=3) on CLIPVisionModel, removed"
    handle.trace = object()
    assert repr(handle) == "FlowCut, removed"


@pytest.mark.parametrize(
    ("host", "pruner", "said"),
    [
        (HFLlava(), FastV(20, layer=1, keep=9), "FastV, 36 tokens per image, 9 in the language model's last layer"),
        (
            HFLlavaNext(),
            FlowCut(10),
            "FlowCut, 108-180 -> 13-25 tokens per image (4 images, 576 -> 75 in total), 10 in the language model's "
            "last layer, encoder FLOPs -45 %",
        ),
        (HFQwen25VL(), DivPrune(10), "DivPrune, 36-54 -> 10 tokens per image (6 images, 262 -> 60 in total)"),
    ],
)
def test_a_handle_tells_of_several_images_and_of_the_language_model(host, pruner, said):
    model = host.build()
    with attach(model, pruner) as handle, torch.no_grad():
        host.outputs(model, host.samples(), handle)
    assert repr(handle) == f"{said}, removed"


def test_the_flops_a_handle_tells_are_those_of_the_trace(model):
    """Against the formula written out: a layer's maps and attention, over CLS and patches."""
    with attach(model, FlowCut(7)) as handle:
        count(model)

    def layer(tokens):
        return 4 * tokens * 32**2 + 2 * tokens**2 * 32 + 2 * tokens * 32 * 64

    patches = PATCHES * 3 * 4**2 * 32
    pruned = patches + sum(layer(1 + tokens) for tokens in handle.trace.path())
    assert f"FLOPs -{100 * (1 - pruned / (patches + 8 * layer(1 + PATCHES))):.0f} %" in repr(handle)


def test_version(monkeypatch, capsys):
    assert package.__version__ == importlib.metadata.version("llava-flowcut")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"llava-flowcut {package.__version__}\n"

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert package.version.find_version() == f"{package.__version__}+checkout"


def test_budget_between_calls(model):
    with attach(model, FlowCut(7)) as handle:
        assert count(model) == 7
        handle.budget = 12
        assert count(model) == handle.budget == 12
        with pytest.raises(ValueError, match="budget=0"):
            handle.budget = 0
        assert handle.budget == 12


def test_nothing_stays_behind_in_between(model):
    """The pruner's notes of one forward do not reach the next one: the same image gives the same scores again."""
    with attach(model, FlowCut(7), signals=True) as handle, torch.no_grad():
        CLIP.outputs(model, CLIP.samples()[:1])
        first = handle.trace
        CLIP.outputs(model, CLIP.samples()[1:])
        CLIP.outputs(model, CLIP.samples()[:1])
    for layer, signals in first.signals.items():
        assert torch.equal(signals["cumulative"][0], handle.trace.signals[layer]["cumulative"][0])


def test_twice_is_refused(model):
    handle = attach(model, FlowCut(7))
    with pytest.raises(ValueError, match="already has a pruner"):
        attach(model, Random(5))
    assert count(model) == 7
    handle.remove()
    with pytest.raises(ValueError, match="already removed"):
        handle.remove()
    with pytest.raises(ValueError, match="no pruner attached"):
        detach(model)
    assert count(model) == PATCHES


def test_the_tower_of_an_attached_llava_is_taken():
    llava = LLAVA.build()
    with attach(llava, FlowCut(7)), pytest.raises(ValueError, match="already has a pruner"):
        attach(LLAVA.tower(llava), FlowCut(7))


def test_unknown_models_are_told_the_known_families(model):
    for stranger in (nn.Linear(2, 2), LLAVA.build().model.language_model):
        with pytest.raises(
            ValueError, match=r"CLIPVisionModel \(transformers\); .*LlavaForC.*Qwen2_5_VL.*; LlavaLlama"
        ):
            attach(stranger, FlowCut(7))
    with pytest.raises(ValueError, match="is not a pruner"):
        attach(model, 64)


def test_attention_that_cannot_be_tapped(model):
    model.config._attn_implementation_internal = "homemade"
    hooks = len(model._forward_pre_hooks)
    with pytest.raises(ValueError, match="'homemade' cannot be read"):
        attach(model, FlowCut(7))
    assert len(model._forward_pre_hooks) == hooks


def test_a_decoder_that_cannot_be_tapped_leaves_the_encoder_as_it_was(tmp_path):
    host = all_hosts(tmp_path)["llava_next_hf"]
    llava = host.build()
    parts = list(llava.modules())
    before = [(len(part._forward_hooks), set(part.__dict__), part.__dict__.get("config")) for part in parts]
    host.decoder(llava).config._attn_implementation_internal = "homemade"
    with pytest.raises(ValueError, match="'homemade' cannot be read"):
        attach(llava, FlowCut(7))
    assert before == [(len(part._forward_hooks), set(part.__dict__), part.__dict__.get("config")) for part in parts]


@pytest.mark.parametrize(
    ("name", "pruner", "message"),
    [
        ("clip", FastV(20), "FastV cuts inside a language model"),
        ("llava_hf", FastV(20, layer=9), "layer=9 is not in this decoder of only 4 layers"),
        ("qwen2_vl", VisionZip(20), "VisionZip cannot merge patches"),
        ("qwen2_5_vl", FlowCut.released_qwen2_vl(20), "use 'groups'"),
        ("llava_next_hf", FlowCut(20, language_layer=4), "language_layer=4 is not in this decoder, which has only 4"),
        ("siglip", FlowCut(20, last_layer=-9), "last_layer=-9 is not in this encoder, which has only 8"),
        ("video_llava", FlowCut(1), "leaves no patch, because this model also passes on a CLS token"),
    ],
)
def test_misfits_are_refused_in_one_line(tmp_path, name, pruner, message):
    model = all_hosts(tmp_path)[name].build()
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())
    with pytest.raises(ValueError, match=message) as error:
        attach(model, pruner)
    assert "\n" not in str(error.value)
    assert hooks == sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def test_a_budget_between_calls_that_does_not_fit_is_refused(tmp_path):
    model = all_hosts(tmp_path)["video_llava"].build()
    with attach(model, FlowCut(10)) as handle:
        for bad in (0, -3, 2.5, "64", True, 1):
            with pytest.raises(ValueError, match="budget="):
                handle.budget = bad
        assert handle.budget == 10


def test_pictures_that_are_not_square(model):
    """The encoder's position embeddings are stretched; kept positions count row by row through the wider grid."""
    pixels = torch.randn(2, 3, 16, 40)
    with torch.no_grad(), attach(model, FlowCut(7)) as handle:
        states = model(pixels, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states
    assert handle.trace.entering[0] == (40, 40)
    assert states[-2].shape[1] == 8


def test_cls_counts_where_it_is_passed_on():
    config = LLAVA.config()
    config.vision_feature_select_strategy = "full"
    llava = LLAVA.build(config)
    with attach(llava, FlowCut(7)) as handle, torch.no_grad():
        ids = torch.tensor([[1, *[config.image_token_id] * (PATCHES + 1), 2]])
        pixels = LLAVA.inputs(LLAVA.samples()[:1], "left")["pixel_values"]
        assert llava(input_ids=ids, pixel_values=pixels).logits.shape[1] == 2 + 7
        assert len(handle.trace.final[0]) == 6
        with pytest.raises(ValueError, match="leaves no patch"):
            handle.budget = 1


def test_features_read_too_early():
    config = LLAVA.config()
    config.vision_feature_layer = -5
    llava = LLAVA.build(config)
    inputs = LLAVA.inputs(LLAVA.samples()[:1], "left")
    with attach(llava, FlowCut(7)), pytest.raises(ValueError, match="features are read after encoder layer 3"):
        llava(**inputs)
    with attach(llava, FlowCut(7, last_layer=-5)), torch.no_grad():
        assert llava(**inputs).logits.shape[1] == 5 + 7


def test_nothing_is_under_way_after_a_forward(model):
    """Recomputation in the backward pass is not observed, and neither an error nor an interrupt leaves anything."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with attach(model, FlowCut(7)) as handle:
        model.train()(torch.ones(1, 3, 24, 24)).last_hidden_state.sum().backward()
        assert VISION.get() is None
        trace = handle.trace
        with pytest.raises(RuntimeError):
            model(torch.ones(1, 5, 24, 24))
        assert VISION.get() is None
        assert handle.trace is trace


def test_hidden_states_recorded_before_and_after_attaching(model):
    """transformers installs its recording hooks at the first request; either order records the shortened states."""
    fresh = CLIP.build()
    count(model)
    for subject in (model, fresh):
        with attach(subject, FlowCut(7)) as handle, torch.no_grad():
            pixels = torch.ones(1, 3, 24, 24)
            states = subject(pixels, output_hidden_states=True).hidden_states
        assert [state.shape[1] - 1 for state in states[1:]] == [counts[0] for counts in handle.trace.leaving]


def test_a_tower_of_another_kind_is_refused_in_one_line(tmp_path):
    model = all_hosts(tmp_path)["qwen3_vl"].build()
    model.model.visual = Clip().build()
    with pytest.raises(ValueError, match=r"^a CLIPVisionModel as vision encoder .* not known: it has no blocks"):
        attach(model, FlowCut(10))


def test_images_beside_videos_are_refused_where_both_have_one_placeholder(tmp_path):
    hosts = all_hosts(tmp_path)
    model, images, videos = hosts["glm4v"].build(), *(hosts[name].samples()[:1] for name in ("glm4v", "glm46v"))
    both = {**hosts["glm46v"].inputs(videos, "left"), **hosts["glm4v"].media(images)}
    with torch.no_grad(), attach(model, FlowCut(10)), pytest.raises(ValueError, match="by the same placeholder, so"):
        model(**both)


def test_balancing_experts_over_layers_with_different_tokens_is_refused(tmp_path):
    host = all_hosts(tmp_path)["qwen3_vl_moe"]
    model, inputs = host.build(), host.inputs(host.samples(), "left")
    with torch.no_grad(), attach(model, Random(10)):
        assert model(**inputs, output_router_logits=True).aux_loss > 0
    with torch.no_grad(), attach(model, FlowCut(10)):
        with pytest.raises(ValueError, match="output_router_logits=True needs the same tokens in all layers"):
            model(**inputs, output_router_logits=True)
        assert model(**host.inputs(host.samples()[2:3], "left"), output_router_logits=True).aux_loss > 0


@pytest.mark.parametrize("name", ["llava_hf", "qwen2_vl"])
def test_attention_that_is_set_under_a_pruner(tmp_path, name):
    """It takes effect at once, and is what the model has after the pruner is gone. No config tells of the tap."""
    host = all_hosts(tmp_path)[name]
    model = host.build()
    pruner = FastV.keeping(10, layer=2)
    own, called = host.tower(model).config, []
    with torch.no_grad(), attach(model, pruner) as handle:
        inputs = host.inputs(host.samples()[:1], "left")
        expected = model(**inputs).logits
        module = sys.modules[type(host.decoder(model)).__module__]
        eager = module.eager_attention_forward
        try:
            module.eager_attention_forward = lambda *args, **kwargs: called.append(1) or eager(*args, **kwargs)
            model.set_attn_implementation("eager")
            torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
            assert called
            called.clear()
            model.set_attn_implementation({"text_config": "sdpa", "vision_config": "eager"})
            model(**inputs)
            assert len(called) == (2 * DEPTH if name == "qwen2_vl" else 0)  # whose tower is in the same file
        finally:
            module.eager_attention_forward = eager
        assert own._attn_implementation == model.config.vision_config._attn_implementation == "eager"
    assert handle.trace.language is not None
    assert host.decoder(model).config._attn_implementation == "sdpa"
    assert all(
        part.config._attn_implementation in ("eager", "sdpa") for part in model.modules() if hasattr(part, "config")
    )


@pytest.mark.parametrize("name", ["llava_hf", "llava_next_hf", "llava_onevision", "video_llava", "qwen2_vl"])
def test_a_batch_of_text_alone_may_bring_empty_pixels(tmp_path, name):
    host = all_hosts(tmp_path)[name]
    model = host.build()
    full, text = host.inputs(host.samples()[:1], "left"), host.inputs(host.samples()[2:3], "left")
    empty = {key: full[key][:0] for key in host.media(host.samples()[:1])}
    if name == "video_llava":
        empty["pixel_values_images"] = empty.pop("pixel_values", torch.zeros(0, 3, 24, 24))
    with torch.no_grad(), attach(model, FlowCut(10)):
        assert torch.equal(model(**text, **empty).logits, model(**text).logits)


@pytest.mark.parametrize("name", ["llava_hf", "llava_next_hf", "llava_onevision", "video_llava"])
def test_features_of_another_layer_in_a_call(tmp_path, name):
    """What the pruner was attached for may be said in any way; another layer is refused before the encoder runs."""
    host = all_hosts(tmp_path)[name]
    model = host.build()
    inputs = host.inputs(host.samples()[:1], "left")
    here = model.config.vision_feature_layer
    with torch.no_grad(), attach(model, FlowCut(10)) as handle:
        expected = model(**inputs).logits
        for same in (here, [here], DEPTH + 1 + here):
            assert torch.equal(model(**inputs, vision_feature_layer=same).logits, expected)
        ran, trace = [], handle.trace
        host.tower(model).register_forward_pre_hook(lambda *_: ran.append(1))
        for other in (-3, [-3, here], 0):
            with pytest.raises(ValueError, match=r"^vision_feature_layer=.* is not what the pruner was attached for; "):
                model(**inputs, vision_feature_layer=other)
        with pytest.raises(ValueError, match=r"^vision_feature_layer=-3 is not"):
            model.generate(**inputs, vision_feature_layer=-3, max_new_tokens=2)
        other = {"full": "default", "default": "full"}[model.config.vision_feature_select_strategy]
        if name != "video_llava":
            with pytest.raises(ValueError, match=r"vision_feature_select_strategy='.*' is not what the pruner"):
                model(**inputs, vision_feature_select_strategy=other)
        assert not ran
        assert handle.trace is trace


@pytest.mark.parametrize("pruner", [FlowCut(7), HoloV(7)])
def test_attention_that_is_not_finite(model, pruner):
    model = model.to(torch.float16)
    layer = CLIP.layers(model)[3]
    layer.layer_norm1.weight.data.fill_(60000)
    pixels = torch.ones(1, 3, 24, 24, dtype=torch.float16)
    message = r"^the attention of encoder layer \d is not finite in torch.float16; run"
    with torch.no_grad(), attach(model, pruner), pytest.raises(ValueError, match=message):
        model(pixels)
