"""The splice, position by position."""

import pytest
import torch

from llava.constants import IGNORE_INDEX
from llava.model.splice import assign_images, splice

IMAGE = -200


def text(ids: torch.Tensor) -> torch.Tensor:
    """Embeddings that carry the id in both components, so that one sees where they went."""
    return ids[..., None].expand(*ids.shape, 2).float()


def visual(number: int, length: int) -> torch.Tensor:
    """`length` tokens of image `number`: 1000 * number + place."""
    return (1000.0 * number + torch.arange(length))[:, None].expand(length, 2)


def test_images_of_any_length_take_their_places():
    ids = torch.tensor([[1, IMAGE, 7, IMAGE], [1, 5, IMAGE, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    labels = torch.tensor([[-100, -100, 7, -100], [-100, 5, -100, -100]])
    out = splice(ids, text(ids), [visual(1, 2), visual(2, 3), visual(3, 1)], mask, labels)

    assert out.inputs_embeds[..., 0].tolist() == [[1, 1000, 1001, 7, 2000, 2001, 2002], [1, 5, 3000, 0, 0, 0, 0]]
    assert out.image_index.tolist() == [[-1, 0, 0, -1, 1, 1, 1], [-1, -1, 2, -1, -1, -1, -1]]
    ignored = IGNORE_INDEX
    assert out.labels.tolist() == [
        [ignored, ignored, ignored, 7, ignored, ignored, ignored],
        [ignored, 5, *[ignored] * 5],
    ]
    assert out.attention_mask.tolist() == [[True] * 7, [True] * 3 + [False] * 4]
    assert out.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 0, 0, 0, 0]]


@pytest.mark.parametrize("padding", [[1, 1, 0], [0, 1, 1]])
def test_the_side_of_the_padding_does_not_matter_on_entry_and_is_chosen_on_exit(padding):
    rows = {(1, 1, 0): [4, IMAGE, 0], (0, 1, 1): [0, 4, IMAGE]}
    ids = torch.tensor([rows[tuple(padding)], [1, 2, 3]])
    mask = torch.tensor([padding, [1, 1, 1]])
    out = splice(ids, text(ids), [visual(1, 1)], mask, padding_side="left")
    assert out.inputs_embeds[..., 0].tolist() == [[0, 4, 1000], [1, 2, 3]]
    assert out.attention_mask.tolist() == [[False, True, True], [True] * 3]
    assert out.position_ids.tolist() == [[0, 0, 1], [0, 1, 2]]
    assert out.image_index.tolist() == [[-1, -1, 0], [-1] * 3]


def test_the_cut_may_fall_inside_an_image():
    ids = torch.tensor([[1, IMAGE, 9]])
    out = splice(ids, text(ids), [visual(1, 5)], max_length=4)
    assert out.inputs_embeds[0, :, 0].tolist() == [1, 1000, 1001, 1002]


def test_a_blank_image_is_not_shown_but_stays_in_the_graph():
    ids = torch.tensor([[1, 2], [1, IMAGE]])
    blank, shown = visual(1, 3).clone().requires_grad_(), visual(2, 3).clone().requires_grad_()
    out = splice(ids, text(ids), [blank, shown], blank_images=True)
    assert out.inputs_embeds[0, :, 0].tolist() == [1, 2, 0, 0]
    assert out.inputs_embeds[1, :, 0].tolist() == [1, 2000, 2001, 2002]
    out.inputs_embeds.sum().backward()
    assert blank.grad.tolist() == [[0, 0]] * 3
    assert shown.grad.tolist() == [[1, 1]] * 3


def test_images_are_handed_out_by_placeholders():
    ids = torch.tensor([[IMAGE, IMAGE, 3], [1, 2, 3], [1, 2, IMAGE]])
    everything = torch.ones_like(ids, dtype=torch.bool)
    assert assign_images(ids, everything, 3) == [[0, 1], [], [2]]
    assert assign_images(ids, everything, 4, blank_images=True) == [[0, 1], [2], [3]]
    assert assign_images(ids, everything, 3, blank_images=True) == [[0, 1], [], [2]]


@pytest.mark.parametrize(("count", "blank_images"), [(2, False), (4, False), (2, True), (5, True)])
def test_another_number_of_images_is_an_error(count, blank_images):
    ids = torch.tensor([[IMAGE, IMAGE, 3], [1, 2, 3], [1, 2, IMAGE]])
    with pytest.raises(ValueError, match=f"contain 3 <image> placeholders but {count} images"):
        splice(ids, text(ids), [visual(1, 1)] * count, blank_images=blank_images)


def test_unknown_padding_side():
    ids = torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match="'middle' is unknown"):
        splice(ids, text(ids), [], padding_side="middle")
