"""What the hooks on a model share: the pruner, how it was attached, and what happened in the last forward."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowcut.compat import one_cache
from flowcut.hooks.packing import ALIGNED, IMAGE_INDEX, shorten_aligned
from flowcut.pruner import ModelShape, Pruner
from flowcut.trace import StageTrace, Trace


class Session:
    """A pruner at work on a model.

    Attributes:
        pruner: the method with its settings.
        shape: the model in plain numbers.
        signals: whether intermediate scores go into the trace.
        watches_decoder: whether the pruner is asked in the language model, or of its KV cache.
        full_logits: whether logits come back with a column for each token of the caller's; see `restore_logits`.
        compile: whether the encoder's scores are computed by compiled functions, where a method has some.
        trace: what happened in the last forward that saw images; None before the first.
        kept_columns: [B, S'], for each column of the last forward's logits the column of the caller's tokens that it
            stands for, -1 on padding; None where no column was dropped. In llava's own classes the caller's tokens are
            those that entered the language model.
    """

    def __init__(
        self,
        pruner: Pruner,
        shape: ModelShape,
        signals: bool,
        watches_decoder: bool,
        full_logits: bool = False,
        compile: bool = False,
    ):
        self.pruner = pruner
        self.shape = shape
        self.signals = signals
        self.watches_decoder = watches_decoder
        self.full_logits = full_logits
        self.compile = compile
        self.trace: Trace | None = None
        self.kept_columns: Tensor | None = None
        self._width = 0

    @property
    def cuts_language(self) -> bool:
        """Whether the pruner is asked in the language model."""
        return self.pruner.cuts_language(self.shape.two_stage)

    def encoded(self, trace: Trace) -> None:
        """An encoder has run."""
        self.trace = trace

    def decoded(self, trace: StageTrace, images: Sequence[int]) -> None:
        """A decoder has run that was shown these images, by their numbers in `Trace.tokens`."""
        if self.trace is None:  # given embeddings, whose images were encoded elsewhere
            self.trace = Trace()
        self.trace.language, self.trace.shown = trace, tuple(images)

    def begin_forward(self) -> None:
        """A forward of the whole model begins; nothing is dropped yet."""
        self.kept_columns = None

    def drop_columns(self, index: Tensor, real: Tensor | None, width: int) -> None:
        """Of `width` columns those in index [B, S'] remain; real [B, S'] is False on padding."""
        columns = index if real is None else index.masked_fill(~real, -1)
        if self.kept_columns is None:
            self._width = width
        else:
            before = self.kept_columns.to(columns.device)
            columns = before.gather(1, columns.clamp_min(0)).masked_fill(columns < 0, -1)
        self.kept_columns = columns

    def kept_labels(self, labels: Tensor) -> Tensor:
        """Labels [B, S] of the last forward's tokens as its logits need them: [B, S'], -100 on padding.

        Raises:
            ValueError: the last forward had another number of tokens.
        """
        if self.kept_columns is None:
            return labels
        if labels.shape[1] != self._width:
            raise ValueError(f"labels have {labels.shape[1]} columns, but the last forward had {self._width} tokens")
        call = {"labels": labels}
        columns = self.kept_columns
        shorten_aligned(call, {"labels": ALIGNED["labels"]}, columns.clamp_min(0), columns >= 0)
        return call["labels"]

    def restore_logits(self, logits: Tensor) -> Tensor:
        """Logits [B, S', V] of the last forward with a column for each token of the caller's: [B, S, V].

        A dropped token gets the logits of the kept token before it, because that is the one that predicts what comes
        next. So a loss over shifted labels is the same before and after.

        Raises:
            ValueError: these are not all logits of the last forward (`logits_to_keep`).
        """
        columns = self.kept_columns
        if columns is None:
            return logits
        if logits.shape[1] != columns.shape[1]:
            raise ValueError(
                f"the last forward had {columns.shape[1]} kept columns, these logits have {logits.shape[1]}; leave out "
                "logits_to_keep"
            )
        columns = columns.to(logits.device)
        places = torch.arange(columns.shape[1], device=columns.device).expand_as(columns)
        place = columns.new_full((len(columns), self._width + 1), -1)
        place.scatter_(1, columns.masked_fill(columns < 0, self._width), places)
        place = place[:, : self._width].cummax(dim=1).values
        whole = logits[torch.arange(len(logits), device=logits.device)[:, None], place.clamp_min(0)]
        return whole.masked_fill((place < 0)[..., None], 0)


def warn_of_embeddings(call: Mapping[str, Any]) -> None:
    """Warn where a prompt comes as embeddings without images, because nothing of it can be cut."""
    seen = (name for name in call if name.startswith("pixel_values") or name in ("mm_encoder_outputs", IMAGE_INDEX))
    if call.get("inputs_embeds") is None or any(call[name] is not None for name in seen):
        return
    cache = one_cache(call)
    if call["inputs_embeds"].shape[1] > 1 and (cache is None or not cache.get_seq_length()):
        warnings.warn(
            "the prompt came as inputs_embeds without images, so no visual token is dropped; image features that are "
            "merged into it already cannot be distinguished from text: pass input_ids with pixel_values",
            stacklevel=2,
        )
