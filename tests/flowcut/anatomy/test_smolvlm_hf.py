"""SmolVLM and Idefics3: FlowCut by hand, tiles with text between, patches of padding, and features by themselves."""

import pytest
import torch
from hosts import IMAGE, IMAGE_TOKEN, PATCHES, TEXT, VISION, HFSmolVLM, Sample, noise, sharpen
from naive_flowcut import Family, answer, causal, cells
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, LlamaConfig

from flowcut import FlowCut, Random, VisPruner, attach

pytestmark = pytest.mark.usefixtures("no_gradients")
HOST = HFSmolVLM()


@pytest.fixture(scope="module")
def model():
    return HOST.build()


def by_hand(model, cell=(2, 2), attended=None):
    tower, project = model.model.vision_model, model.model.connector.modality_projection
    attended = torch.ones(12, 12, dtype=torch.bool) if attended is None else attended

    def projections(layer, states):
        normed = layer.layer_norm1(states)
        return tuple(part(normed) for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj))

    return Family(
        embed=lambda pixels: tower.embeddings(pixels[None], attended[None])[0],
        layers=tower.encoder.layers,
        projections=projections,
        heads=4,
        prefix=0,
        cell=cell,
        last=6,
        project=lambda patches: project(tower.post_layernorm(patches).flatten()),
        text=model.model.text_model,
        see=causal,
        padding=frozenset((~attended).flatten().nonzero().flatten().tolist()),
        unmasked={"attention_mask": None},
    )


@pytest.mark.parametrize("budget", [5, 12])
def test_flowcut_by_hand(model, budget):
    sample = Sample([1, 5, IMAGE, 7, 8, 9], [0])
    pixels = HOST.media([sample])["pixel_values"][0]
    expected, left = answer(by_hand(model), model, HOST.row(sample), IMAGE_TOKEN, pixels, budget)
    with attach(model, FlowCut(budget)) as handle:
        logits = model(**HOST.inputs([sample], "left")).logits[0]
    assert kept(handle) == left
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def kept(handle, side=2):
    columns = 12 // side
    return [
        (tile, patch // (12 * side) * columns + patch % 12 // side)
        for tile, patch in handle.trace.remaining[0].tolist()
    ]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_flowcut_by_hand_with_patches_of_padding(model, implementation):
    """The last three columns and five rows of patches show padding; one row of cells is half padding."""
    sample = Sample([1, 5, IMAGE, 7, 8, 9], [0])
    inputs, mask = HOST.inputs([sample], "left"), torch.zeros(1, 1, 24, 24, dtype=torch.long)
    mask[..., :14, :18] = 1
    attended = torch.zeros(12, 12, dtype=torch.bool)
    attended[:7, :9] = True
    family = by_hand(model, attended=attended)
    expected, left = answer(family, model, HOST.row(sample), IMAGE_TOKEN, inputs["pixel_values"][0], 8)
    model.set_attn_implementation(implementation)
    try:
        with attach(model, FlowCut(8)) as handle:
            logits = model(**inputs, pixel_attention_mask=mask).logits[0]
            assert kept(handle) == left
            again = model(**HOST.inputs([sample], "left"), pixel_attention_mask=torch.ones_like(mask)).logits[0]
            whole = model(**inputs).logits[0]
    finally:
        model.set_attn_implementation("sdpa")
    assert torch.equal(again, whole)
    assert not torch.allclose(logits, whole)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pruner", [FlowCut(6), VisPruner(9), Random(7), FlowCut(1000)], ids=str)
def test_a_batch_with_and_without_padding_in_tiles(model, pruner):
    """Tiles of two sizes, padded to the larger: each as alone; with a large budget as without a pruner."""
    samples = [Sample([1, 5, IMAGE, 7], [0]), Sample([1, IMAGE, 6, 7], [2])]
    inputs, mask = HOST.inputs(samples, "left"), torch.ones(2, 1, 24, 24, dtype=torch.long)
    mask[1, ..., 16:, :] = 0
    bare = model(**inputs, pixel_attention_mask=mask).logits
    with attach(model, pruner) as handle:
        together = model(**inputs, pixel_attention_mask=mask).logits
        left = [tokens[:, 1] for tokens in handle.trace.remaining]
        for row, sample in enumerate(samples):
            alone = model(**HOST.inputs([sample], "left"), pixel_attention_mask=mask[row : row + 1]).logits[0]
            assert torch.equal(handle.trace.remaining[0][:, 1], left[row])
            torch.testing.assert_close(together[row, -len(alone) :], alone, atol=1e-4, rtol=1e-4)
    assert torch.equal(together, bare) == (pruner.budget == 1000)


TILE = [IMAGE_TOKEN] * PATCHES


def call(ids):
    return {
        "input_ids": torch.tensor([ids]),
        "pixel_values": torch.stack([noise(n, 3, 24, 24) for n in range(3)])[None],
    }


@pytest.mark.parametrize(
    ("ids", "left"),
    [
        # a picture in two tiles and a whole, in one batch row with line ends between
        ([1, 97, 81, *TILE, 97, 82, *TILE, 20, 97, 80, *TILE, 97, 5], [6]),
        # three pictures in one tile each
        ([1, 97, 80, *TILE, 97, 7, 97, 80, *TILE, 97, 7, 97, 80, *TILE, 97, 5], [6, 6, 6]),
        # a picture in a tile and a whole, and one in one tile
        ([1, 97, 81, *TILE, 97, 80, *TILE, 97, 97, 80, *TILE, 97, 5], [6, 6]),
        # written in another way, and without a gap
        ([*TILE, 7, *TILE, 8, *TILE, 9], [6, 6, 6]),
        ([1, *TILE, *TILE, *TILE, 9], [6, 6, 6]),
    ],
)
def test_which_tiles_show_one_picture(model, ids, left):
    with attach(model, VisPruner(6)) as handle:
        model(**call(ids))
        assert [len(tokens) for tokens in handle.trace.tokens] == left
        model.generate(**call(ids), max_new_tokens=1, do_sample=False)
        assert [len(tokens) for tokens in handle.trace.tokens] == left


def test_features_by_themselves(model):
    with attach(model, VisPruner(6)) as handle:
        outputs = model.model.get_image_features(call([1])["pixel_values"])
        assert [len(tokens) for tokens in handle.trace.tokens] == [6, 6, 6]
        assert [part.shape for part in outputs.pooler_output] == [(6, 32)] * 3


def test_a_prompt_for_another_number_of_tiles(model):
    with (
        attach(model, FlowCut(6)),
        pytest.raises(ValueError, match="72 image placeholders in 2 runs for 3 tiles; write 36"),
    ):
        model(**call([1, *TILE, 5, *TILE, 9]))


def test_idefics3_with_cells_of_three():
    """The same layout under other names; 12 x 12 patches make 4 x 4 tokens."""
    torch.manual_seed(0)
    config = Idefics3Config(
        vision_config={**VISION, "patch_size": 2},
        text_config=LlamaConfig(**TEXT),
        image_token_id=IMAGE_TOKEN,
        scale_factor=3,
    )
    model = Idefics3ForConditionalGeneration(config).eval()
    sharpen(model)
    pixels = noise(0, 1, 1, 3, 24, 24)
    ids = [1, 97, 80, *[IMAGE_TOKEN] * 16, 97, 5]
    expected, left = answer(by_hand(model, cell=(3, 3)), model, ids, IMAGE_TOKEN, pixels[0], 5)
    with attach(model, FlowCut(5)) as handle:
        logits = model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0]
    assert kept(handle, side=3) == left
    assert len(cells(list(range(144)), 12, (3, 3))) == 16
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
