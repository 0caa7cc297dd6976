"""A vision tower of vLLM's under the library's hooks: its attention shows q, k and v, and attends within rows.

The tower's modules, kernels and weights are vLLM's. The library's hooks are put on each layer, and two on each
attention. They show all heads to the pruner, also where tensor parallelism spreads them over ranks. Where tokens were
merged, they widen q, k and v by columns that add the logarithms of the tokens' sizes to the logits, so that any kernel
will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.distributed import tensor_model_parallel_all_gather

from flowcut.hooks.attention import VISION, Segments
from flowcut.hooks.encoder import EncoderStage
from flowcut.hooks.encoder_forward import EncoderForward
from flowcut.hooks.merge_before_mlp import LAYER_CONTEXT, LayerContext, weighed
from flowcut.hooks.parts import Encoder
from flowcut.hooks.session import Session
from flowcut.pruner import ModelShape, Pruner
from flowcut.trace import Trace
from flowcut_vllm.pruner import check_served


class TowerForward(EncoderForward):
    """One forward of a tower whose layers take hidden states alone, and attend by `cu_seqlens` where rows differ."""

    def arrange(self, flat: Tensor, layer: int) -> Tensor:
        """Rows of different length stay one packed sequence to the end; who called the tower takes them apart."""
        lengths = self.lengths
        self.packed = len(set(lengths)) > 1
        self.mask = Segments(lengths) if self.packed else None
        return flat[None] if self.packed else flat.view(len(lengths), lengths[0], -1)

    def before_layer(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if self.pruner.merges_before_mlp:
            sizes, prefix = self.token_sizes, self.encoder.num_prefix_tokens
            log_sizes = None if sizes is None else sizes.log_sizes(prefix, self.counts, self.packed)
            self.context = LayerContext(self.mask, log_sizes)  # vLLM's layers pass no mask on; `_show` finds it
        return None

    def call_layer(self, number: int, hidden: Tensor) -> None:
        self.encoder.layers[number].forward(hidden)


def tap(attentions: Sequence[Any]) -> Callable[[], None]:
    """Make vLLM's attention modules show q, k and v to the forward under way. Returns what undoes it."""
    undo = []
    for owner in attentions:
        width = owner.attn.head_size
        undo.append(owner.attn.register_forward_pre_hook(partial(_show, owner), with_kwargs=True).remove)
        undo.append(owner.attn.register_forward_hook(partial(_narrow, width), always_call=True).remove)
    return partial(_all, undo)


def _all(functions: Sequence[Callable[[], None]]) -> None:
    for function in functions:
        function()


def _show(owner: Any, module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Before `owner.attn` runs, whose q, k and v are [rows, S, H' d] or [rows, S, H', d]; H' are this rank's heads."""
    forward = VISION.get()
    if forward is None or not forward.observes(owner):
        return None
    given = args[:3] or (kwargs["query"], kwargs["key"], kwargs["value"])
    q, k, v = (_heads(tensor, module.head_size, owner.tp_size) for tensor in given)
    forward.observe(q, k, v, module.scale)
    context = forward.context
    LAYER_CONTEXT.set(context)
    if context is not None and context.log_sizes is not None:
        q, k, v = (_heads(tensor, module.head_size, 1) for tensor in given)  # of this rank
        wide = weighed(q, k, v, context.log_sizes, module.scale)
        args = (*(tensor.transpose(1, 2) for tensor in wide), *args[3:])
        kwargs = {name: value for name, value in kwargs.items() if name not in ("query", "key", "value")}
        module.head_size = wide[0].shape[-1]  # by which it views q, k and v; `_narrow` puts it back
    if forward.mask is None:
        return args, kwargs
    bounds = np.cumsum([0, *forward.mask], dtype=np.int32)
    backend, device = module.attn_backend, args[0].device
    kwargs["max_seqlen"] = torch.tensor(module.compute_max_seqlen(backend, bounds), dtype=torch.int32)
    lengths = module.maybe_compute_seq_lens(backend, bounds, device)
    if lengths is not None:
        kwargs["sequence_lengths"] = lengths
    kwargs["cu_seqlens"] = module.maybe_recompute_cu_seqlens(backend, bounds, owner.embed_dim, owner.tp_size, device)
    return args, kwargs


def _narrow(width: int, module: Any, args: tuple, output: Any) -> Any:
    """After `owner.attn` ran: without the columns that `_show` added. [rows, S, H', d + 8] -> [rows, S, H' d]."""
    if module.head_size == width:
        return None
    module.head_size = width
    return None if output is None else output[..., :width].flatten(2)


def _heads(tensor: Tensor, size: int, ranks: int) -> Tensor:
    """[rows, S, H' d] or [rows, S, H', d] of this rank -> [rows, H, S, d] of all ranks; d is `size`."""
    heads = tensor if tensor.ndim == 4 else tensor.unflatten(-1, (-1, size))
    if ranks > 1:
        heads = tensor_model_parallel_all_gather(heads.contiguous(), dim=2)
    return heads.transpose(1, 2)


class PrunedTower:
    """A pruner at work on one of vLLM's towers.

    encoder: the tower's parts, with `tap` and `TowerForward`.

    Raises:
        ValueError: the pruner cannot be served on it.
    """

    def __init__(self, pruner: Pruner, encoder: Encoder):
        check_served(pruner, encoder.shape)
        self.pruner = pruner
        self.encoder = encoder
        self.session = Session(pruner, ModelShape((encoder.shape,)), signals=False, watches_decoder=False)
        self.stage = EncoderStage(self.session, encoder)
        self.stage.install()

    def forward(self, pruner: Pruner, call: Callable[[], Tensor]) -> tuple[Tensor, Trace]:
        """Call the tower with a pruner: what it returns, and what happened."""
        self.session.pruner = pruner
        states, trace = call(), self.session.trace
        assert trace is not None
        return states, trace

    def run(self, pruner: Pruner, call: Callable[[], Tensor]) -> tuple[list[Tensor], Trace]:
        """Call the tower with a pruner: each row's kept tokens [n, D], without special ones, and what happened.

        call: runs the tower and returns the tokens of its last layer, [R, S, D], or packed [1, sum S, D].
        """
        states, trace = self.forward(pruner, call)
        prefix = self.encoder.num_prefix_tokens - self.encoder.num_forwarded_special_tokens
        lengths = [self.encoder.num_prefix_tokens + count for count in trace.leaving[-1]]
        return [row[prefix:] for row in states.flatten(0, 1).split(lengths)], trace


def clip_encoder(tower: Any, **fields: Any) -> Encoder:
    """The parts of vLLM's CLIPVisionModel. `fields`: what its owner knows, such as `feature_layer`."""
    model = tower.vision_model
    layers = list(model.encoder.layers)
    attentions = [layer.self_attn for layer in layers]
    depth = model.config.num_hidden_layers
    fields["branches"] = [(layer.layer_norm2, layer.mlp) for layer in layers]
    return Encoder(model, layers, attentions, depth, num_prefix_tokens=1, forward=TowerForward, tap=tap, **fields)
