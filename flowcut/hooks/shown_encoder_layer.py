"""What a pruner may ask of an encoder layer besides the view itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from flowcut.hooks.learned import learned_on
from flowcut.hooks.shown_layer import ShownLayer
from flowcut.pruner import Question, View


class ShownEncoderLayer(ShownLayer):
    """`flowcut.pruner.source.EncoderSource`: a layer of a forward, at the moment its pruner is asked.

    Attributes:
        given: the layer's output as the next layer would get it: packed where rows differ in length.
    """

    def __init__(self, forward: Any, states: Tensor | None, given: Tensor | None):
        super().__init__(states, forward.trace if forward.signals else None)
        self.forward = forward
        self.given = given

    @property
    def question(self) -> Question | None:
        return self.forward.question

    @property
    def learned(self) -> Any:
        return learned_on(self.forward.encoder.model)

    def project(self, states: Tensor) -> Tensor:
        project = self.forward.encoder.project
        return states if project is None else project(states)

    def next_layer(self, view: View) -> View:
        if self.given is None or self.forward.encoder.patches_per_token > 1:
            raise ValueError(
                "next_layer() needs reads_hidden = True on the pruner's class, and does not work in Qwen2-VL's encoders"
            )
        number = view.layer + 1
        seen, scaling = self.forward.attention_inputs(number, self.given)
        query, key, value = (tensor.to(view.q.device) for tensor in seen)
        source = ShownEncoderLayer(self.forward, None, None)
        return replace(view, layer=number, q=query, k=key, v=value, scaling=scaling, source=source)
