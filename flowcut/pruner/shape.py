"""A model in plain numbers: what a method may know of it before and while it prunes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderShape:
    """A vision encoder.

    Attributes:
        name: its class.
        layers: how many transformer layers it has by its config.
        layers_present: how many of them the model holds; an owner may leave out the last ones, which it does not read.
        num_prefix_tokens: special tokens before the visual ones (1 for CLIP's CLS, 0 for SigLIP).
        num_forwarded_special_tokens: special tokens that go on to the language model, and so count in the budget (CLS
            with LLaVA's `cls_patch`).
        patches_per_token: how many patches become one token of the language model (4 in Qwen2-VL).
        cell: rows and columns of the patches that become one token, where they are a cell of the image's grid of
            patches in raster order (pixel shuffle, average pooling); None where they are `patches_per_token` patches
            one after the other.
        feature_layer: the layer whose output goes to the language model; in an encoder alone the last but one.
        last_layer: the layer after which a gradual method meets its budget, counted from the encoder's end.
        two_stage: whether this family's pruners are expected to cut again inside the language model.
        windowed: whether layers attend inside windows of the image (Qwen2.5-VL).
        tapped: whether the language model reads states after some of its layers besides the last (DeepStack).
        merges_before_mlp: whether tokens can be merged between attention and MLP.
        head_width: entries of a query or key in each head; 0 where it is not known.
    """

    name: str
    layers: int
    layers_present: int
    num_prefix_tokens: int = 0
    num_forwarded_special_tokens: int = 0
    patches_per_token: int = 1
    cell: tuple[int, int] | None = None
    feature_layer: int = -2
    last_layer: int = -3
    two_stage: bool = False
    windowed: bool = False
    tapped: bool = False
    merges_before_mlp: bool = False
    head_width: int = 0


@dataclass(frozen=True)
class ModelShape:
    """A model.

    Attributes:
        encoders: its vision encoders; most models have one.
        decoder_layers: how many layers its language model has; None for an encoder alone.
        two_stage: whether pruners are expected to cut in the language model too.
        complete_after: the decoder layer after which visual tokens have all their features: later than 0 where the
            model adds some after its first layers (DeepStack).
    """

    encoders: tuple[EncoderShape, ...]
    decoder_layers: int | None = None
    two_stage: bool = False
    complete_after: int = 0

    def refuse_merging(self, method: str) -> None:
        """For a method that merges patches.

        Raises:
            ValueError: the model joins patches itself.
        """
        if any(encoder.patches_per_token > 1 for encoder in self.encoders):
            raise ValueError(f"{method} cannot merge patches in a model that joins several patches into one token")

    def need_last_layer(self, method: str) -> None:
        """For a method that reads the layer after the features.

        Raises:
            ValueError: the model does not hold it.
        """
        if any(encoder.layers_present < encoder.layers for encoder in self.encoders):
            raise ValueError(f"{method} reads the encoder's last layer, which this model lacks; load all of it")

    def need_decoder(self, method: str, field: str, layer: int, spare: int) -> None:
        """For a method that cuts at decoder layer `layer`, the value of its field `field`.

        Raises:
            ValueError: there is no decoder, or fewer than `spare` layers follow that layer.
        """
        if self.decoder_layers is None:
            raise ValueError(f"{method} cuts inside a language model, and this is a vision encoder alone")
        if layer + spare >= self.decoder_layers:
            raise ValueError(
                f"{field}={layer} is not in this decoder of only {self.decoder_layers} layers; use at most "
                f"{self.decoder_layers - 1 - spare}"
            )
