"""transformers' Qwen2-VL and Qwen2.5-VL: packed patches, no CLS token, four patches merged into one token, M-RoPE.

All images of a call lie in one packed sequence, an image's patches in 2 x 2 merge groups one after the other (in 2.5
sorted into attention windows besides). The mean of an image's queries stands for the global token, in windowed blocks
too. The encoder keeps twice the budget of merged tokens, whose patches went together; after the language model's second
layer the budget is kept. Every token retains its M-RoPE position ids. A frame of a video counts as an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flowcut.anatomy.reading import body_and_head, copies, language_model, unwrap
from flowcut.hooks.attention import VISION
from flowcut.hooks.base import Stage, opaque
from flowcut.hooks.call_context import rows
from flowcut.hooks.encoder_forward import EncoderForward
from flowcut.hooks.parts import Anatomy, Encoder
from flowcut.hooks.placeholders import Modality, PlaceholderSpan
from flowcut.hooks.prompt import PromptStage
from flowcut.hooks.session import Session
from flowcut.trace import Trace

FAMILY = "Qwen2VLForConditionalGeneration, Qwen2_5_VLForConditionalGeneration and their models (transformers)"
_HEADS = {"Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"}
_MODELS = {"Qwen2VLModel", "Qwen2_5_VLModel"}


def read(model: Any) -> Anatomy | None:
    found = body_and_head(model, _HEADS, _MODELS)
    if found is None:
        return None
    inner, head = found
    encoders = tuple(encoder_of(tower) for tower in copies(inner.visual))
    images = Vision("image", "get_image_features", "pixel_values", ("image_grid_thw",))
    videos = Vision("video", "get_video_features", "pixel_values_videos", ("video_grid_thw",), "video_token_id")
    return Anatomy(
        "qwen2_vl",
        encoders,
        **language_model(inner.language_model, head, mrope=True),
        two_stage=True,
        stages=(
            partial(MergerStage, encoders=encoders),
            partial(PromptStage, model=model, inner=inner, modalities=[images, videos], mrope=True),
        ),
    )


def encoder_of(tower: Any) -> Encoder:
    """The parts of a Qwen2VisionTransformer."""
    blocks = [unwrap(block) for block in tower.blocks]
    return Encoder(
        tower,
        blocks,
        [block.attn for block in blocks],
        len(blocks),
        num_prefix_tokens=0,
        feature_layer=len(blocks) - 1,
        last_layer=-1,
        patches_per_token=tower.spatial_merge_size**2,
        two_stage=True,
        windowed=hasattr(tower, "window_size"),
        forward=PackedForward,
        project=partial(merged_tokens, tower),
    )


def merged_tokens(tower: Any, states: Tensor) -> Tensor:
    """The merger's tokens [R, n / 4, D'] of patches [R, n, D], without `MergerStage` taking them for the encoder's."""
    token = VISION.set(None)
    try:
        return tower.merger(states.flatten(0, 1)).unflatten(0, (len(states), -1))
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
        self.groups = tuple(image for image, _ in sizes)
        side = self.encoder.model.spatial_merge_size
        self.grids = tuple((height // side, width // side) for t, height, width in self.grid.tolist() for _ in range(t))
        self.total = sum(self.counts)
        order = torch.arange(self.total, device=query.device)
        tower = self.encoder.model
        if hasattr(tower, "fullatt_block_indexes"):  # 2.5: windows first
            from transformers.vision_utils import get_vision_window_index  # not before a model is there

            window, _ = get_vision_window_index(
                self.grid,
                spatial_merge_size=tower.spatial_merge_size,
                window_size=tower.window_size,
                patch_size=tower.patch_size,
            )
            inside = torch.arange(self.encoder.patches_per_token, device=query.device)
            order = (window.to(query.device)[:, None] * self.encoder.patches_per_token + inside).flatten()
        starts = [sum(self.counts[:row]) for row in range(len(self.counts))]
        parts = [part - start for part, start in zip(order.split(self.counts), starts, strict=True)]
        self.positions = nn.utils.rnn.pad_sequence(parts, batch_first=True)

    def unpack(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(0, 1)[None] if len(self.counts) == 1 else super().unpack(tokens)

    def arrange(self, flat: Tensor, layer: int) -> Tensor:
        return flat

    def shorten(self, cut: Any, hidden: Tensor, layer: int) -> Tensor:
        if cut.hidden is not None:
            raise ValueError("methods that merge patches are not built for Qwen2-VL, whose merger joins 2 x 2 patches")
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
    """A hook on the merger, because what follows it counts on an unpruned number of tokens."""

    def __init__(self, session: Session, encoders: Sequence[Encoder]):
        super().__init__()
        self.encoders = encoders

    def install(self) -> None:
        for encoder in self.encoders:
            self.undo.append(encoder.model.merger.register_forward_hook(self.after_merger).remove)

    @opaque
    def after_merger(self, merger: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        run = VISION.get()
        ours = run is not None and any(run.encoder is encoder for encoder in self.encoders)
        return run.spread(output) if ours else None


class Vision(Modality):
    """One span of placeholders per image, or per frame of a video."""

    def spans_of_items(self, call: dict[str, Any]) -> list[int]:
        frames: list[int] = call[self.more[0]][:, 0].tolist()
        return frames

    def encode(self, session: Any, inner: Any, call: dict[str, Any]) -> Any:
        if call.get(self.more[0]) is None:
            raise ValueError(f"{self.pixels} need {self.more[0]}, as the processor gives it: [{self.name}s, 3]")
        with rows() as known:
            outputs = self.original(inner, call)
        trace = known.trace
        if trace is None:
            return outputs, [], None
        size = session.shape.encoders[0].patches_per_token
        features = torch.cat(list(outputs.pooler_output))
        lengths = [whole // size for whole in trace.entering[0]]
        spans = []
        for row, (part, kept, length) in enumerate(zip(features.split(lengths), trace.final, lengths, strict=True)):
            places = kept[::size].to(part.device) // size
            first = torch.arange(len(places), device=part.device)
            stays = torch.zeros(length, dtype=torch.bool, device=part.device)
            stays[places if session.pruner.keeps_position_ids else first] = True
            tokens = torch.stack([torch.full_like(places, row), kept[::size].to(part.device)], dim=1)
            spans.append(PlaceholderSpan(part[places if session.pruner.keeps_groups else first], stays, tokens))
        return outputs, spans, trace
