"""attach, detach and the one-liner `flowcut`: the only code that changes a model, and that changes it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from threading import RLock
from types import TracebackType
from typing import Any, Never, TypeVar

from torch import nn

from flowcut.anatomy.find import anatomy_of
from flowcut.anatomy.reading import unwrap
from flowcut.hooks.base import Stage
from flowcut.hooks.decoder import LanguageStage
from flowcut.hooks.encoder import EncoderStage
from flowcut.hooks.generation import GenerationStage
from flowcut.hooks.session import Session
from flowcut.methods.flowcut import FlowCut
from flowcut.pruner import Budget, ModelShape, Pruner
from flowcut.registry import parse_pruner, pruner_from_config
from flowcut.summary import brief, summary

Model = TypeVar("Model", bound=nn.Module)


_EXAMPLE = 'write attach(model, FlowCut(budget=64)) or attach(model, "flowcut:budget=64")'
_LOCK = RLock()
"""Held while hooks go on or off, so that of several threads one attaches and the others are told."""


class Handle(Session):
    """A pruner attached to a model. Use it as a context manager, or call `remove`.

    A context manager that is entered again attaches again. A copy of the model has a handle of its own (`handle_of`).

    Attributes:
        pruner: the method with its settings.
        model: the model, without wrappers.
        anatomy: what the model was found to be.
        trace: what happened in the last forward that saw images; None before the first.
    """

    def __init__(
        self,
        model: nn.Module,
        pruner: Pruner,
        signals: bool = False,
        full_logits: bool = False,
        compile: bool = False,
    ):
        self.anatomy = anatomy_of(model)
        super().__init__(pruner, self.anatomy.shape, signals, False, full_logits, compile)
        self.model = unwrap(model)
        self._stages: list[Stage] = []
        self._entered = 0
        with _LOCK:
            self._install()

    @property
    def attached(self) -> bool:
        """Whether the pruner works on the model now."""
        return bool(self._stages)

    @property
    def budget(self) -> Budget:
        """Visual tokens that reach the language model, or their share; may be set between calls."""
        return self.pruner.budget

    @budget.setter
    def budget(self, budget: Budget) -> None:
        pruner = replace(self.pruner, budget=budget)
        check_pruner(pruner, self.shape)
        self.pruner = pruner

    def remove(self) -> None:
        """Give the model back as it was.

        Raises:
            ValueError: it was removed before.
        """
        with _LOCK:
            if not self._stages:
                raise ValueError("this pruner was already removed from its model")
            self._uninstall()

    def _install(self) -> None:
        """Put the hooks on the model as it is now: between two blocks its parts may have been exchanged."""
        self.anatomy = anatomy = anatomy_of(self.model)
        if any(_handle_on(encoder.model) is not None for encoder in anatomy.encoders):
            raise ValueError(f"this {_name(self.model)} already has a pruner attached; detach(model) it first")
        self.shape = anatomy.shape
        check_pruner(self.pruner, self.shape)
        watches = self.cuts_language or self.pruner.anneals
        decoder = anatomy.find_decoder() if watches and anatomy.find_decoder is not None else None
        self.watches_decoder = decoder is not None
        stages: list[Stage] = [EncoderStage(self, encoder) for encoder in anatomy.encoders]
        stages += [make(self) for make in anatomy.stages]
        if anatomy.decoder_head is not None:
            stages.append(GenerationStage(self, anatomy.decoder_head))
        if decoder is not None:
            stages.append(LanguageStage(self, decoder))
        try:
            for stage in stages:
                self._stages.append(stage)
                stage.install()
        except BaseException:
            self._uninstall()
            raise

    def _uninstall(self) -> None:
        while self._stages:
            self._stages.pop().remove()

    def __enter__(self) -> Handle:
        with _LOCK:
            if not self._stages:
                self._install()
            self._entered += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with _LOCK:
            self._entered -= 1
            if not self._entered:  # blocks may lie inside each other
                self._uninstall()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy of the model takes along; no block was entered with the copy."""
        return {**self.__dict__, "_entered": 0}

    def __repr__(self) -> str:
        """One line: what was attached, and what it did in the last forward."""
        try:
            encoder = self.anatomy.encoders[0].model.config
            said = summary(self.pruner, _name(self.model), encoder, self.trace)
        except Exception:  # printing never breaks a program, not even with a method whose trace is unheard of
            said = type(self.pruner).__name__
        return said if self.attached else f"{said.removesuffix(', no forward yet')}, removed"


