"""What the families have in common whose vision encoder gets all patches of all images as one packed sequence.

An image's patches lie in 2 x 2 merge groups one after the other, and a merger makes a token of each group. There is no
CLS token: the mean of an image's queries stands for it (section 3.1). A frame of a video counts as an image. Every
token retains its M-RoPE position ids. With DeepStack, states after some of the encoder's layers go to the language
model too, each through a merger of its own. Such a tap is made of the patches that are there by then; from it those
tokens are taken that are left in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from flowcut.anatomy.reading import copies, language_model, unwrap
from flowcut.hooks.attention import VISION
from flowcut.hooks.base import Stage, opaque
from flowcut.hooks.call_context import rows
from flowcut.hooks.encoder_forward import EncoderForward
from flowcut.hooks.parts import Anatomy, Encoder
from flowcut.hooks.placeholders import Modality, PlaceholderSpan
from flowcut.hooks.prompt import PromptStage
from flowcut.hooks.session import Session
from flowcut.trace import Trace


def packed_model(
    family: str,
    model: Any,
    inner: Any,
    head: Any,
    encoder_of: Callable[[Any], Encoder],
    video_token: str = "video_token_id",
    **fields: Any,
) -> Anatomy:
    """A model with such an encoder as `inner.visual`.

    Args:
        inner, head: as `body_and_head` finds them.
        encoder_of: the parts of `inner.visual`.
        video_token: the config field with the id of a video's placeholder.
        fields: other fields of the `Anatomy`.
    """
    encoders = tuple(encoder_of(tower) for tower in copies(inner.visual))
    images = Vision("image", "get_image_features", "pixel_values", ("image_grid_thw",))
    videos = Vision("video", "get_video_features", "pixel_values_videos", ("video_grid_thw",), video_token)
    described = {**language_model(inner.language_model, head, mrope=True), "two_stage": True, **fields}
    stages = (
        partial(MergerStage, encoders=encoders),
        partial(PromptStage, model=model, inner=inner, modalities=[images, videos], mrope=True),
    )
    return Anatomy(family, encoders, stages=stages, **described)


def packed_encoder(tower: Any, **fields: Any) -> Encoder:
    """The parts of an encoder that has `blocks`, each with an `attn`, and a `merger`. `fields`: others it needs.

    Raises:
        ValueError: it is an encoder of another kind.
    """
    lacking = [name for name in ("blocks", "merger", "spatial_merge_size") if not hasattr(tower, name)]
    if lacking:
        raise ValueError(
            f"a {type(tower).__name__} as vision encoder of this family is not known: it has no {lacking[0]}; known "
            "are encoders that pack the patches of all images into one sequence and merge 2 x 2 of them"
        )
    blocks = [unwrap(block) for block in tower.blocks]
    known: dict[str, Any] = {
        "num_prefix_tokens": 0,
        "feature_layer": len(blocks) - 1,
        "last_layer": -1,
        "patches_per_token": tower.spatial_merge_size**2,
        "two_stage": True,
        "forward": PackedForward,
        "project": partial(merged, tower.merger),
    }
    return Encoder(tower, blocks, [block.attn for block in blocks], len(blocks), **{**known, **fields})


def merged(merge: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """The merger's tokens [R, n / 4, D'] of patches [R, n, D], without `MergerStage` taking them for the encoder's."""
    token = VISION.set(None)
    try:
        return merge(states.flatten(0, 1)).unflatten(0, (len(states), -1))
    finally:
        VISION.reset(token)


