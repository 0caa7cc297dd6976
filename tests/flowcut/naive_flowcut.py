"""FlowCut for one picture in tiles, written down once more as plain loops over patches' cells: no hooks, no batches.

For families whose tokens are cells of a raster of patches, with the equations of docs/method.md as they are printed
there. What differs between families comes as functions in a `Family`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

LAST_OF_PROMPT = -1
SECOND_LAYER = 1


@dataclass
class Family:
    """What the reference has to know of a model.

    Attributes:
        embed: pixels [3, H, W] -> what enters the tower's first layer, [S, D].
        layers, projections: the tower's layers, and a layer's q, k, v [S, D] of what enters it.
        heads, prefix, cell: of the tower; how many tokens stand before the patches; a cell's rows and columns.
        last: the layer after which the tower has its target.
        project: a cell's patches [P, D], row by row, as the tower leaves them -> a token [D'].
        text: the decoder's body. see: (which tokens are of the picture [S], layer) -> who attends to whom, [S, S] bool.
        padding: patches of every tile that nobody attends to. unmasked: arguments of the tower's layers if none.
        twice: whether the tower keeps twice the budget.
    """

    embed: Callable[[Tensor], Tensor]
    layers: Any
    projections: Callable[[Any, Tensor], tuple[Tensor, Tensor, Tensor]]
    heads: int
    prefix: int
    cell: tuple[int, int]
    last: int
    project: Callable[[Tensor], Tensor]
    text: Any
    see: Callable[[list[bool], int], Tensor]
    padding: frozenset[int] = frozenset()
    unmasked: dict[str, Any] = field(default_factory=dict)
    twice: bool = True


@dataclass
class Tile:
    states: Tensor
    patches: list[int]
    target: int
    columns: int
    cumulative: list[float] | None = None


def softmax_of(logits: Tensor) -> Tensor:
    weights = (logits - logits.max()).exp()
    return weights / weights.sum()


def importance(family: Family, q: Tensor, k: Tensor, v: Tensor, real: list[int]) -> tuple[list[float], list[float]]:
    """-> importance of each patch, and its share of the global attention among patches. real: who is attended to."""
    width, number = q.shape[1] // family.heads, len(q)
    attention, semantic, mean_value = torch.zeros(number), torch.zeros(number), torch.zeros(number, width)
    for head in range(family.heads):
        part = slice(head * width, (head + 1) * width)
        # Without a CLS token the mean of all tokens takes its place.
        query = q[0, part] if family.prefix else q[real, part].mean(dim=0)
        value = v[0, part] if family.prefix else v[real, part].mean(dim=0)
        attention[real] += softmax_of(k[real, part] @ query / math.sqrt(width)) / family.heads
        semantic[real] += softmax_of(v[real, part] @ value) / family.heads
        mean_value += v[:, part] / family.heads
    attention, semantic, mean_value = (each[family.prefix :] for each in (attention, semantic, mean_value))
    share = attention / attention.sum()
    found = (share + semantic / semantic.sum()) * mean_value.abs().sum(dim=1)
    return found.tolist(), share.tolist()


def cells(patches: list[int], columns: int, cell: tuple[int, int]) -> dict[int, list[int]]:
    """Number of each cell -> where in `patches` its own stand, row by row."""
    found: dict[int, list[int]] = {}
    for index, patch in enumerate(patches):
        row, column = divmod(patch, columns)
        found.setdefault(row // cell[0] * (columns // cell[1]) + column // cell[1], []).append(index)
    return dict(sorted(found.items()))


def encode(family: Family, pixels: Tensor, budget: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """-> tokens [V, D'] and (tile, cell) of each, for tiles [T, 3, H, W] that share twice the budget."""
    unit, tiles = family.cell[0] * family.cell[1], []
    for number, tile in enumerate(pixels):
        states = family.embed(tile)
        patches = len(states) - family.prefix
        share = budget // len(pixels) + (number < budget % len(pixels))
        tiles.append(Tile(states, list(range(patches)), (2 if family.twice else 1) * share * unit, math.isqrt(patches)))
    for number, layer in enumerate(family.layers):
        entered, drops = [tile.states for tile in tiles], [0.0] * len(tiles)
        attended = []
        for tile in tiles:
            real = [at + family.prefix for at, patch in enumerate(tile.patches) if patch not in family.padding]
            attended.append([*range(family.prefix), *real])
            mask = torch.full((1, 1, len(tile.states), len(tile.states)), -1e9)
            mask[..., attended[-1]] = 0
            masked = {"attention_mask": mask} if family.padding else family.unmasked
            tile.states = layer(tile.states[None], **masked)[0]
        if number > family.last:
            continue
        left = family.last - number
        for place, (tile, states) in enumerate(zip(tiles, entered, strict=True)):
            score, share = importance(family, *family.projections(layer, states), attended[place])
            before = tile.cumulative
            tile.cumulative = score if before is None else [(a + b) / 2 for a, b in zip(before, score, strict=True)]
            many = len(tile.patches)
            entropy = -sum(weight * math.log(weight) for weight in share if weight > 0) / math.log(many)
            if many > tile.target and left:
                drops[place] = (many - tile.target) / math.sqrt(left) * (1 - entropy**2)
        if left % 2:
            continue
        for tile in tiles:
            many = len(tile.patches)
            count = tile.target if left == 0 else max(many - round(max(drops) / unit) * unit, tile.target)
            if count >= many:
                continue
            assert tile.cumulative is not None
            members = cells(tile.patches, tile.columns, family.cell)
            means = {name: sum(tile.cumulative[at] for at in own) / unit for name, own in members.items()}
            best = sorted(means, key=lambda name: (-means[name], name))[: count // unit]
            kept = sorted(at for name in best for at in members[name])
            tile.patches = [tile.patches[at] for at in kept]
            tile.cumulative = [tile.cumulative[at] for at in kept]
            tile.states = torch.cat([tile.states[: family.prefix], tile.states[[at + family.prefix for at in kept]]])
    tokens, names = [], []
    for number, tile in enumerate(tiles):
        for name, own in cells(tile.patches, tile.columns, family.cell).items():
            tokens.append(family.project(tile.states[[at + family.prefix for at in own]]))
            names.append((number, name))
    return torch.stack(tokens), names


def decode(family: Family, embeds: Tensor, visual: list[bool], budget: int) -> tuple[Tensor, list[int]]:
    """-> the body's output [S', D], and which of the visual tokens are left, for embeddings [S, D]."""
    text, states = family.text, embeds
    config, kept = text.config, [number for number in range(sum(visual))]
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    for number, layer in enumerate(text.layers):
        kind = (getattr(config, "layer_types", None) or ["full_attention"] * len(text.layers))[number]
        by_kind = {"layer_type": kind} if type(text.rotary_emb).__name__.startswith("Gemma3") else {}
        cosine, sine = text.rotary_emb(states[None], torch.arange(len(states))[None], **by_kind)
        mask = torch.zeros(len(states), len(states)).masked_fill(~family.see(visual, number), -1e9)
        entered = layer.input_layernorm(states)
        states = layer(states[None], position_embeddings=(cosine, sine), attention_mask=mask[None, None])[0]
        if number != SECOND_LAYER or len(kept) <= budget:
            continue
        block, own = layer.self_attn, [column for column, shows in enumerate(visual) if shows]
        queries, keys, values = (
            projection(entered).view(len(entered), -1, block.head_dim)
            for projection in (block.q_proj, block.k_proj, block.v_proj)
        )
        if hasattr(block, "q_norm"):
            queries, keys = block.q_norm(queries), block.k_norm(keys)
        attention, semantic = torch.zeros(len(own)), torch.zeros(len(own))
        for head in range(heads):
            group = head * groups // heads
            query, key = turned(queries[:, head], cosine[0], sine[0]), turned(keys[:, group], cosine[0], sine[0])
            value = values[:, group]
            attention += softmax_of(key[own] @ query[LAST_OF_PROMPT] * block.scaling) / heads
            semantic += softmax_of(value[own] @ value[LAST_OF_PROMPT] / math.sqrt(block.head_dim)) / heads
        strength = values[own].mean(dim=1).abs().sum(dim=1)
        score = (attention / attention.sum() + semantic / semantic.sum()) * strength
        best = sorted(range(len(own)), key=lambda one: (-float(score[one]), one))[:budget]
        stays = sorted([column for column, shows in enumerate(visual) if not shows] + [own[one] for one in best])
        kept = sorted(kept[one] for one in best)
        states, visual = states[stays], [visual[column] for column in stays]
    return text.norm(states), kept


def turned(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """[S, d], every entry of the first half turned with its partner in the second."""
    half = vectors.shape[-1] // 2
    return vectors * cosine + torch.cat([-vectors[:, half:], vectors[:, :half]], dim=-1) * sine


def causal(visual: list[bool], layer: int) -> Tensor:
    return torch.ones(len(visual), len(visual)).tril().bool()


@torch.no_grad()
def answer(family: Family, model: Any, ids: list[int], token: int, pixels: Tensor, budget: int) -> Any:
    """-> logits [S', V] of a prompt with one picture, and (tile, cell) of the tokens that are left in the end.

    Args:
        ids: the prompt, with a placeholder for each token of the unpruned picture.
        token: the placeholder's id.
    """
    tokens, names = encode(family, pixels, budget)
    words = model.get_input_embeddings()(torch.tensor([one for one in ids if one != token]))
    first = ids.index(token)
    assert all(one == token for one in ids[first : len(ids) - len(words) + first])
    embeds = torch.cat([words[:first], tokens, words[first:]])
    visual = [first <= column < first + len(tokens) for column in range(len(embeds))]
    states, kept = decode(family, embeds, visual, budget)
    return model.lm_head(states), [names[one] for one in kept]
