"""transformers' LLaVA with closed-up prompts: losses, text alone, conversations on a cache, misuse."""

import copy

import pytest
import torch
from hosts import IMAGE_TOKEN, PATCHES, SAMPLES, VIDEO_TOKEN, HFLlava, all_hosts, noise, pixels
from torch.nn.functional import cross_entropy

from flowcut import FastV, FlowCut, attach
from flowcut.compat import CACHE

HOST = HFLlava()
BUDGET = 10
SETTINGS = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def model():
    return HOST.build()


@pytest.fixture
def handle(model):
    with attach(model, FlowCut(BUDGET)) as handle:
        yield handle


@pytest.fixture
def pruned(model, handle):
    return model


def turns():
    """A first prompt with an image, and a second question behind its answer."""
    return torch.tensor([[1, 5, *[IMAGE_TOKEN] * PATCHES, 7, 8]]), torch.tensor([[20, 21, 22]])


def test_loss_is_that_of_the_shortened_labels(pruned, handle):
    """Placeholders are labelled too, so that a dropped one that came back as padding would be heard."""
    inputs = HOST.inputs(SAMPLES, "right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    result = pruned(**inputs, labels=labels)
    logits, targets = [], []
    for sample, row in zip(SAMPLES, HOST.outputs(pruned, SAMPLES, handle), strict=True):
        tokens = [t for x in sample.prompt for t in ([IMAGE_TOKEN] * BUDGET if x < 0 else [x])]
        logits.append(row[:-1])
        targets.append(torch.tensor(tokens[1:]))
    torch.testing.assert_close(result.loss, cross_entropy(torch.cat(logits), torch.cat(targets)))


def test_text_alone_stays_as_it_is(model):
    ids = torch.tensor([[1, 5, 6, 7]])
    vanilla = model(input_ids=ids).logits
    with attach(model, FlowCut(BUDGET)):
        model(**HOST.inputs(SAMPLES[:1], "left"))
        assert torch.equal(model(input_ids=ids).logits, vanilla)


def test_hidden_states_and_features_have_the_closed_up_length(pruned):
    result = pruned(**HOST.inputs(SAMPLES[:1], "left"), output_hidden_states=True)
    assert {state.shape[1] for state in result.hidden_states} == {len(SAMPLES[0].prompt) - 1 + BUDGET}
    features = result.image_hidden_states  # one tensor, or from transformers 5.24 on one per image
    assert sum(len(part) for part in ([features] if isinstance(features, torch.Tensor) else features)) == BUDGET


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_are_closed_up(pruned, handle, side):
    seen = []
    pruned.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((kwargs["position_ids"], kwargs["attention_mask"])), with_kwargs=True
    )
    pruned(**HOST.inputs(SAMPLES, side))
    positions, mask = seen[0]
    for row, real, length in zip(positions, mask.bool(), HOST.lengths(SAMPLES, handle), strict=True):
        assert row[real].tolist() == list(range(length))


def test_entering_at_the_inner_model(model):
    inputs = HOST.inputs(SAMPLES, "left")
    with attach(model, FlowCut(BUDGET)):
        outer = model(**inputs, output_hidden_states=True).hidden_states[-1]
        assert torch.equal(model.model(**inputs).last_hidden_state, outer)
    with attach(model.model, FlowCut(BUDGET)):
        assert torch.equal(model.model(**inputs).last_hidden_state, outer)
    assert model.model(**inputs).last_hidden_state.shape[1] == inputs["input_ids"].shape[1]


