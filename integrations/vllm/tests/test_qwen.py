"""Qwen-VL models with random weights: greedy tokens, kept patches and features equal the library's, one-stage."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import tower_probe
from conftest import CHAOTIC, ENGINE, answers, request
from qwen_models import FAMILIES, OneStageReference, pictures, prompt_about, write_checkpoint
from vllm import LLM

from flowcut import METHODS, FlowCut
from flowcut.registry import parse_pruner
from flowcut_vllm.mrope import NUMBERS
from flowcut_vllm.pruner import check_served
from flowcut_vllm.qwen import refuse_qwen_options

POSITIONS = 2 * NUMBERS  # columns that bring a token's position


def started(folder, budget=8, **options):
    return LLM(folder, hf_overrides={"flowcut": {"budget": budget}}, dtype="float32", **{**ENGINE, **options})


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def reference(folder):
    return OneStageReference(folder)


@pytest.fixture(scope="module")
def engine(folder):
    return started(folder)


def mixed():
    """Prompts, their pictures and budgets, to be sent in one queue."""
    found = []
    for number, budget in enumerate((8, 24, 0.25, 1000) * 3):
        some = [pictures()[(number + number // 4 + n) % 4] for n in range(1 + number % 2)]
        found.append((prompt_about(("what is in this", "how many red star")[number % 2], len(some)), some, budget))
    return found


def check_answers(engine, reference):
    """Returns how many tokens of a second queue were taken from the prefix cache."""
    asked = [request(prompt, some if len(some) > 1 else some[0], budget) for prompt, some, budget in mixed()]
    expected = [reference.answer(*given) for given in mixed()]
    assert answers(engine, asked)[0] == expected
    assert len({tuple(answer) for answer in expected}) > 6, "answers that never differ would prove nothing"
    again, outputs = answers(engine, asked)
    assert again == expected
    return sum(output.num_cached_tokens for output in outputs)


def test_budgets_and_pictures_mixed_in_one_queue(engine, reference):
    assert check_answers(engine, reference) > 0


@pytest.mark.parametrize("budget", [20, 0.3])
def test_kept_patches_and_features_of_every_method(engine, reference, budget):
    (model,) = engine.apply_model(lambda model: model)
    served = []
    for name in METHODS:
        pruner = parse_pruner(f"{name}:budget={budget}")
        try:
            check_served(pruner, model.pruned.encoder.shape)
        except ValueError:
            continue
        kept, features = reference.features(tower_probe.pixels(), tower_probe.GRIDS, pruner)
        found, tokens = tower_probe.encoded(model, pruner)
        served.append(name)
        assert name in CHAOTIC or found == kept, name
        for one, two in zip(tokens, features, strict=True):
            assert one.shape == (len(two), two.shape[1] + POSITIONS)
            assert name in CHAOTIC or torch.allclose(one[:, :-POSITIONS], two, atol=2e-4, rtol=2e-4), name
    assert {"flowcut", "fastervlm", "hiprune", "holov", "divprune", "scope", "random", "uniform"} <= set(served)


def test_positions_are_the_setting_s(engine, reference):
    """Answers are those of the setting, and not those of kept tokens at their own positions."""
    settings = [{"patch_positions": "first"}]
    if reference.model.config.model_type == "qwen2_vl":  # the only one for which the released code has a rule
        settings.append({"patch_positions": "first", "merge": "patches"})
    (pruned,) = engine.apply_model(lambda model: model.pruned)
    served = pruned.pruner
    for seed, fields in enumerate(settings):  # pictures are new each time, as the server's pruner in their keys is not
        asked = [(prompt_about("what is in this"), [picture], 24) for picture in pictures(10 + seed)]
        pruned.pruner = replace(served, **fields)
        try:
            found, _ = answers(engine, [request(prompt, some[0], budget) for prompt, some, budget in asked])
        finally:
            pruned.pruner = served
        assert found == [reference.answer(*given, **fields) for given in asked]
        assert found != [reference.answer(*given) for given in asked]


def test_a_prompt_that_ends_with_a_picture(engine, reference):
    """The answer counts on after the picture. (transformers' generate counts on from its last token, on each axis.)"""
    prompt, some = "user what is <|vision_start|><|image_pad|>", pictures()[1:3]
    for budget in (8, 1000):
        found, _ = answers(engine, [request(prompt, picture, budget) for picture in some])
        assert found == [reference.answer_without_cache(prompt, [picture], budget) for picture in some]


@pytest.mark.parametrize("folder", ["qwen3_vl", "qwen3_vl_moe"], indirect=True)
def test_answers_follow_from_deepstack(engine, reference, monkeypatch):
    """The control: where kept tokens lose what DeepStack adds to them, answers differ from the library's."""
    (model,) = engine.apply_model(lambda model: model)
    encode = model.encode

    def without_taps(pruner, images):
        found = encode(pruner, images)
        for tokens in found:
            tokens[:, model.visual_dim : -POSITIONS] = 0
        return found

    monkeypatch.setattr(model, "encode", without_taps)
    asked = [(prompt_about("what is in this"), [picture], 24) for picture in pictures(20)]
    found, _ = answers(engine, [request(prompt, some[0], budget) for prompt, some, budget in asked])
    assert found != [reference.answer(*given) for given in asked]


def test_a_bad_budget_is_refused_in_one_line(engine):
    with pytest.raises(ValueError, match="budget=0 is not a whole number") as error:
        answers(engine, [request(prompt_about("what is in this"), pictures()[0], 0)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("images", "more", "message"),
    [
        ({"mm_encoder_tp_mode": "data"}, {}, "leave it out"),
        ({"enable_mm_embeds": True}, {}, "takes no embeddings"),
        ({"video_pruning_rate": 0.5}, {}, "takes images alone"),
        ({}, {"speculative_config": object()}, "speculative decoding"),
    ],
)
def test_options_that_pruning_does_not_go_with(images, more, message):
    stock = {"mm_encoder_tp_mode": "weights", "enable_mm_embeds": False, "video_pruning_rate": None}
    model_config = SimpleNamespace(multimodal_config=SimpleNamespace(**{**stock, **images}))
    with pytest.raises(ValueError, match=message) as error:
        refuse_qwen_options(SimpleNamespace(**{"model_config": model_config, "speculative_config": None, **more}))
    assert "\n" not in str(error.value)


def test_prefill_in_chunks(folder, reference):
    """After the tests with `engine`: of two engines in one process the first one ends."""
    check_answers(started(folder, max_num_batched_tokens=32), reference)


@pytest.mark.slow
def test_two_tensor_parallel_ranks(folder, reference):
    """With all heads gathered, both ranks keep the library's patches; without, they keep others."""
    engine = started(folder, 20, tensor_parallel_size=2, distributed_executor_backend="mp")
    asked = [(prompt_about("what is in this"), picture) for picture in pictures()]
    found, _ = answers(engine, [request(prompt, picture) for prompt, picture in asked])
    assert found == [reference.answer(prompt, picture, 20) for prompt, picture in asked]
    expected, _ = reference.features(tower_probe.pixels(), tower_probe.GRIDS, FlowCut(budget=20))
    assert [len(row) for row in expected] == [80, 80]
    assert engine.apply_model(tower_probe.kept) == [expected, expected]
    assert engine.apply_model(tower_probe.kept_without_gathering)[0] != expected


@pytest.mark.slow
def test_without_the_field_everything_is_stock(folder, reference):
    engine = LLM(folder, dtype="float32", **ENGINE)
    asked = [(prompt_about("what is in this"), [picture], 1000) for picture in pictures()]
    found, _ = answers(engine, [request(prompt, some[0]) for prompt, some, _ in asked])
    assert found == [reference.answer(*given) for given in asked]
    assert engine.apply_model(lambda model: model.pruned) == [None]
