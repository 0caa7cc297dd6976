"""The language stage: shows decoder layers to the pruner in a forward that brings images, and shortens the sequence."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from flowcut.compat import CACHE, rename_cache
from flowcut.hooks.attention import LANGUAGE, tap
from flowcut.hooks.base import Stage, opaque
from flowcut.hooks.cache_forward import CacheForward
from flowcut.hooks.cache_notes import notes_on, with_cache
from flowcut.hooks.decoder_forward import DecoderForward
from flowcut.hooks.layer_calls import LayerCalls
from flowcut.hooks.packing import (
    AFTER,
    ALIGNED,
    BLOCKS,
    FLAT_MASK,
    IMAGE_INDEX,
    KEPT,
    Kept,
    shorten_aligned,
    visual_left,
)
from flowcut.hooks.parts import Decoder
from flowcut.hooks.session import Session, warn_of_embeddings

DEEPSTACK = "_deepstack_process"
"""Method of a body that adds features to the visual tokens after one of its first layers; see `_AfterDeepStack`."""


class LanguageStage(Stage):
    """Hooks on one decoder, and on the head that computes the loss."""

    def __init__(self, session: Session, decoder: Decoder):
        super().__init__()
        self.session = session
        self.decoder = decoder

    def install(self) -> None:
        self.undo.append(tap(self.decoder.attentions))
        for twin in self.decoder.twins:
            self.undo.append(twin.register_forward_pre_hook(_refuse_twin).remove)
        head = self.decoder.head
        self.around(self.decoder.model, self.enter, self.leave)
        for number, layer in enumerate(self.decoder.layers):
            self.undo.append(layer.register_forward_pre_hook(_BeforeLayer(self, number).run, with_kwargs=True).remove)
            self.undo.append(layer.register_forward_hook(_AfterLayer(self, number).run, prepend=True).remove)
        if hasattr(self.decoder.model, DEEPSTACK):
            self.replace(self.decoder.model, DEEPSTACK, _AfterDeepStack(self).run)
        if head is not None:
            self.undo.append(head.register_forward_pre_hook(self.before_head, prepend=True, with_kwargs=True).remove)
            self.replace(head, "_loss_function", CutLoss(head.loss_function))

    def running(self) -> Any:
        """This decoder's forward under way, if any."""
        forward = LANGUAGE.get()
        return forward if forward is not None and forward.decoder is self.decoder else None

    @opaque
    def before_head(self, head: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Before a head that is given labels, or positions of logits: have the decoder tell which columns remain."""
        self.session.begin_forward()
        warn_of_embeddings(kwargs)
        by_position = isinstance(kwargs.get("logits_to_keep"), Tensor)
        if kwargs.get("labels") is None and not by_position:
            return None
        return args, {**kwargs, KEPT: Kept(by_position=by_position)}

    @opaque
    def enter(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        LANGUAGE.set(None)  # a forward that was interrupted may have left its own
        names = list(inspect.signature(type(model).forward).parameters)[1:]
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        image_index = call.pop(IMAGE_INDEX, None)
        wanted = call.pop(KEPT, None)
        rename_cache(call)
        seeing = image_index is not None and bool((image_index >= 0).any())
        if seeing:
            with_cache(call, self.decoder.model)
        notes = notes_on(call.get(CACHE))
        forward: LayerCalls | None = None
        if seeing:
            forward = DecoderForward(self.session, self.decoder, call, image_index)
        elif notes is not None and notes.images and self.session.pruner.anneals:
            forward = CacheForward(self.session, self.decoder, call)
        elif notes is not None and notes.layers:
            forward = LayerCalls(self.session, self.decoder, call)
        if forward is not None:
            forward.wanted = wanted
            LANGUAGE.set(forward)
        for name in (AFTER, FLAT_MASK, BLOCKS):
            call.pop(name, None)
        return (), call

    @opaque
    def leave(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        forward = self.running()
        LANGUAGE.set(None)
        if forward is None or output is None:
            return
        if forward.index is not None:
            if kwargs.get("output_router_logits"):
                raise ValueError(
                    "output_router_logits=True needs the same tokens in all layers; leave it out, or use a method that "
                    "cuts in the encoder alone"
                )
            self.session.drop_columns(forward.index, forward.real, forward.length)
        if forward.wanted is not None:
            forward.wanted.index, forward.wanted.real = forward.index, forward.real
        forward.finish()
        if forward.trace is not None:
            self.session.decoded(forward.trace, forward.images)


def _refuse_twin(model: nn.Module, args: tuple) -> None:
    raise ValueError(
        f"the pruner was attached to another PEFT adapter's {type(model).__name__} than the one that runs now; detach, "
        "choose the adapter, and attach again"
    )


class _BeforeLayer:
    def __init__(self, stage: LanguageStage, number: int):
        self.stage = stage
        self.number = number

    @opaque
    def run(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        forward = self.stage.running()
        return None if forward is None else forward.before_layer(self.number, args, kwargs)


class _AfterLayer:
    def __init__(self, stage: LanguageStage, number: int):
        self.stage = stage
        self.number = number

    @opaque
    def run(self, layer: nn.Module, args: tuple, output: Any) -> Any:
        forward = self.stage.running()
        if forward is None or self.number < forward.deepstack:
            return None
        if isinstance(output, tuple):
            return (forward.after_layer(self.number, output[0]), *output[1:])
        return forward.after_layer(self.number, output)


class _AfterDeepStack:
    """Stands in the place of the method that adds features to visual tokens [B, S, D]: to those that remain.

    With them the layer is complete, so here the forward under way may shorten its output.
    """

    def __init__(self, stage: LanguageStage):
        self.stage = stage

    @opaque
    def run(self, hidden: Tensor, visual: Tensor, features: Tensor) -> Tensor:
        forward, body = self.stage.running(), self.stage.decoder.model
        if forward is None:
            return getattr(type(body), DEEPSTACK)(body, hidden, visual, features)
        left = visual_left(visual, features, forward.index, forward.real)
        hidden = getattr(type(body), DEEPSTACK)(body, hidden, *left)
        return forward.after_layer(forward.layer, hidden)


class CutLoss:
    """A head's loss function, given the labels of those tokens only that left the decoder."""

    def __init__(self, original: Callable[..., Any]):
        self.original = original

    def __call__(self, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
        kept = kwargs.pop(KEPT, None)
        for name in (IMAGE_INDEX, FLAT_MASK, BLOCKS):
            kwargs.pop(name, None)
        if labels is not None and kept is not None and kept.index is not None:
            shortened = {"labels": labels}
            shorten_aligned(shortened, {"labels": ALIGNED["labels"]}, kept.index, kept.real)
            labels = shortened["labels"]
        return self.original(*args, labels=labels, **kwargs)