def attach(
    model: nn.Module,
    pruner: Pruner | str | Mapping[str, Any],
    *,
    signals: bool = False,
    full_logits: bool = False,
    compile: bool = False,
    **unknown: Never,
) -> Handle:
    """Let `pruner` drop visual tokens in every forward of `model`, until the handle is removed.

    Works on this very instance: no class is changed, and other models that share its config are not affected. A deep
    copy of the model, or the model pickled and read back, has the pruner attached too, with its own handle.

    Args:
        model: of a known family (docs/method.md has the list), alone or inside of a wrapper of PEFT, accelerate,
            DDP, DeepSpeed or torch.compile.
        pruner: FlowCut(budget=64), or any other Pruner; or its written forms, the text "flowcut:budget=64" and the dict
            {"method": "flowcut", "budget": 64} (see `flowcut.registry`).
        signals: also keep each layer's intermediate scores in the trace.
        full_logits: give logits back with a column for each token of the caller's, for code that compares them with
            labels (Trainer's label smoothing and metrics); see `Handle.restore_logits`.
        compile: compute the encoder's scores with torch.compile, in fewer kernels, where the method has a function for
            it (FlowCut). Costs seconds at the first forward; where there is no compiler a line in the log says so.

    Raises:
        ValueError: the model is of no known family, already has a pruner, or its attention cannot be tapped; or an
            argument is not what it should be.
        TypeError: an unknown keyword.
    """
    if unknown:
        raise TypeError(
            f"attach takes model, pruner, signals, full_logits and compile, not {', '.join(unknown)}; {_EXAMPLE}"
        )
    if not isinstance(model, nn.Module):
        raise ValueError(f"{_shown(model)} is not a model (a torch.nn.Module); {_EXAMPLE}")
    for name, flag in (("signals", signals), ("full_logits", full_logits), ("compile", compile)):
        if not isinstance(flag, bool):
            raise ValueError(f"{name}={_shown(flag)} is neither True nor False")
    return Handle(model, _pruner_of(pruner), signals, full_logits, compile)


def detach(model: nn.Module) -> None:
    """Take the attached pruner off a model.

    Raises:
        ValueError: none is attached.
    """
    with _LOCK:
        handle = handle_of(model)
        if handle is None:
            raise ValueError(f"this {_name(model)} has no pruner attached")
        handle.remove()


def handle_of(model: nn.Module) -> Handle | None:
    """The handle of the pruner that is attached to a model, such as a copy of an attached one; None if none is.

    Raises:
        ValueError: the model is of no known family.
    """
    found = (_handle_on(encoder.model) for encoder in anatomy_of(model).encoders)
    return next((handle for handle in found if handle is not None), None)


def flowcut(model: Model, target_num: Budget = 128) -> Model:
    """Attach FlowCut and return the same model; `detach(model)` undoes it. Called again it changes the budget.

    Args:
        target_num: visual tokens that reach the language model, per image; 0.333 for that share of each image's own.

    Raises:
        ValueError: as `attach`; or another method is attached.
    """
    with _LOCK:
        handle = handle_of(model)
        if handle is None:
            attach(model, FlowCut(budget=target_num))
        elif isinstance(handle.pruner, FlowCut):
            handle.budget = target_num
        else:
            raise ValueError(f"this {_name(model)} has {brief(handle.pruner)} attached; detach(model) it first")
    return model


def _pruner_of(given: object) -> Pruner:
    """A pruner, or one read from its text or dict."""
    pruner = given
    if isinstance(given, str):
        pruner = parse_pruner(given)
        if pruner is None:
            raise ValueError(f"{given!r} is not a pruner to attach; leave attach out, or give flowcut:budget=64")
    elif isinstance(given, Mapping):
        pruner = pruner_from_config(given)
    if not isinstance(pruner, Pruner):
        raise ValueError(f"{_shown(given)} is not a pruner; {_EXAMPLE}")
    return pruner


def _shown(value: object) -> str:
    """A value in one short line."""
    said = value.__name__ if isinstance(value, type) else " ".join(repr(value).split())
    return said if len(said) <= 60 else f"{said[:57]}..."


def _name(model: nn.Module) -> str:
    return type(unwrap(model)).__name__


def check_pruner(pruner: Pruner, shape: ModelShape) -> None:
    """Whether a pruner can work on such a model.

    Raises:
        ValueError: one line that says why not.
    """
    for encoder in shape.encoders:
        if isinstance(pruner.budget, int) and pruner.budget <= encoder.num_forwarded_special_tokens:
            raise ValueError(
                f"budget={pruner.budget} leaves no patch, because this model also passes on a CLS token, which counts; "
                "use >= 2"
            )
    pruner.check(shape)


def _handle_on(encoder: nn.Module) -> Handle | None:
    """The encoder's own hooks tell whether a pruner is attached; no table on the side has to be kept in step."""
    for hook in encoder._forward_pre_hooks.values():
        stage = getattr(hook, "__self__", None)
        if isinstance(stage, EncoderStage):
            return stage.session if isinstance(stage.session, Handle) else None
    return None
