"""Greedy tokens of the engine equal those of transformers with the library attached, whatever is mixed in a queue."""

import pytest
from conftest import ENGINE, answers, prompt_about, request
from vllm import LLM

BUDGETS = (None, 576, 128, 32, 0.25)


def flowcut(budget):
    return {"budget": 64 if budget is None else budget}


def test_budgets_and_pictures_mixed_in_one_queue(engine, reference, scenes):
    asked, expected = [], []
    for number, (picture, question) in enumerate(scenes):
        budget = BUDGETS[number % len(BUDGETS)]
        asked.append(request(prompt_about(question), picture, budget))
        expected.append(reference.answer(prompt_about(question), picture, flowcut(budget))[0])
    assert answers(engine, asked)[0] == expected


def test_an_answer_depends_on_the_budget(engine, scenes):
    asked = [request(prompt_about(question), picture, budget) for picture, question in scenes for budget in (576, 4)]
    found, outputs = answers(engine, asked)
    assert found[::2] != found[1::2]
    lengths = [len(output.prompt_token_ids) for output in outputs]
    assert {one - two for one, two in zip(lengths[::2], lengths[1::2], strict=True)} == {572}


def test_several_pictures_and_turns(engine, reference, scenes):
    pictures = [picture for picture, _ in scenes[:3]]
    for count, turns in ((2, ("Is there a circle?",)), (3, ("Where is it?",)), (1, ("What?", "red", "Is it?"))):
        prompt = prompt_about(*turns, pictures=count)
        expected = reference.answer(prompt, pictures[:count], flowcut(32))[0]
        assert answers(engine, [request(prompt, pictures[:count], 32)])[0] == [expected]


def test_another_question_takes_the_picture_from_the_prefix_cache(engine, reference, scenes):
    picture = scenes[5][0]
    for question in ("What color is the largest shape?", "How many objects are there?"):
        prompt = prompt_about(question)
        expected = reference.answer(prompt, picture, flowcut(96))[0]
        found, outputs = answers(engine, [request(prompt, picture, 96)])
        assert found == [expected]
    assert outputs[0].num_cached_tokens >= 96  # of the second question, the picture and the text ahead of it
    found, outputs = answers(engine, [request(prompt, picture, 95)])
    assert outputs[0].num_cached_tokens <= 32  # another budget shares the text ahead of the picture alone
    assert found == [reference.answer(prompt, picture, flowcut(95))[0]]


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_batched_tokens": 48, "enable_chunked_prefill": True},
        {"hf_overrides": {"flowcut": {"method": "divprune", "budget": 48}}},
    ],
    ids=["prefill in chunks", "another method"],
)
def test_other_engines(embedded, reference, scenes, options):
    given = {"hf_overrides": {"flowcut": {"budget": 64}}, "dtype": "float32", **ENGINE, **options}
    engine = LLM(embedded, **given)
    pruner = given["hf_overrides"]["flowcut"]
    prompts = [(prompt_about(question), picture) for picture, question in scenes[:8]]
    expected = [reference.answer(prompt, picture, pruner)[0] for prompt, picture in prompts]
    assert answers(engine, [request(prompt, picture) for prompt, picture in prompts])[0] == expected


def test_without_the_field_everything_is_stock(embedded, reference, scenes):
    engine = LLM(embedded, dtype="float32", **ENGINE)
    prompts = [(prompt_about(question), picture) for picture, question in scenes[:8]]
    expected = [reference.answer(prompt, picture, None)[0] for prompt, picture in prompts]
    found, outputs = answers(engine, [request(prompt, picture) for prompt, picture in prompts])
    assert found == expected
    assert all(len(output.prompt_token_ids) > 576 for output in outputs)


def test_bfloat16(embedded, scenes):
    import torch
    from conftest import Reference
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    reference = Reference(embedded, LlavaForConditionalGeneration, AutoProcessor, torch.bfloat16)
    engine = LLM(embedded, hf_overrides={"flowcut": {"budget": 64}}, dtype="bfloat16", **ENGINE)
    prompts = [(prompt_about(question), picture) for picture, question in scenes]
    expected = [reference.answer(prompt, picture, {"budget": 64})[0] for prompt, picture in prompts]
    found, _ = answers(engine, [request(prompt, picture) for prompt, picture in prompts])
    equal = sum(one == two for one, two in zip(found, expected, strict=True))
    assert equal >= 0.9 * len(prompts)
