"""The vision stage: shows every encoder layer to the pruner and shortens its output.

All state of a forward is one `Run`, born at the encoder's entrance and handed from module to module as a keyword
argument, so forwards may interleave and nothing is left behind on the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from flowcut.pruner import Cut, Pruner, Trace, View, valid_mask
from flowcut.tap import RUN, tap

if TYPE_CHECKING:
    from flowcut.anatomy import Encoder
    from flowcut.attach import Handle


class Run:
    """One forward of one encoder: what is left of the patches, and what the pruner has noted."""

    def __init__(self, pruner: Pruner, encoder: Encoder, signals: bool):
        self.pruner = pruner
        self.encoder = encoder
        self.trace = Trace()
        self.memory: dict[str, Any] = {}
        self.recorder = self.record if signals else None
        self.open = True
        self.qkv: tuple[Tensor, Tensor, Tensor, float] | None = None
        self.positions: Tensor | None = None
        self.counts: tuple[int, ...] = ()
        self.mask: Any = None

    def observe(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> None:
        """Called by the tap. Recomputation under gradient checkpointing comes after closing and is not recorded."""
        if self.open:
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            self.qkv = (query.detach(), key.detach(), value.detach(), scale)

    def close(self) -> Trace:
        """End of the forward. Checkpointed layers may keep the run alive until backward, so let go of the tensors."""
        self.open = False
        self.qkv = self.positions = self.mask = None
        self.memory = {}
        return self.trace

    def record(self, name: str, values: Tensor, view: View) -> None:
        rows: Any = values.detach().clone()
        if values.ndim == 2:
            rows = [row[:count] for row, count in zip(rows, view.counts, strict=True)]
        self.trace.signals.setdefault(view.layer, {})[name] = rows

    def after_layer(self, layer: int, hidden: Tensor) -> Tensor:
        """Show a layer to the pruner. [B, S, D] -> [B, S', D]."""
        prefix = self.encoder.prefix
        if self.positions is None:
            rows, length = hidden.shape[0], hidden.shape[1] - prefix
            self.positions = torch.arange(length, device=hidden.device).expand(rows, length)
            self.counts = (length,) * rows
        assert self.qkv is not None, "the layer ran without calling its tapped attention"
        query, key, value, scaling = self.qkv
        self.qkv = None
        view = View(
            layer=layer,
            layers=self.encoder.depth,
            q=query,
            k=key,
            v=value,
            scaling=scaling,
            hidden=hidden,
            prefix=prefix,
            positions=self.positions,
            counts=self.counts,
            groups=tuple(range(len(self.counts))),
            reserved=self.encoder.reserved,
            memory=self.memory,
            recorder=self.recorder,
        )
        with torch.no_grad():
            cut = self.pruner.vision(view)
        self.trace.entering.append(view.counts)
        if cut is not None:
            hidden = self.shorten(cut, hidden, layer)
        self.trace.leaving.append(self.counts)
        return hidden

    def shorten(self, cut: Cut, hidden: Tensor, layer: int) -> Tensor:
        assert self.positions is not None
        rows, length = cut.keep.shape
        prefix = self.encoder.prefix
        everything = cut.hidden is None and length == self.positions.shape[1]
        self.positions = self.positions.gather(1, cut.keep)
        self.counts = cut.counts or (length,) * rows
        self.trace.kept[layer] = [p[:count].clone() for p, count in zip(self.positions, self.counts, strict=True)]
        if everything and cut.counts is None:
            return hidden
        row = torch.arange(rows, device=hidden.device)[:, None]
        tokens = hidden[row, cut.keep + prefix] if cut.hidden is None else cut.hidden
        hidden = torch.cat([hidden[:, :prefix], tokens], dim=1)
        valid = valid_mask(self.counts, length, hidden.device)
        self.mask = None
        if valid is not None:
            ahead = valid.new_ones(rows, prefix)
            self.mask = create_bidirectional_mask(
                config=self.encoder.model.config, inputs_embeds=hidden, attention_mask=torch.cat([ahead, valid], dim=1)
            )
        return hidden


class EncoderStage:
    """Hooks on one encoder; they run outside of recomputation, and before transformers records hidden states."""

    def __init__(self, handle: Handle, encoder: Encoder):
        self.handle = handle
        self.encoder = encoder
        self.undo: list[Callable[[], None]] = []

    def install(self) -> None:
        self.undo.append(tap(self.encoder.attentions))
        model = self.encoder.model
        self.undo.append(model.register_forward_pre_hook(self.enter, with_kwargs=True).remove)
        self.undo.append(model.register_forward_hook(self.leave, with_kwargs=True, always_call=True).remove)
        for number, layer in enumerate(self.encoder.layers):
            self.undo.append(layer.register_forward_pre_hook(self.before_layer, with_kwargs=True).remove)
            hook = _LayerHook(number)
            self.undo.append(layer.register_forward_hook(hook, with_kwargs=True, prepend=True).remove)

    def remove(self) -> None:
        while self.undo:
            self.undo.pop()()

    def enter(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {**kwargs, RUN: Run(self.handle.pruner, self.encoder, self.handle.signals)}

    def leave(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        trace = kwargs[RUN].close()
        if output is None:
            return
        self.handle.trace = trace
        features = self.encoder.feature_layer
        if features is not None and trace.kept and max(trace.kept) > features:
            raise ValueError(
                f"features are read after encoder layer {features} but tokens were cut after layer {max(trace.kept)}; "
                "let the pruner finish earlier (FlowCut: last_layer) or read a later feature layer"
            )

    def before_layer(
        self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        run = kwargs.get(RUN)
        if run is None or run.mask is None:
            return None
        return args[:1], {**kwargs, "attention_mask": run.mask}


class _LayerHook:
    """After encoder layer `number`: let the forward's run shorten the output."""

    def __init__(self, number: int):
        self.number = number

    def __call__(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        run = kwargs.get(RUN)
        if run is None:
            return None
        return run.after_layer(self.number, output)
