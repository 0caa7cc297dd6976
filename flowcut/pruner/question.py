"""What is asked about the images of a call, for methods that choose patches by the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor
from torch.nn.functional import normalize


class TextEncoder(Protocol):
    """Reads texts and patches into one space of size P; `flowcut.TextTower` is CLIP's."""

    def embed(self, text: str) -> Tensor:
        """[M, P]: the text in M pieces of as many tokens as the encoder takes; one for most questions."""

    def patches(self, states: Tensor, layer_norm: bool = True) -> Tensor:
        """[..., P] of an image's tokens [..., D] as they leave the vision encoder, float32."""

    @property
    def width(self) -> int:
        """P."""


@dataclass(frozen=True)
class Question:
    """What is asked about the images of a call, as a pruner finds it in `view.question`.

    Attributes:
        texts: one for each image (or video), in their order; or a single one about all of them.
        tower: by which they are read.
    """

    texts: tuple[str, ...]
    tower: TextEncoder

    def first_lines(self) -> Question:
        """The same of each text's first line, in which benchmarks ask; what follows says how to answer."""
        return replace(self, texts=tuple(text.strip().split("\n")[0] for text in self.texts))

    def cosines(self, states: Tensor, groups: Sequence[int], layer_norm: bool = True) -> list[Tensor]:
        """For each row [M, n]: the cosine of each piece of its image's text with each of its patches.

        Args:
            states: [R, n, D], the visual tokens at the end of CLIP's vision encoder.
            groups: the image of each row.
            layer_norm: whether the patches go through CLIP's last layer norm before the projection.

        Raises:
            ValueError: texts and images differ in number, or the vision encoder is not this text encoder's.
        """
        images = len(set(groups))
        if len(self.texts) not in (1, images):
            raise ValueError(f"{len(self.texts)} texts for {images} images; give one for each, or one about all")
        patches = normalize(self.tower.patches(states, layer_norm), dim=-1)
        texts = [normalize(self.tower.embed(text), dim=-1) for text in self.texts]
        order = {group: number for number, group in enumerate(sorted(set(groups)))}
        about = [texts[order[group] if len(texts) > 1 else 0] for group in groups]
        return [(text @ row.T).to(states.device) for text, row in zip(about, patches, strict=True)]


def needed(question: Question | None, method: str) -> Question:
    """The question of a view.

    Raises:
        ValueError: the caller did not say it.
    """
    if question is None:
        raise ValueError(
            f"{method} needs the question: wrap the call in flowcut.asked(handle, texts, text_tower), or set "
            "condition=False"
        )
    return question
