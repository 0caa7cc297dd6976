"""Visual tokens of each question of a batch, counted by hand."""

from types import SimpleNamespace
from typing import NamedTuple

import torch

from llava.eval.models.token_counts import PictureSize, TokenCounts, picture_sizes


class Clip(NamedTuple):
    """A video of as many images as it has rows."""

    rows: tuple[int, ...]
    video: bool = True

    @property
    def images(self) -> int:
        return len(self.rows)


def test_a_picture_has_a_row_a_tile():
    tower = SimpleNamespace(num_patches=16)
    assert picture_sizes(tower, torch.zeros(2, 3, 8, 8)) == [PictureSize((16,)), PictureSize((16,))]
    assert picture_sizes(tower, [torch.zeros(5, 3, 8, 8)]) == [PictureSize((16,) * 5)]
    assert picture_sizes(tower, []) == []


def test_without_a_trace_all_tokens_pass_all_layers():
    counts = TokenCounts([[PictureSize((4, 4)), Clip((3, 3))], []], 2, None)
    assert counts.encoder_tokens(0) == [14, 14, 14]
    assert counts.encoder_tokens(1) == []
    assert (counts.visual_tokens(0, 9, 7), counts.language_tokens(0)) == (16, None)


def test_a_trace_tells_of_pictures_first_and_then_of_videos():
    shown = [[Clip((6, 6))], [PictureSize((4, 4))], [PictureSize((4,))]]
    language = SimpleNamespace(entering=[[10, 20, 30, 40], [1, 2, 3, 4]])
    trace = SimpleNamespace(
        entering=[[4, 4, 4, 6, 6]],
        leaving=[[4, 4, 4, 6, 6], [1, 2, 3, 4, 5]],
        tokens=[range(11), range(12), range(13), range(14)],
        language=language,
        shown=[0, 1, 2, 3],
    )
    counts = TokenCounts(shown, 2, trace)
    assert [counts.encoder_tokens(index) for index in range(3)] == [[12, 12, 9], [8, 8, 3], [4, 4, 3]]
    assert [counts.visual_tokens(index, 99, 99) for index in range(3)] == [27, 11, 12]
    assert [counts.language_tokens(index) for index in range(3)] == [[70, 7], [10, 1], [20, 2]]
