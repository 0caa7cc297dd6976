"""The vision stage: shows every encoder layer to the pruner and shortens its output.

All state of a forward is one `EncoderForward`, born at the encoder's entrance. It is found through a context variable,
so threads do not meet, and nothing is left behind on the model.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from flowcut.hooks.attention import VISION, tap
from flowcut.hooks.base import Stage, opaque
from flowcut.hooks.call_context import known_rows, question_about
from flowcut.hooks.encoder_forward import EncoderForward
from flowcut.hooks.handed_mask import forget, hand_over, receive, takes_mask
from flowcut.hooks.learned import add_learned
from flowcut.hooks.merge_before_mlp import LAYER_CONTEXT, BranchHooks
from flowcut.hooks.parts import Encoder
from flowcut.hooks.session import Session


class EncoderStage(Stage):
    """Hooks on one encoder; they run outside of recomputation, and before transformers records hidden states."""

    def __init__(self, session: Session, encoder: Encoder):
        super().__init__()
        self.session = session
        self.encoder = encoder

    def install(self) -> None:
        self.undo.append((self.encoder.tap or tap)(self.encoder.attentions))
        add_learned(self, self.encoder.model, self.session.pruner.learned(self.encoder.shape))
        self.around(self.encoder.model, self.enter, self.leave)
        for number, layer in enumerate(self.encoder.layers):
            self.undo.append(layer.register_forward_pre_hook(self.before_layer, with_kwargs=True).remove)
            self.undo.append(layer.register_forward_hook(LayerHook(self, number).run, prepend=True).remove)
        for layer, attention in zip(self.encoder.layers, self.encoder.attentions, strict=True):
            if self.encoder.tap is None and not takes_mask(layer):
                self.undo.append(attention.register_forward_pre_hook(receive, with_kwargs=True).remove)
                self.undo.append(partial(forget, layer))
        if self.session.pruner.merges_before_mlp:
            hooks = BranchHooks()
            for first, last in self.encoder.branches:
                self.undo.append(first.register_forward_pre_hook(hooks.enter).remove)
                self.undo.append(last.register_forward_hook(hooks.leave).remove)

    def running(self) -> Any:
        """This encoder's forward under way, if any."""
        forward = VISION.get()
        return forward if forward is not None and forward.encoder is self.encoder else None

    @opaque
    def enter(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        VISION.set(None)  # a forward that was interrupted may have left its own
        LAYER_CONTEXT.set(None)
        known = known_rows()
        if known is not None and known.skip:
            return
        forward = (self.encoder.forward or EncoderForward)(
            self.session.pruner, self.encoder, self.session.signals, known, args, kwargs
        )
        forward.question = question_about(self.session)
        forward.compile = self.session.compile
        VISION.set(forward)

    @opaque
    def leave(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        forward = self.running()
        VISION.set(None)
        LAYER_CONTEXT.set(None)
        if forward is None or output is None:
            return None
        trace = forward.finish()
        self.session.encoded(trace)
        if forward.known is not None:
            forward.known.trace = trace
        features = self.encoder.feature_layer
        if features is not None and trace.kept and max(trace.kept) > features:
            raise ValueError(
                f"features are read after encoder layer {features} but tokens were cut after layer {max(trace.kept)}; "
                "let the pruner finish earlier (FlowCut: last_layer) or read a later feature layer"
            )
        return forward.batched(output)

    @opaque
    def before_layer(
        self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        forward = self.running()
        call = None if forward is None else forward.before_layer(args, kwargs)
        if self.encoder.tap is not None or takes_mask(layer):
            return call
        hand_over(layer, None if call is None else call[1]["attention_mask"])
        return None


class LayerHook:
    """After encoder layer `number`: let the forward under way shorten the output."""

    def __init__(self, stage: EncoderStage, number: int):
        self.stage = stage
        self.number = number

    @opaque
    def run(self, layer: nn.Module, args: tuple, output: Any) -> Any:
        forward = self.stage.running()
        return None if forward is None else forward.after_layer(self.number, output)
