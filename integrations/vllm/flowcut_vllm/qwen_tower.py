"""The towers of Qwen2-VL, 2.5 and 3 in vLLM: the library's forward for packed patches, with vLLM's argument names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from flowcut.anatomy.packed import PackedForward, packed_encoder
from flowcut.anatomy.qwen2_vl import WindowedForward
from flowcut.hooks.attention import VISION
from flowcut.hooks.encoder import EncoderStage, LayerHook
from flowcut.hooks.parts import Encoder
from flowcut_vllm.tower import PrunedTower, tap


class QwenForward(PackedForward):
    """One forward of the tower, whose hidden states are [tokens, 1, D]."""

    def __init__(self, pruner: Any, encoder: Encoder, signals: bool, known: Any, args: Any, kwargs: Any):
        grid = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
        super().__init__(pruner, encoder, signals, known, args, {**kwargs, "grid_thw": torch.as_tensor(grid)})

    def arrange(self, flat: Tensor, layer: int) -> Tensor:
        return flat[:, None]

    def before_layer(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if self.flat is None:
            return None
        names = ("rotary_pos_emb_cos", "rotary_pos_emb_sin")
        if self.rope is None:
            self.rope = tuple(kwargs[name][self.flat] for name in names)
        bounds = kwargs["cu_seqlens"]
        left = torch.searchsorted(self.flat, bounds.to(self.flat)).unique_consecutive().to(bounds)
        tower = self.encoder.model
        attention: Any = self.encoder.attentions[0].attn
        longest = attention.compute_max_seqlen(tower.attn_backend, np.asarray(left.tolist()))
        shorter = {"cu_seqlens": left, "max_seqlen": torch.tensor(longest, dtype=torch.int32)}
        return args, {**kwargs, **dict(zip(names, self.rope, strict=True)), **shorter}


class WindowedQwenForward(QwenForward, WindowedForward):
    """Qwen2.5-VL's, whose patches are sorted into windows."""


def qwen_encoder(tower: Any) -> Encoder:
    """The parts of a Qwen-VL's tower."""
    windowed = hasattr(tower, "window_size")
    return packed_encoder(
        tower,
        two_stage=False,
        windowed=windowed,
        tapped=bool(_taps(tower)),
        forward=WindowedQwenForward if windowed else QwenForward,
        tap=tap,
    )


def _taps(tower: Any) -> Sequence[Any]:
    """The mergers of DeepStack, if the tower has any."""
    return getattr(tower, "deepstack_merger_list", ())


class QwenTower(PrunedTower):
    """A pruner at work on a Qwen-VL's tower.

    In Qwen2.5-VL and Qwen3-VL blocks are called past the hooks of nn.Module, because vLLM may compile them. What the
    library's hooks would do is done there around the `forward` of each instance.

    Raises:
        ValueError: the pruner cannot be served, or the attention backend cannot attend to packed rows as they shrink.
    """

    def __init__(self, pruner: Any, tower: Any):
        if tower.attn_backend == AttentionBackendEnum.FLASHINFER:
            raise ValueError("a pruned Qwen-VL does not run with --mm-encoder-attn-backend FLASHINFER; leave it out")
        super().__init__(pruner, qwen_encoder(tower))
        for number, block in enumerate(tower.blocks):
            if type(block).__call__ is nn.Module.__call__:
                continue  # the hooks are enough
            self.stage.replace(block, "forward", _Layer(self.stage, number, block, block.forward))
        for merger in (tower.merger, *_taps(tower)):
            self.stage.replace(merger, "forward", _Merger(merger.forward))


class _Layer:
    """In the place of a block's `forward`."""

    def __init__(self, stage: EncoderStage, number: int, block: Any, forward: Callable[..., Tensor]):
        self.stage = stage
        self.after = LayerHook(stage, number).run
        self.block = block
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        changed = self.stage.before_layer(self.block, args, kwargs)
        args, kwargs = (args, kwargs) if changed is None else changed
        output = self.forward(*args, **kwargs)
        shorter = self.after(self.block, args, output)
        return output if shorter is None else shorter


class _Merger:
    """In the place of a merger's `forward`: what follows it in vLLM counts on an unpruned number of tokens."""

    def __init__(self, forward: Callable[[Tensor], Tensor]):
        self.forward = forward

    def __call__(self, states: Tensor) -> Tensor:
        tokens, forward = self.forward(states), VISION.get()
        return tokens if forward is None else forward.spread(tokens)
