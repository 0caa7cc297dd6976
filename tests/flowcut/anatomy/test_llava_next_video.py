"""LLaVA-NeXT-Video: pictures as in LLaVA-NeXT, and frames that keep their patches instead of averages."""

import pytest
import torch
from hosts import (
    GRIDS,
    IMAGE,
    IMAGE_TOKEN,
    TEXT,
    VIDEO,
    VIDEO_SAMPLES,
    VIDEO_TOKEN,
    VISION,
    HFLlavaNext,
    Sample,
    noise,
)
from naive_flowcut import Family, answer, causal
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

from flowcut import FastV, FlowCut, attach

pytestmark = pytest.mark.usefixtures("no_gradients")
PRUNERS = [FlowCut(5), FastV.keeping(6)]


class HFNextVideo(HFLlavaNext):
    """Three frames a video, of 3 x 3 averaged tokens."""

    name = "llava_next_video"

    def config(self):
        return LlavaNextVideoConfig(
            vision_config=CLIPVisionConfig(**VISION),
            text_config=LlamaConfig(**TEXT),
            image_token_index=IMAGE_TOKEN,
            video_token_index=VIDEO_TOKEN,
            image_grid_pinpoints=GRIDS,
        )

    def new(self, config):
        return LlavaNextVideoForConditionalGeneration(config)

    def frames(self, video):
        return [9] * 3

    def media(self, samples):
        videos = [noise(10 + video, 3, 3, 24, 24) for sample in samples for video in sample.videos]
        return super().media(samples) | ({"pixel_values_videos": torch.stack(videos)} if videos else {})


HOST = HFNextVideo()


@pytest.fixture(scope="module")
def model():
    return HOST.build()


def test_a_video_by_hand(model):
    """Every frame keeps the budget, and all drop the same number, the largest of any; nothing is averaged."""
    tower, project = model.model.vision_tower, model.model.multi_modal_projector

    def projections(layer, states):
        normed = layer.layer_norm1(states)
        return tuple(part(normed) for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj))

    family = Family(
        embed=lambda pixels: tower.pre_layrnorm(tower.embeddings(pixels[None]))[0],
        layers=tower.encoder.layers[:-1],
        projections=projections,
        heads=4,
        prefix=1,
        cell=(1, 1),
        last=5,
        project=lambda patch: project(patch)[0],
        text=model.model.language_model,
        see=causal,
        unmasked={"attention_mask": None},
        twice=False,
    )
    sample = Sample([1, 5, VIDEO, 7, 8], [], [0])
    inputs = HOST.inputs([sample], "left")
    ids = inputs["input_ids"][0].tolist()
    expected, left = answer(family, model, ids, VIDEO_TOKEN, inputs["pixel_values_videos"][0], 3 * 5)
    with attach(model, FlowCut(5)) as handle:
        logits = model(**inputs).logits[0]
    assert [tuple(place) for tokens in handle.trace.remaining for place in tokens.tolist()] == left
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pruner", PRUNERS, ids=["flowcut", "fastv"])
def test_videos_pictures_and_text_in_a_batch(model, pruner):
    with attach(model, pruner) as handle:
        together = HOST.outputs(model, VIDEO_SAMPLES, handle)
        for sample, row in zip(VIDEO_SAMPLES, together, strict=True):
            torch.testing.assert_close(HOST.outputs(model, [sample], handle)[0], row, atol=1e-4, rtol=1e-4)
        cached = HOST.generate(model, VIDEO_SAMPLES)
        assert torch.equal(cached, torch.cat([HOST.generate(model, [sample]) for sample in VIDEO_SAMPLES]))


def test_a_budget_that_drops_nothing(model):
    bare = HOST.outputs(model, VIDEO_SAMPLES)
    with attach(model, FlowCut(1000)) as handle:
        handle.budget = 1000
        logits = model(**HOST.inputs(VIDEO_SAMPLES, "right")).logits
    assert torch.equal(logits[0, : len(bare[0])], bare[0])
    assert handle.trace.kept == {}


def test_pictures_are_those_of_llava_next(model):
    """The same weights in both classes."""
    other, host = HFLlavaNext().build(), HFLlavaNext()
    other.load_state_dict(model.state_dict())
    samples = [Sample([1, IMAGE, 20, IMAGE, 21], [1, 2])]
    for pruner in (FlowCut(10), FlowCut(1000)):
        results = []
        for which, own in ((HOST, model), (host, other)):
            with attach(own, pruner) as handle:
                results.append(which.outputs(own, samples, handle)[0])
        assert torch.equal(*results)