def test_positional_arguments(pruned):
    inputs = HOST.inputs(SAMPLES, "left")
    by_name = pruned(**inputs).logits
    assert torch.equal(pruned(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"]).logits, by_name)


def test_embeddings_instead_of_ids(pruned, handle):
    inputs = HOST.inputs(SAMPLES, "left")
    by_ids = pruned(**inputs).logits
    embeds = pruned.get_input_embeddings()(inputs.pop("input_ids"))
    real = torch.arange(by_ids.shape[1]) >= by_ids.shape[1] - torch.tensor(HOST.lengths(SAMPLES, handle))[:, None]
    assert torch.equal(pruned(inputs_embeds=embeds, **inputs).logits[real], by_ids[real])


@pytest.mark.parametrize("with_mask", [True, False])
def test_decoding_by_hand(pruned, with_mask):
    """A loop that knows nothing of the shortening: it keeps its own, long mask, or none."""
    samples = SAMPLES[:1] if not with_mask else SAMPLES
    inputs = HOST.inputs(samples, "left")
    expected = HOST.generate(pruned, samples)
    mask = inputs["attention_mask"]
    result = pruned(**inputs, use_cache=True)
    tokens = []
    for _ in range(5):
        tokens.append(result.logits[:, -1].argmax(dim=-1, keepdim=True))
        mask = torch.cat([mask, torch.ones_like(tokens[-1])], dim=1)
        given = {"attention_mask": mask} if with_mask else {}
        result = pruned(input_ids=tokens[-1], **{CACHE: result[CACHE]}, **given)
    assert torch.equal(torch.cat(tokens, dim=1), expected)


@pytest.mark.parametrize("copied", [False, True])
def test_second_question_on_the_cache(pruned, copied):
    first, second = turns()
    answer = pruned.generate(
        input_ids=first, pixel_values=pixels([0]), return_dict_in_generate=True, use_cache=True, **SETTINGS
    )
    conversation = torch.cat([answer.sequences, second], dim=1)
    fresh = pruned.generate(input_ids=conversation, pixel_values=pixels([0]), **SETTINGS)
    cache = copy.deepcopy(answer[CACHE]) if copied else answer[CACHE]
    assert torch.equal(pruned.generate(input_ids=conversation, **{CACHE: cache}, **SETTINGS), fresh)


def test_second_image_on_the_cache(pruned):
    first, second = turns()
    answer = pruned.generate(
        input_ids=first, pixel_values=pixels([0]), return_dict_in_generate=True, use_cache=True, **SETTINGS
    )
    conversation = torch.cat([answer.sequences, torch.tensor([[30, *[IMAGE_TOKEN] * PATCHES]]), second], dim=1)
    fresh = pruned.generate(input_ids=conversation, pixel_values=pixels([0, 1]), **SETTINGS)
    cache = answer[CACHE]
    cached = pruned.generate(
        input_ids=conversation, pixel_values=pixels([1]), **{CACHE: cache}, use_cache=True, **SETTINGS
    )
    assert torch.equal(cached, fresh)


def test_guessing_ahead(pruned):
    """Prompt lookup decoding shortens the cache again when a guess was wrong."""
    first, _ = turns()
    plain = pruned.generate(input_ids=first, pixel_values=pixels([0]), **SETTINGS)
    guessed = pruned.generate(input_ids=first, pixel_values=pixels([0]), prompt_lookup_num_tokens=3, **SETTINGS)
    assert torch.equal(guessed, plain)


def test_several_returned_sequences_of_two_images(pruned):
    inputs = HOST.inputs([SAMPLES[1]], "left")
    ids = pruned.generate(**inputs, max_new_tokens=3, do_sample=True, num_return_sequences=3, top_k=1)
    assert torch.equal(ids[0], ids[1])
    assert torch.equal(ids[0], pruned.generate(**inputs, max_new_tokens=3, do_sample=False)[0])


def test_already_short_prompts_are_taken(pruned):
    """Callers who write one placeholder per remaining token get the same."""
    long, _ = turns()
    short = torch.tensor([[1, 5, *[IMAGE_TOKEN] * BUDGET, 7, 8]])
    logits = [pruned(input_ids=ids, pixel_values=pixels([0])).logits for ids in (long, short)]
    torch.testing.assert_close(logits[0], logits[1])


def test_misuse_is_told_in_one_line(pruned):
    ids, _ = turns()
    images = pixels([0])
    with pytest.raises(ValueError, match="35 image placeholders for 1 images or frames; write 36"):
        pruned(input_ids=ids[:, [0, *range(3, ids.shape[1])]], pixel_values=images)
    with pytest.raises(ValueError, match="no static cache"):
        pruned.generate(input_ids=ids, pixel_values=images, cache_implementation="static", **SETTINGS)
    with pytest.raises(ValueError, match="logits_to_keep"):
        pruned(input_ids=ids, pixel_values=images, logits_to_keep=torch.tensor([3]))
    cache = pruned(input_ids=ids, pixel_values=images, use_cache=True)[CACHE]
    with pytest.raises(ValueError, match="assumes 7 earlier tokens"):
        pruned(input_ids=ids[:, :1], **{CACHE: cache}, attention_mask=torch.ones(1, 8, dtype=torch.long))


def test_video_llava_takes_images_under_their_older_name(tmp_path):
    """Processors still say pixel_values_images."""
    host = all_hosts(tmp_path)["video_llava"]
    model = host.build()
    inputs = host.inputs(host.samples(), "left")
    with attach(model, FlowCut(BUDGET)):
        expected = model(**inputs).logits
        inputs["pixel_values_images"] = inputs.pop("pixel_values")
        assert torch.equal(model(**inputs).logits, expected)


def test_onevision_with_several_images_of_one_tile(tmp_path):
    """Where a prompt shows several images, OneVision cuts none of them up; each keeps the whole budget."""
    model = all_hosts(tmp_path)["llava_onevision"].build()
    row = [1, *[IMAGE_TOKEN] * (PATCHES + 1), 5, *[IMAGE_TOKEN] * (PATCHES + 1), 7]
    inputs = {
        "input_ids": torch.tensor([row]),
        "pixel_values": pixels([0, 1])[:, None],
        "image_sizes": torch.tensor([[48, 48], [24, 48]]),
        "batch_num_images": torch.tensor([2]),
    }
    assert model(**inputs).logits.shape[1] == len(row)
    with attach(model, FlowCut(BUDGET)) as handle:
        assert model(**inputs).logits.shape[1] == 3 + 2 * BUDGET
        assert [len(tokens) for tokens in handle.trace.remaining] == [BUDGET, BUDGET]
        new = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert new.shape[1] == len(row) + 2


def test_onevision_video(tmp_path):
    """Frames keep the budget of their patches, which are no longer averaged; the token that ends the video stays."""
    model = all_hosts(tmp_path)["llava_onevision"].build()
    pooled, frames = 9, 3
    row = [1, *[VIDEO_TOKEN] * (frames * pooled + 1), 5, 6]
    inputs = {"input_ids": torch.tensor([row, row]), "pixel_values_videos": noise(1, 2, frames, 3, 24, 24)}
    vanilla = model(**inputs).logits
    assert vanilla.shape[1] == len(row)
    with attach(model, FlowCut(4)) as handle:
        both = model(**inputs).logits
        assert both.shape[1] == 3 + frames * 4 + 1
        assert [len(tokens) for tokens in handle.trace.remaining] == [4] * frames * 2
        one = model(input_ids=inputs["input_ids"][:1], pixel_values_videos=inputs["pixel_values_videos"][:1]).logits
        torch.testing.assert_close(one, both[:1], atol=1e-4, rtol=1e-4)
        assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] == len(row) + 2
        handle.budget = pooled  # as many as the unpruned model averages its patches to
        assert torch.equal(model(**inputs).logits, vanilla)


@pytest.mark.parametrize("pruner", [FlowCut(1000), FastV.keeping(1000)], ids=["flowcut", "fastv"])
def test_every_argument_of_the_model_reaches_it(pruner, tmp_path):
    """Qwen2.5-VL's seconds per grid change a video's positions, also where a pruner watches and drops nothing."""
    host = all_hosts(tmp_path)["qwen2_5_vl"]
    model, inputs = host.build(), host.inputs(host.samples()[1:2], "left")
    plain = model(**inputs).logits
    for seconds in (0.5, 4.0):
        timed = {**inputs, "second_per_grid_ts": torch.tensor([seconds])}
        vanilla = model(**timed).logits
        assert not torch.equal(vanilla, plain)
        with attach(model, pruner):
            assert torch.equal(model(**timed).logits, vanilla)
