"""M-RoPE positions of a prompt with pruned images, by hand."""

import numpy as np
import pytest
import torch

from flowcut_vllm.mrope import digits, numbers_in, place_kept_tokens, text_positions


def test_positions_are_those_of_the_unpruned_prompt():
    """Two images of 2 x 3 and 4 x 1 tokens between texts, counted by hand."""
    rows = [(0, 0), (0, 2), (1, 1)], [(1, 0), (3, 0)]
    #        t  t  image of 3 positions  t   image of 4 positions    t
    whole = [0, 1, 2, 2, 2, 5, 6, 6, 10]
    positions, following = text_positions(9, [(2, 3, 3), (6, 2, 4)])
    assert positions.tolist() == whole
    assert following == 11
    is_image = torch.tensor([False, False, True, True, True, False, True, True, False])
    brought = [
        digits(torch.tensor([[*place, room] for place in part]), torch.zeros(1))
        for part, room in zip(rows, (3, 4), strict=True)
    ]
    start = torch.from_numpy(np.repeat(positions[None], 3, axis=0))
    placed, following = place_kept_tokens(start, is_image, brought, 0)
    assert placed[0].tolist() == whole
    assert placed[1].tolist() == [0, 1, 2, 2, 3, 5, 7, 9, 10]
    assert placed[2].tolist() == [0, 1, 2, 4, 3, 5, 6, 6, 10]
    assert following == 11
    first, _ = place_kept_tokens(start, is_image, [brought[0][:2]], 0)
    both, _ = place_kept_tokens(first, is_image, [brought[0][2:], brought[1]], 4)
    assert torch.equal(both, placed)
    assert place_kept_tokens(start[:, :8], is_image[:8], brought, 0)[1] == 10  # a prompt that ends with an image


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_numbers_survive_the_embeddings_type(dtype):
    numbers = torch.tensor([[0, 127, 128], [255, 257, 1000], [16383, 5, 300]])
    assert torch.equal(numbers_in(digits(numbers, torch.zeros(1, dtype=dtype))), numbers)
