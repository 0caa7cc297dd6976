"""Gemma 3: FlowCut by hand, images that attend in both directions also when they were cut, and another tower."""

from dataclasses import dataclass

import pytest
import torch
from hosts import IMAGE, IMAGE_TOKEN, PATCHES, TEXT, VISION, HFGemma3, Sample, noise, sharpen
from naive_flowcut import Family, answer
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from flowcut import Cut, FlowCut, Pruner, attach
from flowcut.anatomy.gemma3_hf import blocks

pytestmark = pytest.mark.usefixtures("no_gradients")
HOST = HFGemma3()


@pytest.fixture(scope="module")
def model():
    return HOST.build()


def see(model):
    config = model.config.text_config

    def one(visual, layer):
        """Before it, and in the same image; in sliding layers no further back than the window."""
        place, shows = torch.arange(len(visual)), torch.tensor(visual)
        seen = (place[None] <= place[:, None]) | (shows[:, None] & shows[None])
        if config.layer_types[layer] == "sliding_attention":
            seen &= place[None] > place[:, None] - config.sliding_window
        return seen

    return one


def by_hand(model, cell):
    tower, project = model.model.vision_tower, model.model.multi_modal_projector

    def projections(layer, states):
        normed = layer.layer_norm1(states)
        return tuple(part(normed) for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj))

    def token(patches):
        mean = tower.post_layernorm(patches).mean(dim=0)
        normed = mean * (mean.square().mean() + model.config.vision_config.layer_norm_eps).rsqrt()
        return (normed * (1 + project.mm_soft_emb_norm.weight)) @ project.mm_input_projection_weight

    return Family(
        embed=lambda pixels: tower.embeddings(pixels[None])[0],
        layers=tower.encoder.layers,
        projections=projections,
        heads=4,
        prefix=0,
        cell=cell,
        last=6,
        project=token,
        text=model.model.language_model,
        see=see(model),
        unmasked={"attention_mask": None},
        twice=False,
    )


@pytest.mark.parametrize("budget", [5, 20])
def test_flowcut_by_hand(model, budget):
    sample = Sample([1, 5, IMAGE, 7, 8, 9], [1])
    inputs = HOST.inputs([sample], "left")
    expected, left = answer(
        by_hand(model, (2, 2)), model, HOST.row(sample), IMAGE_TOKEN, inputs["pixel_values"], budget
    )
    with attach(model, FlowCut(budget)) as handle:
        logits = model(**inputs).logits[0]
    [remaining] = handle.trace.remaining
    assert [(tile, patch // 24 * 6 + patch % 12 // 2) for tile, patch in remaining.tolist()] == left
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_cells_of_four_by_four_as_published():
    """16 x 16 patches make 4 x 4 tokens; the kept cells of two images fill more than one raster of the projector."""
    torch.manual_seed(0)
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**{**VISION, "patch_size": 3, "image_size": 48}, vision_use_head=False),
        text_config=Gemma3TextConfig(**TEXT, head_dim=8, query_pre_attn_scalar=8, sliding_window=16),
        image_token_index=IMAGE_TOKEN,
        mm_tokens_per_image=16,
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    sharpen(model)
    pixels, family = noise(0, 2, 3, 48, 48), by_hand(model, (4, 4))
    ids = [1, 5, *[IMAGE_TOKEN] * 16, 7, 8]
    both = torch.tensor([ids] * 2)
    with attach(model, FlowCut(11)) as handle:
        logits = model(input_ids=both, pixel_values=pixels, **HOST.types(both)).logits
    for row in range(2):
        expected, left = answer(family, model, ids, IMAGE_TOKEN, pixels[row : row + 1], 11)
        kept = [patch // 64 * 4 + patch % 16 // 4 for patch in handle.trace.remaining[row][:, 1].tolist()]
        assert kept == [cell for _, cell in left]
        torch.testing.assert_close(logits[row], expected, atol=1e-4, rtol=1e-4)


@dataclass(frozen=True)
class EverySecond(Pruner):
    """Keeps every second visual token after the first decoder layer."""

    def language(self, view):
        if view.layer:
            return None
        return Cut.rows([torch.arange(0, count, 2) for count in view.counts], renumber=True)


def test_a_cut_image_is_one_block_still(model):
    """After the cut the image's first token sees its last one: changing the last one's embedding changes it."""
    ids = torch.tensor([[1, 5, *[IMAGE_TOKEN] * PATCHES, 7, 8]])
    seen = []
    watch = model.model.language_model.layers[1].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    with attach(model, EverySecond(1000)):
        model(input_ids=ids, pixel_values=noise(0, 1, 3, 24, 24), **HOST.types(ids))
        model(input_ids=ids, pixel_values=noise(0, 1, 3, 24, 24))
    watch.remove()
    visual, length = slice(2, 2 + PATCHES // 2), 4 + PATCHES // 2
    both, causal = (torch.ones(length, length).tril().bool() if mask is None else mask[0, 0] for mask in seen)
    both, causal = (mask if mask.dtype == torch.bool else mask == 0 for mask in (both, causal))
    expected = torch.ones(length, length).tril().bool()
    assert torch.equal(causal, expected)
    expected[visual, visual] = True
    assert torch.equal(both, expected)


def test_blocks_are_runs_of_image_tokens():
    found = blocks(torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]]))
    assert found.tolist() == [[-1, 1, 1, -1, 3], [0, 0, -1, -1, -1]]


def test_another_tower_is_refused():
    vision = CLIPVisionConfig(**{**VISION, "patch_size": 2})
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**{**VISION, "patch_size": 2}),
        text_config=HOST.config().text_config,
        mm_tokens_per_image=PATCHES,
    )
    config.vision_config = vision
    with torch.device("meta"):
        other = Gemma3ForConditionalGeneration(config)
    with pytest.raises(ValueError, match="a CLIPVisionModel as vision tower of Gemma 3 cannot be pruned"):
        attach(other, FlowCut(6))


def test_patches_that_make_no_whole_cells_are_refused():
    """The default config of transformers' class has 14 x 14 patches for 16 x 16 tokens."""
    with torch.device("meta"):
        other = Gemma3ForConditionalGeneration(Gemma3Config(text_config=HOST.config().text_config))
    with pytest.raises(ValueError, match="14 x 14 patches cannot be divided into 16 x 16 tokens"):
        attach(other, FlowCut(6))
