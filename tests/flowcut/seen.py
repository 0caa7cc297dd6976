"""What a pruner is shown, caught in a forward that cuts nothing; and a tiny CLIP with a text half."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from flowcut import Pruner, View, attach
from tests.flowcut.hosts import VISION

LETTERS = "abcdefghijklmnopqrstuvwxyz?"


@dataclass(frozen=True)
class Watcher(Pruner):
    """Cuts nothing; keeps every layer's view, and what its layer's follower would attend with."""

    reads_hidden: ClassVar[bool] = True

    views: dict[int, View] = field(default_factory=dict)
    ahead: dict[int, View] = field(default_factory=dict)

    def vision(self, view: View) -> None:
        self.views[view.layer] = view
        if view.layer == view.layers - 2:
            self.ahead[view.layer] = view.next_layer()


def watch(host: Any, model: Any, samples: list[Any]) -> Watcher:
    watcher = Watcher(1)
    with torch.no_grad(), attach(model, watcher):
        host.outputs(model, samples)
    return watcher


def kept_of(host: Any, model: Any, pruner: Pruner, samples: list[Any]) -> list[list[int]]:
    """Grid positions that a method with one cut keeps, in the order it leaves them in."""
    with torch.no_grad(), attach(model, pruner) as handle:
        host.outputs(model, samples, handle)
    return [positions.tolist() for positions in handle.trace.final]


def write_clip(folder: Path, seed: int = 0, **vision: Any) -> Path:
    """A whole CLIP whose vision half has the size of the hosts' towers, with a tokenizer of single letters."""
    torch.manual_seed(seed)
    ends = ["<|startoftext|>", "<|endoftext|>"]
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), *ends]
    text = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"vocab_size": len(words), "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    text |= {**special, "pad_token_id": len(words) - 1, "max_position_embeddings": 12}
    config = CLIPConfig(text_config=text, vision_config={**VISION, **vision}, projection_dim=16)
    model = CLIPModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")).save_pretrained(folder)
    return folder
