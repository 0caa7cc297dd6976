"""The parts of a model that hooks go on, as the family's file in `flowcut.anatomy` finds them.

They are copied and pickled with a model that a pruner is attached to, so what is called here is no closure; see
`flowcut.hooks.base`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from flowcut.hooks.base import Stage
from flowcut.hooks.session import Session
from flowcut.pruner import EncoderShape, ModelShape


@dataclass(frozen=True)
class Encoder:
    """A vision encoder.

    Attributes:
        model: the module that is called once per batch of images.
        layers: its transformer layers, in order.
        attentions: their attention modules.
        depth: how many layers the encoder has by its config, also where its owner leaves the last ones out.
        num_prefix_tokens, num_forwarded_special_tokens, patches_per_token, cell, last_layer, two_stage, windowed,
            tapped: see `EncoderShape`.
        feature_layer: last layer that cuts may follow, because features are read after it; None where the caller picks.
        forward: class of the state of one forward; None for `EncoderForward`, where rows are a batch [B, S, D].
        project: what its owner makes of the visual tokens' features [R, n, D]: [R, n / patches_per_token, D'], which
            the language model reads; None for an encoder alone.
        tap: makes attention modules show q, k and v, as `flowcut.hooks.attention.tap` does for those of transformers,
            and returns what undoes it; None for that one.
        branches: first and last module of each layer's second branch (norm and MLP); empty where nothing can be merged
            before it.
    """

    model: Any
    layers: Sequence[nn.Module]
    attentions: Sequence[nn.Module]
    depth: int
    num_prefix_tokens: int
    num_forwarded_special_tokens: int = 0
    feature_layer: int | None = None
    last_layer: int = -3
    patches_per_token: int = 1
    cell: tuple[int, int] | None = None
    two_stage: bool = False
    windowed: bool = False
    tapped: bool = False
    forward: Callable[..., Any] | None = None
    project: Callable[[Tensor], Tensor] | None = None
    tap: Callable[[Sequence[nn.Module]], Callable[[], None]] | None = None
    branches: Sequence[tuple[nn.Module, nn.Module]] = ()

    @property
    def shape(self) -> EncoderShape:
        """The encoder in plain numbers."""
        config = getattr(self.model, "config", None)
        return EncoderShape(
            name=type(self.model).__name__,
            layers=self.depth,
            layers_present=len(self.layers),
            num_prefix_tokens=self.num_prefix_tokens,
            num_forwarded_special_tokens=self.num_forwarded_special_tokens,
            patches_per_token=self.patches_per_token,
            cell=self.cell,
            feature_layer=self.depth - 2 if self.feature_layer is None else self.feature_layer,
            last_layer=self.last_layer,
            two_stage=self.two_stage,
            windowed=self.windowed,
            tapped=self.tapped,
            merges_before_mlp=bool(self.branches),
            head_width=getattr(config, "hidden_size", 0) // getattr(config, "num_attention_heads", 1),
        )


@dataclass(frozen=True)
class Decoder:
    """A language model's body.

    Attributes:
        model: the module that takes `inputs_embeds`, `attention_mask`, `position_ids` and a KV cache.
        layers, attentions: as for encoders.
        rotary: the module that makes position embeddings (cos, sin) from (hidden states, position ids).
        head: the module around it that computes the loss; None where there is none.
        mrope: whether positions have axes for time, height and width.
        twins: copies of the body that PEFT would run in its place, after a change of adapters.
        from_start: whether callers count columns of rows that are padded at their end from the start; see `pack`.
    """

    model: Any
    layers: Sequence[nn.Module]
    attentions: Sequence[nn.Module]
    rotary: nn.Module
    head: Any = None
    mrope: bool = False
    twins: Sequence[nn.Module] = ()
    from_start: bool = False

    @property
    def rotary_by_kind(self) -> bool:
        """Whether position embeddings differ between full and sliding layers, as in Gemma 3."""
        return "layer_type" in inspect.signature(type(self.rotary).forward).parameters

    @property
    def norm(self) -> Any:
        """What the body applies after its last layer, if anything."""
        names = ("norm", "final_layernorm", "final_layer_norm")
        return next((getattr(self.model, name) for name in names if hasattr(self.model, name)), None)

    def turn(self, tokens: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Queries or keys [B, H, S, d], turned by position embeddings [B or 1, S or 1, d] as the family does it.

        Raises:
            ValueError: its way of doing it is not known.
        """
        attention = self.attentions[0]
        function = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
        if function is None or hasattr(attention, "qk_rope_head_dim"):  # whose keys are turned at their end
            raise ValueError(
                f"how {type(attention).__name__} rotates its keys by position is not known, so positions cannot be "
                "re-indexed; pass position_ids that begin with 0 in every row"
            )
        return function(tokens, tokens, cosine, sine)[1]


@dataclass(frozen=True)
class Anatomy:
    """A model as `attach` needs to know it.

    Attributes:
        family: the family's name.
        encoders: its vision encoders; most models have one. After them, where PEFT keeps copies of one, the others.
        decoder_layers: how many layers its language model has; None for an encoder alone.
        decoder_model, decoder_head: the language model's body, and the module around it that computes logits, if any.
        find_decoder: finds the parts of the language model. Called only where a pruner cuts there, so that a language
            model that cannot be cut in does not stop a method that cuts in the encoder.
        two_stage, complete_after: see `ModelShape`.
        stages: makers of what else has to be installed, each given the session.
    """

    family: str
    encoders: tuple[Encoder, ...]
    decoder_layers: int | None = None
    decoder_model: Any = None
    decoder_head: Any = None
    find_decoder: Callable[[], Decoder] | None = None
    two_stage: bool = False
    complete_after: int = 0
    stages: tuple[Callable[[Session], Stage], ...] = ()

    @property
    def shape(self) -> ModelShape:
        """The model in plain numbers."""
        encoders = tuple(encoder.shape for encoder in self.encoders)
        return ModelShape(encoders, self.decoder_layers, self.two_stage, self.complete_after)
