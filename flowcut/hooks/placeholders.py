"""Images and videos in a prompt: how a family encodes them, and which placeholders their features take.

The caller keeps writing one placeholder per visual token of the unpruned model. A `PlaceholderSpan` says how many of
them stay, and what stands there.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from flowcut.hooks.packing import IMAGE_INDEX
from flowcut.hooks.session import Session
from flowcut.trace import Trace

TRACE = "flowcut_trace"
"""Attribute of an encoder's output that holds what the pruner did in it."""
SPANS = "flowcut_spans"
"""Attribute of an encoder's output that holds its list of `PlaceholderSpan`."""


@dataclass
class PlaceholderSpan:
    """A run of placeholders in the prompt and the features that remain for it: an image, or a frame of a video.

    Attributes:
        features: [V, D].
        stays: [P] bool, which of its placeholders keep their place.
        tokens: [V, 2], encoder row and grid position of each feature (see `Trace.tokens`); None for what is no image,
            such as the token that ends a video: it counts as text.
    """

    features: Tensor
    stays: Tensor
    tokens: Tensor | None


@dataclass
class Modality:
    """How one family encodes images (or videos) and marks them in a prompt. Derive one for each family.

    Attributes:
        name: "image" or "video", the key in `mm_encoder_outputs`.
        method: the inner model's method that encodes them.
        pixels: the argument that brings them; `more` are the method's other arguments.
        token: the config field with the placeholder's id.
        former: an older name of the argument `pixels`, which processors still use.
    """

    name: str = "image"
    method: str = "get_image_features"
    pixels: str = "pixel_values"
    more: tuple[str, ...] = ("vision_feature_layer", "vision_feature_select_strategy")
    token: str = "image_token_id"
    former: str | None = None

    def encode(
        self, session: Session, inner: Any, call: dict[str, Any]
    ) -> tuple[Any, list[PlaceholderSpan], Trace | None]:
        """Run the encoder. -> its output, one span for each stretch of placeholders, and what the pruner did."""
        raise NotImplementedError

    def spans_of_items(self, call: dict[str, Any]) -> Sequence[int] | None:
        """How many spans each image or video of a call has; None if each has one."""
        return None

    def original(self, inner: Any, call: dict[str, Any], **overrides: Callable[..., Any]) -> Any:
        """The class's own method, on a shallow copy of the model in which some of its other methods are replaced."""
        view = copy.copy(inner) if overrides else inner
        view.__dict__.update(overrides)
        return getattr(type(inner), self.method)(view, **call)


def placeholders(inner: Any, token: int, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """[B, S], where a prompt has the placeholder with the id `token`, by its ids or its embeddings."""
    if input_ids is not None and input_ids.numel():
        return input_ids == token
    assert inputs_embeds is not None
    embedding = inner.get_input_embeddings()(torch.tensor(token, device=inputs_embeds.device))
    return (inputs_embeds == embedding).all(dim=-1)


def row_spans(trace: Trace, features: Sequence[Tensor], special: int) -> list[PlaceholderSpan]:
    """One span per encoder row, of features [T (+ padding), D] of which `special` stand before the patches."""
    spans = []
    for row, (kept, whole) in enumerate(zip(trace.final, trace.entering[0], strict=True)):
        count, placeholders = len(kept) + special, max(whole, len(kept)) + special
        stays = torch.arange(placeholders, device=kept.device) < count
        tokens = torch.cat([kept.new_full((special,), -1), kept])
        spans.append(
            PlaceholderSpan(features[row][:count], stays, torch.stack([torch.full_like(tokens, row), tokens], dim=1))
        )
    return spans


class Encoding:
    """Stands on the inner model in the place of `get_image_features`; notes what remains on the output."""

    def __init__(self, session: Session, inner: Any, modality: Modality):
        self.session = session
        self.inner = inner
        self.modality = modality
        # generate() picks its arguments by the signature.
        signature = inspect.signature(getattr(type(inner), modality.method))
        self.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
        self.known = self.features_of({})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop(IMAGE_INDEX, None)
        call = self.__signature__.bind(*args, **kwargs).arguments
        call |= call.pop("kwargs", {})
        asked = call.get("return_dict")
        wants_tuple = not (self.inner.config.return_dict if asked is None else asked)
        self.refuse_other_features(call)
        with loaded(self.inner):
            outputs, spans, trace = self.modality.encode(self.session, self.inner, {**call, "return_dict": True})
        setattr(outputs, SPANS, [])  # encoded under this pruner, also where it had nothing to do
        if trace is not None:
            put_spans(outputs, spans, self.modality.spans_of_items(call))
            trace.place([span.tokens for span in spans if span.tokens is not None])
            setattr(outputs, TRACE, trace)
        return outputs.to_tuple() if wants_tuple else outputs

    def features_of(self, call: dict[str, Any]) -> dict[str, Any]:
        """Which hidden states a call reads its features from; what it does not say is in the model's config."""
        found = {}
        for name in self.modality.more:
            if name in ("vision_feature_layer", "vision_feature_select_strategy"):
                value = getattr(self.inner.config, name) if call.get(name) is None else call[name]
                depth = self.session.shape.encoders[0].layers
                if name == "vision_feature_layer":
                    value = [index % (depth + 1) for index in ([value] if isinstance(value, int) else value)]
                found[name] = value
        return found

    def refuse_other_features(self, call: dict[str, Any]) -> None:
        """The pruner was attached for the features of the config as it was then.

        Raises:
            ValueError: the call reads others.
        """
        for name, value in self.features_of(call).items():
            if value != self.known[name]:
                given = getattr(self.inner.config, name) if call.get(name) is None else call[name]
                raise ValueError(
                    f"{name}={given!r} is not what the pruner was attached for; detach, set model.config.{name} = "
                    f"{given!r}, attach again, and leave it out of the call"
                )


@contextmanager
def loaded(module: Any) -> Iterator[None]:
    """Have a module's own parameters in place, where accelerate keeps them elsewhere until its forward."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)
    try:
        yield
    finally:
        if hook is not None:
            hook.post_forward(module, None)


def put_spans(outputs: Any, spans: list[PlaceholderSpan], spans_of_items: Sequence[int] | None = None) -> None:
    """Note spans on an encoder's output, whose features become theirs: one entry an item, as without a pruner.

    Where the unpruned model has a tensor of items, features of different length are joined to [1, V, D].
    """
    setattr(outputs, SPANS, spans)
    former, features = outputs.pooler_output, [span.features for span in spans]
    if spans_of_items is not None:
        waiting = iter(features)
        features = [torch.cat(list(islice(waiting, count))) for count in spans_of_items]
    if not isinstance(former, Tensor):
        outputs.pooler_output = type(former)(features)
    elif len({len(item) for item in features}) == 1:
        outputs.pooler_output = torch.stack(features)
    else:
        outputs.pooler_output = torch.cat(features)[None]
