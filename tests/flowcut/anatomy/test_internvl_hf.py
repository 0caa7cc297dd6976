"""InternVL: FlowCut by hand, one run of placeholders is one picture, and what is refused."""

import pytest
import torch
from hosts import IMAGE, IMAGE_TOKEN, PATCHES, HFInternVL, Sample, noise
from naive_flowcut import Family, answer, causal
from transformers import CLIPVisionConfig, InternVLConfig, InternVLForConditionalGeneration

from flowcut import FlowCut, VisPruner, attach
from flowcut.compat import CACHE

pytestmark = pytest.mark.usefixtures("no_gradients")
HOST = HFInternVL()


@pytest.fixture(scope="module")
def model():
    return HOST.build()


def by_hand(model):
    tower, project = model.model.vision_tower, model.model.multi_modal_projector

    def projections(layer, states):
        normed = layer.layernorm_before(states)
        return tuple(part(normed) for part in (layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj))

    return Family(
        embed=lambda pixels: tower.embeddings(pixels[None])[0],
        layers=tower.encoder.layer,
        projections=projections,
        heads=4,
        prefix=1,
        cell=(2, 2),
        last=6,
        project=lambda cell: project(tower.layernorm(cell).flatten()),
        text=model.model.language_model,
        see=causal,
    )


@pytest.mark.parametrize(("image", "budget"), [(0, 5), (1, 10), (3, 7)])
def test_flowcut_by_hand(model, image, budget):
    sample = Sample([1, 5, IMAGE, 7, 8, 9], [image])
    media = HOST.media([sample])
    expected, left = answer(by_hand(model), model, HOST.row(sample), IMAGE_TOKEN, media["pixel_values"], budget)
    with attach(model, FlowCut(budget)) as handle:
        logits = model(**HOST.inputs([sample], "left")).logits[0]
    [remaining] = handle.trace.remaining
    assert [(tile, patch // 24 * 6 + patch % 12 // 2) for tile, patch in remaining.tolist()] == left
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def frames(prompt):
    return {"input_ids": torch.tensor([prompt]), "pixel_values": torch.stack([noise(n, 3, 24, 24) for n in range(3)])}


def test_tiles_in_one_run_share_a_budget_and_frames_have_one_each(model):
    """As the processor writes them: tiles of a picture without a gap, frames of a video with text between."""
    one = [IMAGE_TOKEN] * PATCHES
    with attach(model, VisPruner(6)) as handle:
        model(**frames([1, *one, *one, *one, 5]))
        assert [len(tokens) for tokens in handle.trace.tokens] == [6]
        assert handle.trace.unpruned_tokens == (3 * PATCHES,) * 3
        model(**frames([1, *one, 7, *one, 7, *one, 5]))
        assert [len(tokens) for tokens in handle.trace.tokens] == [6, 6, 6]
        model(**frames([1, *one, *one, 7, *one, 5]))
        assert [len(tokens) for tokens in handle.trace.tokens] == [6, 6]
        assert repr(handle).startswith("VisPruner, 36-72 -> 6 tokens per image")
        assert "encoder FLOPs -" in repr(handle)


def test_generate_and_embeddings_know_the_tiles_of_a_picture(model):
    ids = [1, *[IMAGE_TOKEN] * 3 * PATCHES, 5, 6]
    with attach(model, FlowCut(6)) as handle:
        model.generate(**frames(ids), max_new_tokens=2, do_sample=False)
        assert [len(tokens) for tokens in handle.trace.remaining] == [6]
        call = frames(ids)
        embeds = model.get_input_embeddings()(call.pop("input_ids"))
        model(**call, inputs_embeds=embeds)
        assert [len(tokens) for tokens in handle.trace.remaining] == [6]


def test_features_alone_are_of_one_picture_for_each_tile(model):
    with attach(model, VisPruner(6)) as handle:
        outputs = model.model.get_image_features(frames([1])["pixel_values"])
        assert outputs.pooler_output.shape == (3, 6, 32)
        assert [len(tokens) for tokens in handle.trace.tokens] == [6, 6, 6]


def test_a_run_that_is_no_whole_number_of_tiles(model):
    with attach(model, FlowCut(6)), pytest.raises(ValueError, match=r"write 36 for each tile, those of one picture"):
        model(**frames([1, *[IMAGE_TOKEN] * (3 * PATCHES - 1), 5]))


def test_pictures_that_are_not_square(model):
    wide = {"input_ids": torch.tensor([[1, *[IMAGE_TOKEN] * 32, 5]]), "pixel_values": noise(0, 1, 3, 16, 32)}
    with attach(model, FlowCut(6)), pytest.raises(ValueError, match="8 x 16 patches is not a square of whole cells"):
        model(**wide)


def test_another_tower_is_refused():
    config = InternVLConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ),
        text_config=HOST.config().text_config,
    )
    with torch.device("meta"):
        other = InternVLForConditionalGeneration(config)
    with pytest.raises(ValueError, match="a CLIPVisionModel as vision tower of InternVL cannot be pruned"):
        attach(other, FlowCut(6))


def test_features_of_another_layer_are_refused():
    config = HOST.config()
    config.vision_feature_layer = -2
    with torch.device("meta"):
        other = InternVLForConditionalGeneration(config)
    with pytest.raises(ValueError, match=r"vision_feature_layer=-2 .* is not supported for InternVL"):
        attach(other, FlowCut(6))


def test_a_video_goes_on_in_a_second_turn(model):
    """Frames in the first turn, text in the second, on the cache: as in one forward."""
    one, text = [IMAGE_TOKEN] * PATCHES, [20, 21, 22]
    first = frames([1, *one, 7, *one, 7, *one, 5])
    with attach(model, VisPruner(6)):
        whole = model(**frames([1, *one, 7, *one, 7, *one, 5, *text])).logits[0, -3:]
        cache = model(**first, use_cache=True)[CACHE]
        second = model(input_ids=torch.tensor([text]), **{CACHE: cache}, use_cache=True).logits[0]
    torch.testing.assert_close(second, whole, atol=1e-4, rtol=1e-4)
