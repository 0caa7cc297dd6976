"""attach, detach and the one-liner `flowcut`: the only code that changes a model, and that changes it back."""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType
from typing import TypeVar

from torch import nn

from flowcut.anatomy.find import anatomy_of
from flowcut.hooks.base import Stage
from flowcut.hooks.decoder import LanguageStage
from flowcut.hooks.encoder import EncoderStage
from flowcut.hooks.generation import GenerationStage
from flowcut.hooks.session import Session
from flowcut.methods.flowcut import FlowCut
from flowcut.pruner import Budget, ModelShape, Pruner

Model = TypeVar("Model", bound=nn.Module)


class Handle(Session):
    """A pruner attached to a model. Use it as a context manager, or call `remove`.

    Attributes:
        pruner: the method with its settings.
        anatomy: what the model was found to be.
        trace: what happened in the last forward that saw images; None before the first.
    """

    def __init__(self, model: nn.Module, pruner: Pruner, signals: bool = False, full_logits: bool = False):
        self.anatomy = anatomy_of(model)
        if any(_handle_on(encoder.model) is not None for encoder in self.anatomy.encoders):
            raise ValueError(f"this {type(model).__name__} already has a pruner attached; detach(model) it first")
        shape = self.anatomy.shape
        _check(pruner, shape)
        watches = self.anatomy.find_decoder is not None and pruner.cuts_language(shape.two_stage)
        super().__init__(pruner, shape, signals, watches, full_logits)
        self._stages: list[Stage] = [EncoderStage(self, encoder) for encoder in self.anatomy.encoders]
        self._stages += [make(self) for make in self.anatomy.stages]
        if self.anatomy.decoder_head is not None:
            self._stages.append(GenerationStage(self, self.anatomy.decoder_head))
        if watches and self.anatomy.find_decoder is not None:
            self._stages.append(LanguageStage(self, self.anatomy.find_decoder()))
        installed: list[Stage] = []
        try:
            for stage in self._stages:
                installed.append(stage)
                stage.install()
        except BaseException:
            for stage in reversed(installed):
                stage.remove()
            raise

    @property
    def budget(self) -> Budget:
        """Visual tokens that reach the language model, or their share; may be set between calls."""
        return self.pruner.budget

    @budget.setter
    def budget(self, budget: Budget) -> None:
        pruner = replace(self.pruner, budget=budget)
        _check(pruner, self.shape)
        self.pruner = pruner

    def remove(self) -> None:
        """Give the model back as it was.

        Raises:
            ValueError: it was removed before.
        """
        if not self._stages:
            raise ValueError("this pruner was already removed from its model")
        while self._stages:
            self._stages.pop().remove()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._stages:
            self.remove()


def attach(model: nn.Module, pruner: Pruner, *, signals: bool = False, full_logits: bool = False) -> Handle:
    """Let `pruner` drop visual tokens in every forward of `model`, until the handle is removed.

    Works on this very instance: no class is changed, and other models that share its config are not affected.

    Args:
        model: of a known family (docs/method.md has the list), alone or inside of a wrapper of PEFT, accelerate,
            DDP, DeepSpeed or torch.compile.
        pruner: FlowCut(budget=64), or any other Pruner.
        signals: also keep each layer's intermediate scores in the trace.
        full_logits: give logits back with a column for each token of the caller's, for code that compares them with
            labels (Trainer's label smoothing and metrics); see `Handle.restore_logits`.

    Raises:
        ValueError: the model is of no known family, already has a pruner, or its attention cannot be tapped.
    """
    if not isinstance(pruner, Pruner):
        raise ValueError(f"{pruner!r} is not a pruner; try attach(model, FlowCut(budget=64))")
    return Handle(model, pruner, signals, full_logits)


def detach(model: nn.Module) -> None:
    """Take the attached pruner off a model.

    Raises:
        ValueError: none is attached.
    """
    handle = _handle_on(anatomy_of(model).encoders[0].model)
    if handle is None:
        raise ValueError(f"this {type(model).__name__} has no pruner attached")
    handle.remove()


def flowcut(model: Model, target_num: Budget = 64) -> Model:
    """Attach FlowCut and return the same model; `detach(model)` undoes it.

    Args:
        target_num: visual tokens that reach the language model, per image; 0.333 for that share of each image's own.
    """
    attach(model, FlowCut(budget=target_num))
    return model


def _check(pruner: Pruner, shape: ModelShape) -> None:
    for encoder in shape.encoders:
        if isinstance(pruner.budget, int) and pruner.budget <= encoder.num_forwarded_special_tokens:
            raise ValueError(
                f"budget={pruner.budget} leaves no patch beside the CLS token this model passes on; use >= 2"
            )
    pruner.check(shape)


def _handle_on(encoder: nn.Module) -> Handle | None:
    """The encoder's own hooks tell whether a pruner is attached; no table on the side has to be kept in step."""
    for hook in encoder._forward_pre_hooks.values():
        stage = getattr(hook, "__self__", None)
        if isinstance(stage, EncoderStage):
            return stage.session if isinstance(stage.session, Handle) else None
    return None
