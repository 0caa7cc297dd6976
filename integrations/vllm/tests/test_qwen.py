"""Qwen-VL models with random weights: greedy tokens, kept patches and features equal the library's, one-stage."""

from dataclasses import replace

import pytest
import torch
import tower_probe
from conftest import ENGINE, answers, request
from qwen_models import FAMILIES, OneStageReference, pictures, prompt_about, write_checkpoint
from vllm import LLM

POSITIONS = 6  # columns that bring a token's position


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


def test_kept_patches_and_features(engine, reference):
    for budget in (20, 0.3):
        kept, features = reference.features(tower_probe.pixels(), tower_probe.GRIDS, budget)
        found = engine.apply_model(lambda model: tower_probe.encoded(model, budget))[0]  # noqa: B023
        assert found[0] == kept
        for one, two in zip(found[1], features, strict=True):
            torch.testing.assert_close(one[:, :-POSITIONS], two, atol=2e-4, rtol=2e-4)


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
    prompt, some = "user what is <|vision_start|><|image_pad|>", pictures()[2:3]
    for budget in (8, 1000):
        found, _ = answers(engine, [request(prompt, some[0], budget)])
        assert found == [reference.answer_without_cache(prompt, some, budget)]


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
    expected, _ = reference.features(tower_probe.pixels(), tower_probe.GRIDS, 20)
    assert [len(row) for row in expected] == [80, 80]
    assert engine.apply_model(tower_probe.kept) == [expected, expected]
    assert engine.apply_model(tower_probe.kept_without_gathering)[0] != expected
