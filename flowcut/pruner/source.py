"""Where a view takes from what only some methods need: the forward under way, behind a small protocol."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from flowcut.pruner.question import Question


class Source(Protocol):
    """The forward of an encoder or a decoder, at the layer that a view shows."""

    @property
    def hidden(self) -> Tensor:
        """The layer's output, [rows, S, D].

        Raises:
            ValueError: the pruner did not say that it reads it.
        """

    def next_layer(self, view: Any) -> Any:
        """The view's tokens as the next layer would see them: a view with that layer's number, q, k and v."""

    def record(self, name: str, values: Tensor, view: Any) -> None:
        """Leave an intermediate result ([R] or [R, n]) in the trace, if signals are wanted."""


class EncoderSource(Source, Protocol):
    """The forward of a vision encoder."""

    @property
    def question(self) -> Question | None:
        """What is asked about the images, where the caller says so with `flowcut.asked`."""

    @property
    def learned(self) -> Any:
        """The pruner's own weights on this encoder; None if it has none."""

    def project(self, states: Tensor) -> Tensor:
        """Visual hidden states [R, n, D] as the language model gets them: [R, n / patches_per_token, D'].

        Patches that become one token come one after the other. In an encoder alone they stay what they are.
        """


class DecoderSource(Source, Protocol):
    """The forward of a language model."""

    @property
    def embeddings(self) -> Tensor | None:
        """[B, S, D], what the language model was given; in its first layer only, else None."""

    @property
    def rotary(self) -> tuple[Tensor, Tensor]:
        """(cos, sin), each [B or 1, S, d'], with which the layer turned d' <= d entries of each head of q and k."""

    def turn(self, tokens: Tensor, sample: int) -> Tensor:
        """Queries or keys [H, S, d] of a sample's new tokens, turned as the layer turns them."""

    def from_start(self, keys: Tensor, sample: int, column: int) -> Tensor:
        """A sample's new keys [H', S, d], turned back as if its token in `column` stood at place 0."""

    def norm(self, states: Tensor) -> Tensor:
        """Hidden states after the model's last norm, for methods that compare them as its head would see them."""
