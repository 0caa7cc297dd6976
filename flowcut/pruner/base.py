"""The contract between a pruning method and the model it is attached to.

A method is a frozen dataclass derived from `Pruner`. After every layer of the vision encoder it is shown a `View`,
after every layer of the language model that sees an image a `LanguageView`; it answers with a `Cut`, or with None to
leave the layer alone. It never touches the model; `flowcut.attach` does.

What every pruner has to honour (tests/flowcut/test_laws*.py hold all of them to it):

1. a budget not below the number of tokens changes nothing, to the last bit;
2. exactly `budget` visual tokens (a share: that of the image's own number, see `whole_budget`) reach the language
   model, or its last layers where the method cuts there, or an average layer of it where the method says so;
3. kept indices ascend unless the method merges, and special tokens before the patches (CLS) and text always stay;
4. a sample's result does not depend on its batch mates (unless a field asks for it, as `batch_coupling="max"`);
5. whatever has to live from one layer to the next lies in `view.memory`, which dies with the forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from flowcut.pruner.budget import Budget, whole_budget
from flowcut.pruner.cut import Cut
from flowcut.pruner.decoder_view import CachedView, LanguageView
from flowcut.pruner.shape import EncoderShape, ModelShape
from flowcut.pruner.view import Rows, View


@dataclass(frozen=True)
class Pruner:
    """A token pruning method with its settings. Derive a frozen dataclass and answer `vision`, `language` or both.

    A class that reads `view.hidden` says so with `reads_hidden = True`. The others are asked as soon as q, k and v are
    there, so that none of them has to be kept through the rest of the layer; the cut is made after it all the same.

    Attributes:
        budget: visual tokens that reach the language model (its last layers, if the method cuts there), per image or
            video frame. A float between 0 and 1 is a share of each image's (frame's) own tokens, so that images of
            different size keep different numbers. Methods that cut in the encoder take it of `Rows.unpruned_tokens`,
            where an image in tiles has the patches of all of them; methods that cut in the language model alone take it
            of what enters there, unpadded and with the tokens that end image rows.

    Raises:
        ValueError: the budget is neither a whole number of at least 1 nor a share between 0 and 1.
    """

    budget: Budget
    reads_hidden: ClassVar[bool] = False

    name: ClassVar[str] = ""
    """The method's name on command lines and in files (`<name>:budget=64`); empty for a class that has none."""
    reference: ClassVar[str] = ""
    """What to cite."""
    presets: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Other names: {name: (the class method that makes such a pruner, what to cite)}."""

    @property
    def merges_before_mlp(self) -> bool:
        """Whether it merges between attention and MLP (`Cut.before_mlp`); such a pruner reads no hidden states."""
        return False

    @property
    def reads_question(self) -> bool:
        """Whether it needs `view.question`: the caller then wraps each call of the model in `flowcut.asked`."""
        return False

    @property
    def reads_file(self) -> bool:
        """Whether a field names a file, so that a service must not take such a pruner from anybody who asks."""
        return False

    @property
    def keeps_groups(self) -> bool:
        """Whether patches that the model merges into one token stay or go together; see `View.best`."""
        return True

    @property
    def keeps_position_ids(self) -> bool:
        """Whether kept tokens retain their M-RoPE position ids; otherwise they take the first ones of their image."""
        return True

    def __post_init__(self) -> None:
        whole = isinstance(self.budget, int) and not isinstance(self.budget, bool) and self.budget >= 1
        if not whole and not (isinstance(self.budget, float) and 0 < self.budget < 1):
            raise ValueError(
                f"budget={self.budget!r} is not a whole number of tokens >= 1, nor a share of each image's tokens "
                "between 0 and 1; try budget=64 or budget=0.333"
            )

    def tokens_of(self, tokens: int) -> int:
        """The budget of an image (or video frame) of so many tokens, as a whole number; see `whole_budget`."""
        return whole_budget(self.budget, tokens)

    def targets(self, rows: Rows, shape: EncoderShape) -> list[int]:
        """How many patches each row may have when it leaves the encoder; see `Rows.share`."""
        return rows.share(self.budget, shape)

    def check(self, shape: ModelShape) -> None:
        """Called before attaching: raise a ValueError of one line if the method cannot work on this model."""

    def least_budget(self, tokens: int, shape: ModelShape) -> int:
        """The smallest whole budget that it can meet for an image of so many tokens, with its other fields as they are.

        The largest is `tokens`, which changes nothing. `budget` itself is not looked at.
        """
        return 1 + max((encoder.num_forwarded_special_tokens for encoder in shape.encoders), default=0)

    def cuts_language(self, two_stage: bool) -> bool:
        """Whether `language` is to be asked at all; by default if it is overridden."""
        return type(self).language is not Pruner.language

    @property
    def anneals(self) -> bool:
        """Whether entries may leave the KV cache while the answer grows; by default if `cached` is overridden."""
        return type(self).cached is not Pruner.cached

    def learned(self, shape: EncoderShape) -> nn.Module | None:
        """Weights of the method's own on an encoder, made anew at each call; None if it has none.

        While the method is attached they are a part of the encoder, so that optimizers find them, and views show them
        as `learned`.

        Raises:
            ValueError: they are to be read from a file, which cannot be read or is of another model.
        """
        return None

    def keep_learned(self, learned: nn.Module, folder: Path) -> Pruner:
        """Write such weights into a checkpoint's folder. -> the pruner as the checkpoint is to remember it."""
        raise NotImplementedError

    def beside(self, folder: Path) -> Pruner:
        """The same pruner, with files that a checkpoint in `folder` brings along named by their whole path."""
        return self

    def reads_layer(self, layer: int, shape: EncoderShape) -> bool:
        """Whether `vision` has to be asked about this encoder layer; the others are left alone. By default all are."""
        return type(self).vision is not Pruner.vision

    def vision(self, view: View) -> Cut | None:
        """Asked for each encoder layer; None leaves the layer's output as it is."""
        return None

    def reads_cache(self, grown: Sequence[int], new: int) -> bool:
        """Whether `cached` has to be asked in a forward of at most `new` tokens a row, with which images are followed
        by `grown` tokens. By default always; a method that seldom drops anything spares the views of all layers.
        """
        return True

    def cached(self, view: CachedView) -> Cut | None:
        """Asked for the decoder layers of a forward that goes on with a KV cache and brings no images; see
        `CachedView`. Entries that the cut leaves out are removed from that layer's cache; None removes nothing.
        """
        return None

    def language(self, view: LanguageView) -> Cut | None:
        """Asked for each decoder layer of a forward that brings images; None leaves the layer's output as it is."""
        return None
