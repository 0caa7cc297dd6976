"""Budgets as a share of each image's own tokens: what a whole number says of one image, said of images of any size."""

import json
from dataclasses import replace

import pytest
import torch
from hosts import IMAGE, PATCHES, VIDEO, Sample, all_hosts, noise, tiles_of

from flowcut import FastV, FlowCut, PruMerge, Random, SparseVLM, VisionZip, attach, detach, flowcut, parse_pruner
from flowcut.pruner import whole_budget
from flowcut.registry import METHODS, pruner_from_config, pruner_to_config, pruner_to_text
from llava.train.anyres import TileCount, patches_left

TOGETHER = [
    Sample([1, 5, IMAGE, 7, 8, 9], [0]),
    Sample([1, IMAGE, 20, 21, 22, 23], [1]),
    Sample([1, 30, IMAGE, 24], [2]),
]
PAIRS = [
    ("qwen2_vl", FlowCut(0.25)),
    ("qwen2_vl", FlowCut.released_qwen2_vl(0.25)),
    ("qwen2_vl", FastV(0.5, layer=1)),
    ("qwen2_5_vl", Random(0.25)),
    ("llava_next_hf", FlowCut(0.12)),
    ("llava_next_hf", FastV(0.5, layer=1)),
    ("llava_next_hf", VisionZip(0.12)),
    ("llava_next", FlowCut(0.12)),
    ("llava_hf", FlowCut(0.25)),
    ("llava_hf", FastV(0.5, layer=1)),
    ("llava_hf", VisionZip(0.25)),
]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    return all_hosts(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def models():
    return {}


@pytest.fixture
def built(hosts, models):
    def get(name):
        if name not in models:
            models[name] = hosts[name].build()
        return hosts[name], models[name]

    return get


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def own_tokens(host, pruner, image):
    """An image's tokens by the family's arithmetic: where the encoder is cut its tiles' patches, else placeholders."""
    return tiles_of(image) * PATCHES if host.tiled and not isinstance(pruner, FastV) else host.placeholders(image)


def run(host, model, pruner, samples):
    """Outputs of the samples, and [image] the grid positions of what was left of each."""
    with attach(model, pruner) as handle:
        return host.outputs(model, samples, handle), [tokens[:, 1].tolist() for tokens in handle.trace.remaining]


@pytest.mark.parametrize(
    ("name", "pruner"), PAIRS, ids=lambda part: part if isinstance(part, str) else type(part).__name__
)
def test_images_of_different_size_each_keep_their_own_share(built, name, pruner):
    host, model = built(name)
    together, kept = run(host, model, pruner, TOGETHER)
    numbers = [round(pruner.budget * own_tokens(host, pruner, *sample.images)) for sample in TOGETHER]
    assert len(set(numbers)) == (1 if name == "llava_hf" else 2 if host.tiled and not isinstance(pruner, FastV) else 3)
    for sample, number, output, left in zip(TOGETHER, numbers, together, kept, strict=True):
        whole = run(host, model, replace(pruner, budget=number), [sample])
        share = run(host, model, pruner, [sample])
        assert whole[1] == share[1] == [left]
        assert torch.equal(whole[0][0], share[0][0])
        assert torch.allclose(output, whole[0][0], atol=1e-4, rtol=1e-4)
        if not (host.tiled or isinstance(pruner, FastV)):  # padding of tiles goes; FastV's budget is a mean over layers
            assert len(left) == number


def test_several_images_in_one_prompt(built):
    host, model = built("qwen2_vl")
    _, kept = run(host, model, FlowCut(0.25), [Sample([1, IMAGE, 20, IMAGE, 21, 22], [1, 2]), Sample([IMAGE, 40], [3])])
    assert [len(tokens) for tokens in kept] == [10, 12, 14]  # of 40, 48 and 54; 13.5 is rounded to the even


@pytest.mark.parametrize("name", METHODS)
def test_a_share_that_comes_to_a_whole_number_is_that_number(built, name):
    """27 of 36 patches, by every method."""
    host, model = built("llava_hf")
    settings = {"pdrop": {"layers": (1, 2, 3)}, "sparsevlm": {"layers": (0, 1, 2)}, "vtw": {"layer": 2}}
    settings |= {key: {"condition": False} for key in ("cdpruner", "rcom")}
    settings |= {"sparsevlm-plus": settings["sparsevlm"], "fastv": {"layer": 1}, "dart": {"layer": 1}}
    if name == "flowcut-qwen2-vl-released":
        host, model = built("qwen2_vl")  # 27 of image 0's 36 tokens there too
    share, whole = (METHODS[name].make(budget=budget, **settings.get(name, {})) for budget in (0.75, 27))
    results = [run(host, model, pruner, TOGETHER[:1]) for pruner in (share, whole)]
    assert results[0][1] == results[1][1]
    assert len(results[0][1][0]) < PATCHES
    assert torch.equal(results[0][0][0], results[1][0][0])


@pytest.mark.parametrize("name", ["llava_hf", "llava_next_hf", "qwen2_vl"])
def test_a_share_that_rounds_to_everything_changes_nothing(built, name):
    host, model = built(name)
    vanilla = host.outputs(model, TOGETHER)
    # In tiles FlowCut counts patches; behind an unpruned encoder the language model sees ends of image rows besides.
    pruners = [FastV(0.9999), Random(0.9999), *([] if host.tiled else [FlowCut(0.9999)])]
    for pruner in pruners:
        outputs, _ = run(host, model, pruner, TOGETHER)
        assert all(torch.equal(one, other) for one, other in zip(vanilla, outputs, strict=True))


def test_a_frame_is_an_image(built):
    """Qwen2-VL: of a picture and of two frames of a video, each its share, in one call."""
    host, model = built("qwen2_vl")
    sample = Sample([1, IMAGE, 20, VIDEO, 21, 22, 23], [1], [2])
    with attach(model, FlowCut(0.3)) as handle:
        host.outputs(model, [sample], handle)
    assert [len(tokens) for tokens in handle.trace.remaining] == [12, 14, 14]  # of 40, 48 and 48
    assert handle.trace.unpruned_tokens == (40, 48, 48)


def test_the_cls_token_that_travels_on_is_one_of_the_tokens(built):
    """Video-LLaVA: 37 tokens a frame."""
    host, model = built("video_llava")
    with attach(model, FlowCut(0.8)) as handle:
        host.outputs(model, [Sample([1, VIDEO, 20], [], [0])], handle)
    assert [len(tokens) for tokens in handle.trace.remaining] == [round(0.8 * 37)] * 3
    with attach(model, Random(0.001)) as handle:  # room for a patch beside it
        host.outputs(model, [Sample([1, VIDEO, 20], [], [0])], handle)
    assert [len(tokens) for tokens in handle.trace.remaining] == [2] * 3


def test_onevisions_frames_count_what_the_unpruned_model_averages(built):
    """6 x 6 patches of a frame are 3 x 3 tokens there, so 0.7 of a frame are 6 and 0.99 are all."""
    _, model = built("llava_onevision")
    frames = noise(1, 1, 2, 3, 24, 24)
    with attach(model, FlowCut(0.7)) as handle:
        features = model.model.get_video_features(pixel_values_videos=frames).pooler_output
        assert [len(tokens) for tokens in handle.trace.tokens] == [6, 6]
        assert handle.trace.unpruned_tokens == (9, 9)
        assert features.shape[-2] == 2 * 6 + 1
        handle.budget = 0.99
        pooled = model.model.get_video_features(pixel_values_videos=frames).pooler_output
    plain = model.model.get_video_features(pixel_values_videos=frames).pooler_output
    assert torch.equal(pooled[0], plain[0])


def test_the_one_liner_and_the_handle_take_shares(built):
    host, model = built("llava_hf")
    assert flowcut(model, target_num=0.333) is model
    share = host.outputs(model, TOGETHER[:1])
    detach(model)
    whole, kept = run(host, model, FlowCut(12), TOGETHER[:1])
    assert len(kept[0]) == 12
    assert torch.equal(share[0][: len(whole[0])], whole[0])
    with attach(model, FlowCut(5)) as handle:
        handle.budget = 0.333
        assert torch.equal(host.outputs(model, TOGETHER[:1], handle)[0], whole[0])


def test_published_settings_follow_the_number_that_a_share_comes_to():
    """Of 576: the paper's 66.7, 77.8 and 88.9 % pruned are 192, 128 and 64 tokens."""
    for share, number in ((0.333, 192), (0.222, 128), (0.111, 64)):
        assert FlowCut(share).tokens_of(576) == number
        assert SparseVLM(share).schedule(576, 32) == SparseVLM(number).schedule(576, 32)
        assert FastV(share).schedule(576, 32) == FastV(number).schedule(576, 32)
    assert SparseVLM(0.111).schedule(576, 32).kept == (66, 30, 17)
    assert VisionZip(0.111).split(VisionZip(0.111).tokens_of(576)) == (54, 10)
    with pytest.raises(ValueError, match=r"^budget=29 cannot be met on average over 32 layers") as error:
        FastV(0.05).schedule(576, 32)
    assert "\n" not in str(error.value)


def test_rounding():
    for tokens in range(1, 60):
        for share in (0.111, 0.222, 0.333, 0.9, 0.01):
            number = whole_budget(share, tokens)
            assert number == 1 or abs(number - share * tokens) <= 0.5
            assert 1 <= number <= tokens
    assert whole_budget(64, 10) == 64


def test_training_expects_what_a_share_leaves():
    for patches, tiles in ((576, 1), (36, 5)):
        for share, pruner in ((0.111, Random(0.111)), (0.111, PruMerge(0.111)), (0.2, FlowCut(0.2))):
            whole = replace(pruner, budget=round(share * patches * tiles))
            assert patches_left(pruner, patches, tiles) == patches_left(whole, patches, tiles)
    assert sum(patches_left(Random(0.111), 36, 5)) == round(0.111 * 180)
    count = TileCount(24, PATCHES, ((48, 48), (24, 48)), "spatial_unpad", Random(0.25))
    assert [count((48, 48)), count((24, 48))] == [45, 27]


@pytest.mark.parametrize("name", METHODS)
def test_text_and_dict_come_back(name):
    for share in (0.333, 1 / 3, 1e-05):
        pruner = METHODS[name].make(budget=share)
        text = pruner_to_text(pruner)
        assert text.split(":")[1].split(",")[0] == f"budget={share}"
        assert parse_pruner(text) == parse_pruner(f"{name}:budget={share}") == pruner
        assert pruner_from_config(json.loads(json.dumps(pruner_to_config(pruner)))) == pruner
    assert type(parse_pruner(f"{name}:budget=64").budget) is int


@pytest.mark.parametrize("budget", [1.5, 0.0, 1.0, -1, -0.5, True, "x", None, float("nan"), float("inf")])
def test_bad_budgets_are_one_line(budget):
    said = "is not a whole number of tokens >= 1, nor a share of each image's tokens between 0 and 1; try"
    with pytest.raises(ValueError, match=f"^budget={budget!r} {said}") as error:
        FlowCut(budget)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=f"budget={budget}") as error:
        parse_pruner(f"flowcut:budget={budget}")
    assert "a whole number" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="budget=") as error:
        pruner_from_config({"budget": budget})
    assert "a whole number" in str(error.value)


def test_a_number_of_contextual_tokens_goes_with_a_number():
    with pytest.raises(ValueError, match=r"^contextual=3 is a fixed number of tokens, but budget=0\.25 is a share"):
        VisionZip(0.25, contextual=3)
