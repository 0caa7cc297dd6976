"""What families need that the built ones do not: a decoder that cannot be cut in, cells of patches, more arguments."""

import pytest
import torch
from transformers import GPTNeoXConfig, LlavaConfig, LlavaForConditionalGeneration

from flowcut import FastV, FlowCut, Pooling, Scorer, Uniform, View, attach
from flowcut.hooks.packing import ALIGNED, Aligned, pack, shorten_aligned
from flowcut.pruner import Cut, EncoderShape, ModelShape, Rows
from tests.flowcut.hosts import PATCHES, VISION, pixels, sharpen


class Silent:
    """A source that records nothing."""

    def record(self, name, values, view):
        pass


@pytest.fixture(scope="module")
def over_gpt_neox():
    """LLaVA over a language model whose layers have no `self_attn`."""
    torch.manual_seed(0)
    text = GPTNeoXConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    vision = {"model_type": "clip_vision_model", **VISION}
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=99))
    sharpen(model)
    return model.eval()


def test_a_decoder_that_cannot_be_cut_in_does_not_stop_the_encoder(over_gpt_neox):
    ids = torch.tensor([[1, 5, *[99] * PATCHES, 7, 8]])
    with torch.no_grad(), attach(over_gpt_neox, FlowCut(10)) as handle:
        logits = over_gpt_neox(input_ids=ids, pixel_values=pixels([0])).logits
    assert logits.shape[1] == 4 + 10
    assert [len(kept) for kept in handle.trace.final] == [10]


def test_a_method_that_cuts_there_is_refused(over_gpt_neox):
    with pytest.raises(ValueError, match="no method can cut inside a GPTNeoXModel"):
        attach(over_gpt_neox, FastV(30, layer=1, keep=5))


class Given(Scorer):
    """Scores that a test sets."""

    def score(self, view):
        return view.memory["score"]


def cells_of_two(counts=(24, 24), keep=None):
    """Two pictures of 4 x 6 patches (in tokens 2 x 3); `keep`: the patches of the second one that are there."""
    positions = torch.arange(24).repeat(2, 1)
    if keep is not None:
        positions[1, : len(keep)] = torch.tensor(keep)
        counts = (24, len(keep))
    q = torch.zeros(2, 1, 24, 4)
    shape = EncoderShape("", 4, 4, patches_per_token=4, cell=(2, 2), feature_layer=2)
    rows = Rows((0, 1), (1, 1), ((2, 3), (2, 3)), (6, 6))
    return View(2, 4, q, q, q, 1.0, counts, positions, Silent(), rows, shape)


def test_cells_of_a_raster_stay_whole():
    """Patch (r, c) of 4 x 6 lies in cell (r // 2, c // 2); the best cells by mean, patches in raster order."""
    view = cells_of_two()
    means = torch.tensor([[5.0, 1, 9, 2, 3, 4], [0, 8, 1, 7, 2, 3]])
    cell_of = torch.tensor([(r // 2) * 3 + c // 2 for r in range(4) for c in range(6)])
    noise = torch.randn(2, 24, generator=torch.Generator().manual_seed(0)) * 1e-3
    view.memory["score"] = means[:, cell_of] + noise
    cut = Given(2).vision(view)
    for row, best in enumerate(([0, 2], [1, 3])):
        expected = [patch for patch in range(24) if int(cell_of[patch]) in best]
        assert cut.keep[row].tolist() == expected
    assert torch.allclose(view.per_token(view.memory["score"]), means, atol=5e-3)
    assert view.token_numbers.tolist() == [[0, 1, 2, 3, 4, 5]] * 2


def test_cells_of_a_row_that_was_cut():
    """The second picture has cells 1 and 5 only; indices are those into what is there, padding comes last."""
    keep = [2, 3, 8, 9, 16, 17, 22, 23]
    view = cells_of_two(keep=keep)
    assert view.token_numbers[1, :2].tolist() == [1, 5]
    assert view.token_valid.tolist() == [[True] * 6, [True, True, False, False, False, False]]
    view.memory["score"] = torch.zeros(2, 24)
    view.memory["score"][1, 4:8] = 1.0
    cut = Given(1).vision(view)
    assert cut.keep[1].tolist() == [4, 5, 6, 7]
    assert view.positions[1, cut.keep[1]].tolist() == [16, 17, 22, 23]


def test_uniform_chooses_whole_cells():
    cut = Uniform(2).vision(cells_of_two())
    kept = [{(p // 6 // 2, p % 6 // 2) for p in row} for row in cut.keep.tolist()]
    assert all(len(cells) == 2 and len(row) == 8 for cells, row in zip(kept, cut.keep, strict=True))


def test_methods_that_merge_are_refused_where_the_model_merges():
    with pytest.raises(ValueError, match="Pooling cannot merge patches in a model that joins several"):
        Pooling(4).check(ModelShape((EncoderShape("", 4, 4, patches_per_token=4, cell=(2, 2)),)))


def test_every_aligned_argument_is_shortened():
    keep = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 1]]).bool()
    index, real, _ = pack(keep, None)
    call = {
        "labels": torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]),
        "token_type_ids": torch.tensor([[0, 0, 1, 1]]),  # one row for all
        "position_ids": torch.arange(24).view(3, 2, 4),
        "features": torch.arange(16.0).view(2, 4, 2),
        "image_index": None,
        "other": torch.tensor([1]),
    }
    aligned = {**ALIGNED, "token_type_ids": Aligned(9), "position_ids": Aligned(0, axis=2), "features": Aligned(-1.0)}
    shorten_aligned(call, aligned, index, real)
    assert call["labels"].tolist() == [[-100, 2, 4], [-100, -100, 8]]  # nothing predicts a row's first token
    assert call["token_type_ids"].tolist() == [[0, 0, 1], [9, 0, 1]]
    assert call["position_ids"].tolist() == [
        [[a * 8, a * 8 + 1, a * 8 + 3], [0, a * 8 + 5, a * 8 + 7]] for a in range(3)
    ]
    assert call["features"].tolist() == [[[0, 1], [2, 3], [6, 7]], [[-1, -1], [10, 11], [14, 15]]]
    assert call["image_index"] is None
    assert call["other"].tolist() == [1]


def test_rows_of_a_cut():
    cut = Cut.rows([torch.tensor([0, 2]), torch.tensor([1])], [torch.ones(2, 3), torch.ones(1, 3)], renumber=True)
    assert (cut.counts, cut.keep.tolist(), cut.hidden.shape, cut.renumber) == (
        (2, 1),
        [[0, 2], [1, 0]],
        (2, 2, 3),
        True,
    )
    merged = Cut.rows([torch.tensor([0]), torch.tensor([1])], into=[torch.tensor([0, 0]), torch.tensor([0])])
    assert merged.counts is None
    assert merged.into.tolist() == [[0, 0], [0, -1]]
