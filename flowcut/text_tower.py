"""CLIP's text encoder, for methods that choose patches by the question.

with attach(model, CDPruner(budget=64)) as handle, asked(handle, "What color is the star?", TextTower.find(model)):
    model.generate(...)

CLIP's text encoder and its vision encoder share a space, so the cosine of a patch and the question says how much one
has to do with the other. LLaVA's checkpoints bring the vision half of CLIP only; the text half is loaded here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowcut.anatomy.find import anatomy_of
from flowcut.anatomy.reading import running_device, unwrap

BESIDE = "text_tower"
"""Name of the folder in which a text tower is looked for, in the vision tower's own folder and next to it."""


@dataclass(frozen=True)
class TextTower:
    """The text half of a CLIP, and the two projections to the space of size P that texts and images share.

    Attributes:
        text_model: transformers' CLIPTextModel.
        text_projection, visual_projection: to P, from the width of the text and of the vision encoder.
        post_layernorm: what CLIP applies to an image's tokens before the projection.
        tokenizer: CLIP's.
    """

    text_model: Any
    text_projection: nn.Module
    visual_projection: Any
    post_layernorm: nn.Module
    tokenizer: Any

    @classmethod
    def load(cls, source: str, device: torch.device | str = "cpu") -> TextTower:
        """Read it, in float32, from a whole CLIP (text and vision): a folder or a name on the Hugging Face Hub.

        Raises:
            ValueError: nothing is there, or no whole CLIP.
        """
        from transformers import AutoConfig, AutoTokenizer, CLIPModel  # not before they are needed

        try:
            kind = AutoConfig.from_pretrained(source).model_type
            if kind != "clip":
                raise ValueError(f"{source} has a {kind}, not a complete CLIP; give one with text and vision encoder")
            loaded: Any = CLIPModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(source)
        except OSError as error:
            raise ValueError(f"no CLIP text tower at {source}: {str(error).splitlines()[0]}") from error
        model, report = loaded
        if report["missing_keys"]:
            raise ValueError(f"the CLIP at {source} lacks weights, such as {min(report['missing_keys'])}")
        return cls.of(model.to(device), tokenizer)

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> TextTower:
        """The parts of a loaded CLIPModel; its vision encoder is not kept."""
        parts = model.text_model, model.text_projection, model.visual_projection, model.vision_model.post_layernorm
        for part in parts:
            part.eval().requires_grad_(False)
        return cls(*parts, tokenizer)

    @classmethod
    def find(cls, model: nn.Module, source: str | None = None) -> TextTower:
        """The text tower at `source`, or else the one that lies with the vision tower of a model, on its device.

        Looked for are a whole CLIP under the vision tower's own name, and a folder "text_tower" in it or next to it.

        Raises:
            ValueError: there is none, or `source` is none.
        """
        tower = anatomy_of(model).encoders[0].model
        if source is not None:
            return cls.load(source, running_device(tower))
        owner: Any = unwrap(model)
        known = [getattr(tower.config, "_name_or_path", None)]
        if callable(getattr(owner, "get_vision_tower", None)):  # a llava class, whose tower knows where it came from
            known.append(getattr(owner.get_vision_tower(), "source", None))
        names = [str(name) for name in known if name]
        places = [place for name in names for place in (Path(name) / BESIDE, Path(name).parent / BESIDE)]
        found = [*(str(place) for place in places if place.is_dir()), *names]
        if not found:
            raise ValueError("no CLIP text tower is known for this model's vision tower; name one with text_tower=")
        try:
            return cls.load(found[0], running_device(tower))
        except ValueError as error:
            raise ValueError(f"{error}; name a complete CLIP with text_tower=") from error

    @property
    def width(self) -> int:
        """P."""
        return self.visual_projection.weight.shape[0]

    def embed(self, text: str) -> Tensor:
        """[M, P]: the text in M pieces of as many tokens as the encoder takes; one for most questions."""
        longest = self.text_model.config.max_position_embeddings - 2
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        device = running_device(self.text_model)
        pieces = []
        for start in range(0, max(len(ids), 1), longest):
            piece = [self.tokenizer.bos_token_id, *ids[start : start + longest], self.tokenizer.eos_token_id]
            states = self.text_model(input_ids=torch.tensor([piece], device=device)).last_hidden_state
            pieces.append(self.text_projection(states[:, -1]))
        return torch.cat(pieces)

    def patches(self, states: Tensor, layer_norm: bool = True) -> Tensor:
        """[..., P] of an image's tokens [..., D] at the end of CLIP's vision encoder, float32.

        Raises:
            ValueError: they come from an encoder of another width.
        """
        weight = self.visual_projection.weight
        if states.shape[-1] != weight.shape[1]:
            raise ValueError(
                f"the vision encoder's tokens have {states.shape[-1]} entries, the text tower's {weight.shape[1]}; "
                "name the CLIP that the vision tower was taken from with text_tower="
            )
        states = states.to(running_device(self.visual_projection), torch.float32)
        return self.visual_projection(self.post_layernorm(states) if layer_norm else states)