class PackedForward(EncoderForward):
    """One forward of an encoder that gets all patches of all images as [sum P, D], and `grid_thw`."""

    def __init__(self, pruner: Any, encoder: Encoder, signals: bool, known: Any, args: Any, kwargs: Any):
        super().__init__(pruner, encoder, signals, known, args, kwargs)
        self.grid: Tensor = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
        self.packed = True
        self.flat: Tensor | None = None
        self.rope: Any = None

    def start(self, query: Tensor) -> None:
        sizes = [
            (image, height * width) for image, (t, height, width) in enumerate(self.grid.tolist()) for _ in range(t)
        ]
        self.counts = tuple(size for _, size in sizes)
        known = None if self.known is None else self.known.groups
        self.groups = known or tuple(image for image, _ in sizes)
        side = self.encoder.model.spatial_merge_size
        self.grids = tuple((height // side, width // side) for t, height, width in self.grid.tolist() for _ in range(t))
        self.total = sum(self.counts)
        order = self.order(query.device)
        starts = [sum(self.counts[:row]) for row in range(len(self.counts))]
        parts = [part - start for part, start in zip(order.split(self.counts), starts, strict=True)]
        self.positions = nn.utils.rnn.pad_sequence(parts, batch_first=True)

    def order(self, device: torch.device) -> Tensor:
        """[sum P], where the patches of the packed sequence lie in the order of the processor."""
        return torch.arange(self.total, device=device)

    def unpack(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(0, 1)[None] if len(self.counts) == 1 else super().unpack(tokens)

    def arrange(self, flat: Tensor, layer: int) -> Tensor:
        return flat

    def shorten(self, cut: Any, hidden: Tensor, layer: int) -> Tensor:
        if cut.hidden is not None:
            raise ValueError(
                "methods that merge patches do not support models like Qwen2-VL, which join 2 x 2 patches themselves"
            )
        shorter = super().shorten(cut, hidden, layer)
        if shorter is not hidden:
            self.flat = self.kept_flat if self.flat is None else self.flat[self.kept_flat]
            self.rope = None
        return shorter

    def before_layer(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if self.flat is None:
            return None
        if self.rope is None:
            self.rope = tuple(part[self.flat.to(part.device)] for part in kwargs["position_embeddings"])
        bounds = kwargs["cu_seqlens"]
        left = torch.searchsorted(self.flat, bounds.to(self.flat)).unique_consecutive().to(bounds)
        longest = None if kwargs.get("max_seqlen") is None else int((left[1:] - left[:-1]).max())
        return args, {**kwargs, "position_embeddings": self.rope, "cu_seqlens": left, "max_seqlen": longest}

    def spread(self, merged: Tensor) -> Tensor:
        """Merged tokens [sum V, D] put where the unpruned model has them, [sum P / 4, D]; the rest is 0."""
        if self.flat is None:
            return merged
        size = self.encoder.patches_per_token
        whole = merged.new_zeros(self.total // size, merged.shape[1])
        if not self.pruner.keeps_groups:
            # Survivors of several groups made each token; they stand at the image's first places.
            sizes = [height * width // size for t, height, width in self.grid.tolist() for _ in range(t)]
            starts = [sum(sizes[:row]) for row in range(len(sizes))]
            places = [torch.arange(c // size) + s for c, s in zip(self.counts, starts, strict=True)]
            return whole.index_copy(0, torch.cat(places).to(whole.device), merged)
        return whole.index_copy(0, self.flat[::size].to(whole.device) // size, merged)

    def finish(self) -> Trace:
        for layer, kept in self.trace.kept.items():
            self.trace.kept[layer] = [positions.sort().values for positions in kept]
        return super().finish()


class MergerStage(Stage):
    """A hook on each merger, because what follows it counts on an unpruned number of tokens."""

    def __init__(self, session: Session, encoders: Sequence[Encoder]):
        super().__init__()
        self.encoders = encoders

    def install(self) -> None:
        for encoder in self.encoders:
            for merger in (encoder.model.merger, *getattr(encoder.model, "deepstack_merger_list", ())):
                self.undo.append(merger.register_forward_hook(self.after_merger).remove)

    @opaque
    def after_merger(self, merger: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        run = VISION.get()
        ours = run is not None and any(run.encoder is encoder for encoder in self.encoders)
        return run.spread(output) if ours else None


class Vision(Modality):
    """One span of placeholders per image, or per frame of a video."""

    def spans_of_items(self, call: dict[str, Any], spans: Any) -> list[int]:
        frames: list[int] = call[self.more[0]][:, 0].tolist()
        return frames

    def encode(self, session: Any, inner: Any, call: dict[str, Any]) -> Any:
        if call.get(self.more[0]) is None:
            raise ValueError(f"{self.pixels} need {self.more[0]}, as the processor gives it: [{self.name}s, 3]")
        times = [time for time, _, _ in call[self.more[0]].tolist()]
        with rows([image for image, time in enumerate(times) for _ in range(time)]) as known:
            # Some families encode videos by their method for images, which on the instance is not the class's own.
            images = MethodType(type(inner).get_image_features, inner)
            outputs = self.original(inner, call, get_image_features=images)
        trace = known.trace
        if trace is None:
            return outputs, [], None
        size = session.shape.encoders[0].patches_per_token
        lengths = [whole // size for whole in trace.entering[0]]
        features, *taps = (
            torch.cat(list(parts)).split(lengths)
            for parts in (outputs.pooler_output, *(getattr(outputs, "deepstack_features", None) or ()))
        )
        spans = []
        for row, (kept, length) in enumerate(zip(trace.final, lengths, strict=True)):
            places = kept[::size].to(features[row].device) // size
            first = torch.arange(len(places), device=places.device)
            stays = torch.zeros(length, dtype=torch.bool, device=places.device)
            stays[places if session.pruner.keeps_position_ids else first] = True
            tokens = torch.stack([torch.full_like(places, row), kept[::size].to(places.device)], dim=1)
            take = places if session.pruner.keeps_groups else first
            deeper = tuple(tap[row][take.to(tap[row].device)] for tap in taps)
            spans.append(PlaceholderSpan(features[row][take], stays, tokens, deeper))
        return outputs, spans, trace
