"""Models with a packed vision encoder, run over one picture in plain steps: no hooks, one token list, full attention.

FlowCut is written down once more as a loop, from the paper's equations. A family says how patches begin, what its
merger makes of them, and what its language model's layers add up.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor


def heads_of(tensor: Tensor, heads: int) -> Tensor:
    """[S, H * d] -> [H, S, d]."""
    return tensor.view(len(tensor), heads, -1).transpose(0, 1)


class Naive:
    """A family with 2 x 2 merge groups; grids of h x w patches. Derive one for each family."""

    def __init__(self, model: Any, budget: int):
        self.model, self.inner, self.budget, self.target = model, model.model, budget, 2 * budget
        self.tower, self.body = self.inner.visual, self.inner.language_model
        self.taps: dict[int, tuple[Tensor, Tensor]] = {}

    # The encoder.

    def places(self, grid: tuple[int, int]) -> Tensor:
        """[P, 2], row and column of each patch: the four of a group one after the other."""
        height, width = grid
        found = []
        for group in range(height * width // 4):
            row, column = 2 * (group // (width // 2)), 2 * (group % (width // 2))
            found += [(row, column), (row, column + 1), (row + 1, column), (row + 1, column + 1)]
        return torch.tensor(found)

    def begin(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pixels [P, ..] -> states [P, D]."""
        raise NotImplementedError

    def merged(self, states: Tensor) -> Tensor:
        """[P, D] -> tokens [P / 4, D']."""
        return self.tower.merger(states)

    def encode(self, pixels: Tensor, grid: tuple[int, int], target: int) -> tuple[Tensor, Tensor]:
        """-> tokens [T, D'] and which merge groups they are [T]. FlowCut, equations 1 to 6, with the mean as CLS."""
        states = self.begin(pixels, grid)
        angles = self.tower.rotary_pos_emb(states, self.places(grid))
        turn = sys.modules[type(self.tower).__module__].apply_rotary_pos_emb_vision
        here, past, blocks = torch.arange(len(states)), None, list(self.tower.blocks)
        for number, block in enumerate(blocks):
            cosine, sine = (angle[here] for angle in angles)
            states, q, k, v = self.block(block, states, lambda *both, c=cosine, s=sine: turn(*both, c, s))
            left = len(blocks) - 1 - number
            if len(here) > 4 * target:
                row = self.look(q.mean(dim=1), k, q.shape[-1] ** -0.5)
                alike = self.look(v.mean(dim=1), v, 1.0)
                score = (row / row.sum() + alike / alike.sum()) * v.mean(dim=0).abs().sum(dim=1)
                past = score if past is None else 0.5 * past + 0.5 * score
                if left % 2 == 0:
                    stay = len(here) // 4 - self.drop(row, len(here), 4 * target, left) // 4
                    groups = past.view(-1, 4).mean(dim=1).argsort(descending=True)[:stay].sort().values
                    patches = (4 * groups[:, None] + torch.arange(4)).flatten()
                    states, past, here = states[patches], past[patches], here[patches]
            self.tap(number, states, here)
        return self.merged(states), here[::4] // 4

    def block(self, block: Any, states: Tensor, turn: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """-> the block's output [S, D], and its q, k, v [H, S, d]."""
        attention = block.attn
        parts = attention.qkv(block.norm1(states)).chunk(3, dim=1)
        q, k, v = (heads_of(part, attention.num_heads) for part in parts)
        q, k = (turned.transpose(0, 1) for turned in turn(q.transpose(0, 1), k.transpose(0, 1)))
        weights = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(dim=-1)
        states = states + attention.proj((weights @ v).transpose(0, 1).flatten(1))
        return states + block.mlp(block.norm2(states)), q, k, v

    def look(self, query: Tensor, keys: Tensor, scale: float) -> Tensor:
        """[H, d] and [H, S, d] -> [S]: what a token looks at, mean over heads."""
        return (torch.einsum("hd,hsd->hs", query, keys) * scale).softmax(dim=-1).mean(dim=0)

    def drop(self, row: Tensor, patches: int, target: int, left: int) -> int:
        """Equation 3, rounded to whole groups; at the last selection all that is too many."""
        if left == 0:
            return patches - target
        weights = row / row.sum()
        ratio = float(-(weights * weights.log()).sum()) / math.log(patches)
        wanted = (patches - target) / math.sqrt(left) * (1 - ratio**2)
        return min(round(wanted / 4) * 4, patches - target)

    def tap(self, number: int, states: Tensor, here: Tensor) -> None:
        """After each block."""

    # The prompt and the language model.

    def positions(self, before: int, grid: tuple[int, int], after: int) -> Tensor:
        """M-RoPE's [3, S] of text, the picture's groups row by row, and text."""
        rows, columns = grid[0] // 2, grid[1] // 2
        text = [[place] * 3 for place in range(before)]
        image = [[before, before + row, before + column] for row in range(rows) for column in range(columns)]
        start = before + max(rows, columns)
        return torch.tensor([*text, *image, *([start + place] * 3 for place in range(after))]).T

    def logits(
        self, ids: tuple[list[int], list[int]], pixels: Tensor, grid: tuple[int, int], layer: int
    ) -> tuple[Tensor, Tensor]:
        """-> logits [S, V] and the merge groups whose tokens are left, cut in two stages, again after `layer`."""
        before, after = ids
        tokens, groups = self.encode(pixels, grid, self.target)
        embed = self.inner.get_input_embeddings()
        states = torch.cat([embed(torch.tensor(before)), tokens, embed(torch.tensor(after))])
        whole = self.positions(len(before), grid, len(after))
        every = len(before) + grid[0] * grid[1] // 4
        keep = [*range(len(before)), *(groups + len(before)).tolist(), *range(every, every + len(after))]
        here = whole[:, keep]
        for number, block in enumerate(self.body.layers):
            angles = self.body.rotary_emb(states[None], here[:, None])
            states, q, k, v = self.layer(block, states, angles)
            image = slice(len(before), len(before) + len(groups))
            states = self.add(number, states, image, groups)
            if number == layer:
                stay = self.score(q, k, v, image).argsort(descending=True)[: self.budget].sort().values
                columns = [*range(len(before)), *(stay + len(before)).tolist(), *range(image.stop, len(states))]
                states, here, groups = states[columns], here[:, columns], groups[stay]
        return self.model.lm_head(self.body.norm(states)), groups

    def score(self, q: Tensor, k: Tensor, v: Tensor, image: slice) -> Tensor:
        """The picture's tokens by equation 5, for the last token as the query."""
        row = self.look(q[:, -1], k[:, image], q.shape[-1] ** -0.5)
        alike = self.look(v[:, -1], v[:, image], v.shape[-1] ** -0.5)
        return (row / row.sum() + alike / alike.sum()) * v[:, image].mean(dim=0).abs().sum(dim=1)

    def layer(self, block: Any, states: Tensor, angles: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """-> a decoder layer's output [S, D], and its q, k, v [H, S, d], keys and values repeated for all heads."""
        mixed, *seen = self.attend(block.self_attn, block.input_layernorm(states), angles)
        states = states + mixed
        return states + self.feed(block, block.post_attention_layernorm(states)), *seen

    def attend(self, attention: Any, states: Tensor, angles: Any) -> tuple[Tensor, ...]:
        q, k, v = (self.project(attention, name, states) for name in "qkv")
        turn = sys.modules[type(attention).__module__].apply_rotary_pos_emb
        q, k = (turned[0] for turned in turn(q[None], k[None], *angles))
        k, v = (part.repeat_interleave(len(q) // len(part), dim=0) for part in (k, v))
        future = torch.ones(len(states), len(states)).triu(1).bool()
        weights = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).masked_fill(future, -torch.inf).softmax(dim=-1)
        return attention.o_proj((weights @ v).transpose(0, 1).flatten(1)), q, k, v

    def project(self, attention: Any, name: str, states: Tensor) -> Tensor:
        part = getattr(attention, f"{name}_proj")(states)
        return heads_of(part, part.shape[1] // attention.head_dim)

    def feed(self, block: Any, states: Tensor) -> Tensor:
        return block.mlp(states[None])[0]

    def add(self, number: int, states: Tensor, image: slice, groups: Tensor) -> Tensor:
        """After each decoder layer."""
        return states


class Qwen3VL(Naive):
    """DeepStack, and norms on each head's queries and keys."""

    def begin(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """A learned square of positions, stretched to the grid from corner to corner."""
        side = int(len(self.tower.pos_embed.weight) ** 0.5)
        square = self.tower.pos_embed.weight.view(1, side, side, -1).permute(0, 3, 1, 2)
        stretched = torch.nn.functional.interpolate(square, size=grid, mode="bilinear", align_corners=True)[0]
        rows, columns = self.places(grid).T
        return self.tower.patch_embed(pixels) + stretched[:, rows, columns].T

    def tap(self, number: int, states: Tensor, here: Tensor) -> None:
        layers = list(self.tower.deepstack_visual_indexes)
        if number in layers:
            order = layers.index(number)
            self.taps[order] = self.tower.deepstack_merger_list[order](states), here[::4] // 4

    def add(self, number: int, states: Tensor, image: slice, groups: Tensor) -> Tensor:
        if number not in self.taps:
            return states
        tokens, there = self.taps[number]
        states = states.clone()
        for column, group in enumerate(groups.tolist(), start=image.start):
            states[column] += tokens[there.tolist().index(group)]
        return states

    def project(self, attention: Any, name: str, states: Tensor) -> Tensor:
        part = super().project(attention, name, states)
        return part if name == "v" else getattr(attention, f"{name}_norm")(part)


class FastVInQwen3VL(Qwen3VL):
    """The encoder drops nothing, and the last token's attention decides: softmax over all tokens, mean over heads."""

    def __init__(self, model: Any, budget: int):
        super().__init__(model, budget)
        self.target = 1000

    def score(self, q: Tensor, k: Tensor, v: Tensor, image: slice) -> Tensor:
        return self.look(q[:, -1], k, q.shape[-1] ** -0.5)[image]


class Glm4v(Naive):
    """A square of positions stretched bicubically, a convolution that joins patches, norms around every branch."""

    def begin(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        weight = self.tower.embeddings.position_embedding.weight
        side = int(len(weight) ** 0.5)
        square = weight.view(1, side, side, -1).permute(0, 3, 1, 2)
        rows, columns = self.places(grid).T
        # The middle of a patch, from -1 at one edge of the picture to 1 at the other.
        middles = [2 * (place + 0.5) / size - 1 for place, size in ((columns, grid[1]), (rows, grid[0]))]
        at = torch.stack(middles, dim=-1)[None, :, None]
        found = torch.nn.functional.grid_sample(square, at, "bicubic", padding_mode="border", align_corners=False)
        return self.tower.post_conv_layernorm(self.tower.patch_embed(pixels)) + found[0, :, :, 0].T

    def merged(self, states: Tensor) -> Tensor:
        """Each group as one product with the convolution's weights."""
        groups = self.tower.post_layernorm(states).view(len(states) // 4, 4, -1)
        weight = self.tower.downsample.weight.flatten(2)
        return self.tower.merger(torch.einsum("gpd,odp->go", groups, weight) + self.tower.downsample.bias)

    def layer(self, block: Any, states: Tensor, angles: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if not hasattr(block, "post_mlp_layernorm"):  # with experts
            return super().layer(block, states, angles)
        mixed, *seen = self.attend(block.self_attn, block.input_layernorm(states), angles)
        states = states + block.post_self_attn_layernorm(mixed)
        made = self.feed(block, block.post_attention_layernorm(states))
        return states + block.post_mlp_layernorm(made), *seen


class Qwen35(Qwen3VL):
    """No DeepStack, and one stage: the language model runs as it is."""

    def tap(self, number: int, states: Tensor, here: Tensor) -> None:
        pass

    def logits(
        self, ids: tuple[list[int], list[int]], pixels: Tensor, grid: tuple[int, int], layer: int
    ) -> tuple[Tensor, Tensor]:
        before, after = ids
        tokens, groups = self.encode(pixels, grid, self.budget)
        embed, every = self.inner.get_input_embeddings(), len(before) + grid[0] * grid[1] // 4
        states = torch.cat([embed(torch.tensor(before)), tokens, embed(torch.tensor(after))])
        keep = [*range(len(before)), *(groups + len(before)).tolist(), *range(every, every + len(after))]
        places = self.positions(len(before), grid, len(after))[:, keep]
        hidden = self.body(inputs_embeds=states[None], position_ids=places[:, None], use_cache=False)[0]
        return self.model.lm_head(hidden[0]), groups
