"""Visual tokens per layer of each question of a batch, from its pictures and videos and a pruner's trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from flowcut import Trace


class Counted(Protocol):
    """The token counts of a prepared picture or video.

    rows: patches of each of its encoder rows: of each tile, frame, or two frames that are encoded as one.
    images: the number of images for the language model: frames count, tiles do not.
    """

    @property
    def video(self) -> bool: ...

    @property
    def rows(self) -> tuple[int, ...]: ...

    @property
    def images(self) -> int: ...


class PictureSize(NamedTuple):
    """A picture for LLaVA's classes. rows: patches of each tile."""

    rows: tuple[int, ...]

    @property
    def video(self) -> bool:
        return False

    @property
    def images(self) -> int:
        return 1


def picture_sizes(tower: Any, pixels: Iterable[Tensor]) -> list[PictureSize]:
    """Of prepared pictures: [3, H, W], or tiles [T, 3, H, W]. tower: LLaVA's, whose rows are of one size."""
    return [PictureSize((tower.num_patches,) * (1 if image.ndim == 3 else len(image))) for image in pixels]


class TokenCounts:
    """Counts for a batch. A trace has the pictures of all questions first, then the frames of all videos.

    shown: per question. layers: of the encoder. trace: of the pruner; None without a pruner or without pictures.
    beams: how often each image is in the language model's batch.
    """

    def __init__(self, shown: Sequence[Sequence[Counted]], layers: int, trace: Trace | None, beams: int = 1) -> None:
        self.shown = shown
        self.layers = layers
        self.trace = trace
        self._entering = _language_tokens(trace)
        self._rows: dict[tuple[int, bool], range] = {}
        self._images: dict[tuple[int, bool], range] = {}
        row = image = 0
        for video in (False, True):
            for index in range(len(shown)):
                own = list(self._own(index, video))
                rows, images = sum(len(one.rows) for one in own), sum(one.images for one in own)
                self._rows[index, video] = range(row, row + rows)
                # The copies of an image for all beams are adjacent; the first one is counted.
                self._images[index, video] = range(image, image + images)
                row, image = row + rows, image + images * beams

    def encoder_tokens(self, index: int) -> list[int]:
        """A question's visual tokens before the encoder's first layer and after each; [] without pictures."""
        parts = [self._encoded(index, video) for video in (False, True) if any(self._own(index, video))]
        return [sum(column) for column in zip(*parts, strict=True)]

    def visual_tokens(self, index: int, pictures: int, videos: int = 0) -> int:
        """The visual tokens of a question in the language model, given its placeholders in the prompt before pruning.

        OneVision's token that ends a video is included in the latter, but not in the tokens of a pruned video.
        """
        count = 0
        for video, placeholders in ((False, pictures), (True, videos)):
            if self.trace is not None and self._traced(index, video):
                placeholders = sum(len(self.trace.tokens[image]) for image in self._images[index, video])
            count += placeholders
        return count

    def language_tokens(self, index: int) -> list[int] | None:
        """A question's visual tokens entering each decoder layer, where the pruner has hooks there."""
        images = [*self._images[index, False], *self._images[index, True]]
        columns = [self._entering[image] for image in images if image in self._entering]
        return [sum(column) for column in zip(*columns, strict=True)] or None

    def _own(self, index: int, video: bool) -> Iterator[Counted]:
        return (one for one in self.shown[index] if one.video == video)

    def _traced(self, index: int, video: bool) -> bool:
        """Whether the trace has a question's pictures or videos. OneVision's videos may pass unpruned."""
        return self.trace is not None and len(self.trace.entering[0]) >= self._rows[index, video].stop

    def _encoded(self, index: int, video: bool) -> list[int]:
        if self.trace is None or not self._traced(index, video):
            return [sum(sum(one.rows) for one in self._own(index, video))] * (self.layers + 1)
        layers = [self.trace.entering[0], *self.trace.leaving]
        return [sum(layer[row] for row in self._rows[index, video]) for layer in layers]


def _language_tokens(trace: Trace | None) -> dict[int, tuple[int, ...]]:
    """Image number -> its tokens entering each decoder layer; empty if there are no hooks in the language model."""
    if trace is None or trace.language is None:
        return {}
    return dict(zip(trace.shown, zip(*trace.language.entering, strict=True), strict=True))
