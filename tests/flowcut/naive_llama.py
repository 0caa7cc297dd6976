"""A decoder run layer by layer in plain steps, one sample at a time, for methods written down once more as loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowcut import Handle, Pruner, attach
from tests.flowcut.hosts import all_hosts

TEXT_IN_FRONT = 3


@dataclass
class Prompt:
    """Embeddings [S, D] of TEXT_IN_FRONT text tokens, `image` visual ones, and text behind."""

    embeds: Tensor
    image: int

    @property
    def index(self) -> Tensor:
        index = torch.full((len(self.embeds),), -1)
        index[TEXT_IN_FRONT : TEXT_IN_FRONT + self.image] = 0
        return index


def prompt(seed: int, image: int, behind: int) -> Prompt:
    generator = torch.Generator().manual_seed(seed)
    return Prompt(torch.randn(TEXT_IN_FRONT + image + behind, 32, generator=generator), image)


def tiny_llava(folder: Any) -> Any:
    return all_hosts(folder)["llava"].build()


def batch(model: Any, pruner: Pruner, prompts: list[Prompt], side: str) -> tuple[list[Tensor], Handle]:
    """-> each prompt's logits behind the pruned decoder, padding taken off, and the handle with its trace."""
    width = max(len(one.embeds) for one in prompts)
    embeds, index = torch.zeros(len(prompts), width, 32), torch.full((len(prompts), width), -1)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, one in enumerate(prompts):
        place = slice(0, len(one.embeds)) if side == "right" else slice(width - len(one.embeds), width)
        embeds[row, place], mask[row, place] = one.embeds, 1
        index[row, place] = torch.where(one.index >= 0, row, -1)
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    with torch.no_grad(), attach(model, pruner, signals=True) as handle:
        logits = model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, image_index=index).logits
    left = [len(kept) for kept in handle.trace.language.final]
    lengths = [len(one.embeds) - one.image + count for one, count in zip(prompts, left, strict=True)]
    return [
        row[:length] if side == "right" else row[-length:] for row, length in zip(logits, lengths, strict=True)
    ], handle


@dataclass
class Sequence:
    """A sample on its way through the decoder: states [S, D], places [S], and what each token is (text: -1)."""

    states: Tensor
    places: Tensor
    tokens: list[int]

    @property
    def visual(self) -> list[int]:
        return [column for column, token in enumerate(self.tokens) if token >= 0]

    def keep(self, columns: list[int], renumber: bool) -> None:
        self.states, self.places = self.states[columns], self.places[columns]
        self.tokens = [self.tokens[column] for column in columns]
        if renumber:
            self.places = torch.arange(len(columns))


def queries_and_keys(model: Any, layer: int, sequence: Sequence) -> tuple[Tensor, Tensor]:
    """[H, S, d] each, with every pair of a head's halves turned by its place."""
    block, config = model.model.layers[layer], model.config
    normed = block.input_layernorm(sequence.states)
    width = config.hidden_size // config.num_attention_heads
    frequency = 1 / config.rope_parameters["rope_theta"] ** (torch.arange(0, width, 2) / width)
    angle = sequence.places[:, None].float() * frequency
    found = []
    for projection, heads in (
        (block.self_attn.q_proj, config.num_attention_heads),
        (block.self_attn.k_proj, config.num_key_value_heads),
    ):
        vectors = projection(normed).view(len(normed), heads, width).transpose(0, 1)
        one, other = vectors[..., : width // 2], vectors[..., width // 2 :]
        turned = [one * angle.cos() - other * angle.sin(), other * angle.cos() + one * angle.sin()]
        found.append(torch.cat(turned, dim=-1).repeat_interleave(config.num_attention_heads // heads, dim=0))
    return found[0], found[1]


def attention(model: Any, layer: int, sequence: Sequence) -> Tensor:
    """[H, S, S], causal."""
    queries, keys = queries_and_keys(model, layer, sequence)
    logits = queries @ keys.transpose(1, 2) / math.sqrt(queries.shape[-1])
    return logits.masked_fill(torch.ones(logits.shape[-2:]).triu(1).bool(), -torch.inf).softmax(dim=-1)


Step = Callable[[int, Sequence, Any], None]


@torch.no_grad()
def run(model: Any, given: Prompt, before: Step | None = None, after: Step | None = None) -> tuple[Tensor, Sequence]:
    """-> logits of what is left, and the sequence, which may be cut before and after each layer.

    `after` gets the layer's attention too.
    """
    numbers = [-1] * TEXT_IN_FRONT + list(range(given.image))
    numbers += [-1] * (len(given.embeds) - len(numbers))
    sequence = Sequence(given.embeds.clone(), torch.arange(len(given.embeds)), numbers)
    for number, layer in enumerate(model.model.layers):
        if before is not None:
            before(number, sequence, None)
        weights = attention(model, number, sequence)
        embeddings = model.model.rotary_emb(sequence.states, position_ids=sequence.places[None])
        sequence.states = layer(sequence.states[None], position_embeddings=embeddings)[0]
        if after is not None:
            after(number, sequence, weights)
    return model.lm_head(model.model.norm(sequence.states)), sequence
