"""How many visual tokens each question of a batch had, layer by layer, from what was shown and a pruner's trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flowcut import Trace
from llava.eval.answer import language_tokens
from llava.eval.hosts.prepare import Shown


class Costs:
    """Counts for a batch. A trace tells of the pictures of all questions first, then of the frames of all videos.

    shown: per question. layers: of the encoder. trace: what a pruner did; None where there was none, or nothing to see.
    beams: how often the language model was shown each question.
    """

    def __init__(self, shown: Sequence[Sequence[Shown]], layers: int, trace: Trace | None, beams: int = 1) -> None:
        self.shown = shown
        self.layers = layers
        self.trace = trace
        self.inside = language_tokens(trace)
        self._rows: dict[tuple[int, bool], range] = {}
        self._units: dict[tuple[int, bool], range] = {}
        row = unit = 0
        for video in (False, True):
            for index in range(len(shown)):
                own = list(self._own(index, video))
                rows, units = sum(len(one.rows) for one in own), sum(one.units for one in own)
                self._rows[index, video] = range(row, row + rows)
                # Of beams, which stand one behind the other, the first is meant.
                self._units[index, video] = range(unit, unit + units)
                row, unit = row + rows, unit + units * beams

    def _own(self, index: int, video: bool) -> Iterator[Shown]:
        return (one for one in self.shown[index] if one.video == video)

    def _traced(self, index: int, video: bool) -> bool:
        """Whether the trace tells of a question's pictures or videos; OneVision's videos may be let through whole."""
        return self.trace is not None and len(self.trace.entering[0]) >= self._rows[index, video].stop

    def visual_tokens(self, index: int, pictures: int, videos: int = 0) -> int:
        """What the language model read of a question, given its placeholders in the prompt before pruning.

        OneVision's token that ends a video counts among these, and not among the tokens of a pruned video.
        """
        count = 0
        for video, placeholders in ((False, pictures), (True, videos)):
            if self.trace is not None and self._traced(index, video):
                placeholders = sum(len(self.trace.tokens[unit]) for unit in self._units[index, video])
            count += placeholders
        return count

    def tokens(self, index: int) -> list[int]:
        """A question's visual tokens before the encoder's first layer and after each; [] if it shows nothing."""
        if not self.shown[index]:
            return []
        sums = [0] * (self.layers + 1)
        for video in (False, True):
            if self.trace is not None and self._traced(index, video):
                layers = [self.trace.entering[0], *self.trace.leaving]
                own = [sum(layer[row] for row in self._rows[index, video]) for layer in layers]
            else:
                own = [sum(sum(one.rows) for one in self._own(index, video))] * (self.layers + 1)
            sums = [one + other for one, other in zip(sums, own, strict=True)]
        return sums

    def language_tokens(self, index: int) -> list[int] | None:
        """A question's visual tokens entering each decoder layer, where the pruner watched there."""
        units = [*self._units[index, False], *self._units[index, True]]
        columns = [self.inside[unit] for unit in units if unit in self.inside]
        return [sum(column) for column in zip(*columns, strict=True)] or None
