"""Where each model family keeps its parts. One file per family; `anatomy_of` asks them in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from flowcut.attach import Handle


@dataclass(frozen=True)
class Encoder:
    """A vision encoder.

    Attributes:
        model: the module that is called once per batch of images.
        layers: its transformer layers, in order.
        attentions: their attention modules.
        depth: how many layers the encoder has by its config, also where its owner leaves the last ones out.
        prefix: special tokens ahead of the patches.
        reserved: special tokens that travel on to the language model and so count in the budget.
        feature_layer: last layer that cuts may follow, because features are read after it; None where the caller picks.
        last_layer: layer after which a gradual method is to be done by default, counted from the end.
        unit: patches, one after the other, that become one token of the language model.
        two_stage: whether pruners are expected to cut again in the language model.
        run: makes the state of one forward; `flowcut.encoder.Run` where rows are a batch [B, S, D].
        project: what its owner makes of the visual tokens' features [R, n, D]: [R, n / unit, D'], which the language
            model reads; None for an encoder alone.
    """

    model: Any
    layers: Sequence[nn.Module]
    attentions: Sequence[nn.Module]
    depth: int
    prefix: int
    reserved: int = 0
    feature_layer: int | None = None
    last_layer: int = -3
    unit: int = 1
    two_stage: bool = False
    run: Callable[..., Any] | None = None
    project: Callable[[Tensor], Tensor] | None = None
    branches: Sequence[tuple[nn.Module, nn.Module]] = ()

    def __post_init__(self) -> None:
        if self.run is None:
            from flowcut.encoder import Run

            object.__setattr__(self, "run", Run)

    @property
    def whole_from(self) -> int:
        """First layer whose output has to be a batch [B, S, D], because it may be read."""
        return self.depth - 2 if self.feature_layer is None else self.feature_layer


@dataclass(frozen=True)
class Decoder:
    """A language model's body.

    Attributes:
        model: the module that takes `inputs_embeds`, `attention_mask`, `position_ids` and a KV cache.
        layers, attentions: as for encoders.
        rotary: the module that makes position embeddings (cos, sin) from (hidden states, position ids).
        head: the module around it that computes the loss; None where there is none.
        mrope: whether positions have axes for time, height and width.
    """

    model: Any
    layers: Sequence[nn.Module]
    attentions: Sequence[nn.Module]
    rotary: nn.Module
    head: Any = None
    mrope: bool = False


@dataclass(frozen=True)
class Anatomy:
    """A model as `attach` needs to know it.

    Attributes:
        family: the family's name.
        encoders: its vision encoders; most have one.
        decoder: the language model; None for an encoder alone.
        two_stage: whether pruners are expected to cut in the language model too.
        stages: makers of what else has to be installed, each given the handle.
    """

    family: str
    encoders: tuple[Encoder, ...]
    decoder: Decoder | None = None
    two_stage: bool = False
    stages: tuple[Callable[[Handle], Any], ...] = ()

    def refuse_merging(self, method: str) -> None:
        """For `Pruner.check` of a method that merges patches: raise ValueError where the model merges 2 x 2 itself."""
        if any(encoder.unit > 1 for encoder in self.encoders):
            raise ValueError(f"{method} cannot merge patches where the model merges 2 x 2 of them itself (Qwen2-VL)")


def anatomy_of(model: nn.Module) -> Anatomy:
    """Find out what a model is. Wrappers of PEFT, accelerate, DDP, DeepSpeed and torch.compile are looked through.

    Raises:
        ValueError: no known family, or a member of one that lacks a part.
    """
    from flowcut.anatomy import clip, dinov2, llava, llava_hf, llava_next_hf, qwen2_vl, siglip, video_llava_hf

    families = (clip, dinov2, siglip, llava_hf, llava_next_hf, video_llava_hf, qwen2_vl, llava)
    model = unwrap(model)
    for family in families:
        anatomy = family.read(model)
        if anatomy is not None:
            return anatomy
    known = "; ".join(family.FAMILY for family in families)
    raise ValueError(f"{type(model).__name__} is no model family that can be pruned; known are: {known}")


def unwrap(model: Any) -> Any:
    """The model inside of PEFT's, DDP's, DeepSpeed's and torch.compile's wrappers."""
    while True:
        names = class_names(model)
        if "PeftModel" in names:
            model = model.get_base_model()
        elif names & {"DistributedDataParallel", "DataParallel", "DeepSpeedEngine", "FullyShardedDataParallel"}:
            model = model.module
        elif "OptimizedModule" in names:
            model = model._orig_mod
        else:
            return model


def class_names(model: nn.Module) -> set[str]:
    """Names of a model's class and all it derives from. Telling families by name needs no import of their code."""
    return {cls.__name__ for cls in type(model).__mro__}


def body_and_head(model: Any, heads: set[str], bodies: set[str]) -> tuple[Any, Any] | None:
    """Of a model for conditional generation: the model inside, and itself. Of the model inside: itself, and None.

    None if it is neither, by the names of classes.
    """
    names = class_names(model)
    if names & heads:
        return model.model, model
    return (model, None) if names & bodies else None


def feature_layer(depth: int, indices: int | Sequence[int]) -> int:
    """The layer after which an owner reads features from `hidden_states[indices]`; the earliest if it reads several."""
    indices = [indices] if isinstance(indices, int) else indices
    # hidden_states[0] is the input of layer 0, so hidden_states[i] comes out of layer i - 1.
    return min(index if index >= 0 else depth + 1 + index for index in indices) - 1


def projector(module: nn.Module, indices: int | Sequence[int] = -1) -> Callable[[Tensor], Tensor]:
    """A multimodal projector as `Encoder.project`, for an owner that reads `hidden_states[indices]`."""

    def project(states: Tensor) -> Tensor:
        if not isinstance(indices, int) and len(indices) > 1:
            raise ValueError(
                f"this model projects features of layers {list(indices)} together; a method that reads projected "
                "tokens needs a model that reads a single layer"
            )
        weight = next(module.parameters(), None)
        if weight is not None:
            states = states.to(weight.device, weight.dtype if weight.is_floating_point() else None)
        return module(states)

    return project


def decoder_of(body: Any, head: Any = None, mrope: bool = False) -> Decoder:
    """A decoder in the layout of transformers' Llama, Mistral, Qwen2 and their kin.

    Raises:
        ValueError: it is laid out in another way.
    """
    body = unwrap(body)
    if not all(hasattr(body, part) for part in ("layers", "rotary_emb")):
        raise ValueError(
            f"a {type(body).__name__} as language model cannot be cut in; known are those with layers and "
            "rotary_emb, such as Llama, Mistral and Qwen2"
        )
    layers = [unwrap(layer) for layer in body.layers]
    return Decoder(body, layers, [layer.self_attn for layer in layers], body.rotary_emb, head, mrope)


def vision_encoder(tower: Any, **fields: Any) -> Encoder:
    """The vision tower inside of a LLaVA, of whichever known kind.

    Raises:
        ValueError: it is of no known kind.
    """
    from flowcut.anatomy import clip, dinov2, siglip

    tower = unwrap(tower)
    for kind in (clip, siglip, dinov2):
        if class_names(tower) & kind.NAMES:
            return kind.encoder_of(tower, **fields)
    known = "; ".join(kind.FAMILY for kind in (clip, siglip, dinov2))
    raise ValueError(f"a {type(tower).__name__} as vision tower cannot be pruned; known are: {known}")
