"""Pre-train the embedded vision tower: a 12-layer CLIPVisionModel that learns captions and patch labels.

The CLS token (last layer, pooled, as in CLIP) predicts the contents of the picture: colour-shape pairs, the letter, the
background (multi-label). The patch tokens of the feature layer (-2, which LLaVA reads) predict the colour, shape,
position and centre of their object. The heads are discarded afterwards; only the tower is kept.

Most steps use 12 x 12-patch windows at random offsets of the 24 x 24 grid (four times cheaper than full pictures), the
last ones full pictures. Resumable: a checkpoint every ``--save-every`` steps, continued when the command is run again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from flowcut.cli.command_line import Parser, parse_first, program
from scripts.embedded.scenes import (
    COLOUR_CLASSES,
    LETTERS,
    PATCH,
    PATTERNS,
    SHAPE_CLASSES,
    SHAPES,
    Scene,
    compose,
    draw,
    label_patches,
)


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the tower, its checkpoint and log.jsonl")
    parser.add_argument("--window-steps", type=int, default=1300)
    parser.add_argument("--full-steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=32, help="windows per step")
    parser.add_argument("--full-batch", type=int, default=10, help="full pictures per step")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--full-lr", type=float, default=4e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=100)
    return parser


parse_first(__name__, build_parser)

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from scripts.embedded.symbols import COVERED_ENOUGH

GRID = 24
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
PAIRS = (COLOUR_CLASSES - 1) * len(SHAPES)
WORDS = PAIRS + len(LETTERS) + len(PATTERNS)


def tower_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=160,
        intermediate_size=640,
        num_hidden_layers=12,
        num_attention_heads=5,
        image_size=GRID * PATCH,
        patch_size=PATCH,
        projection_dim=160,
        hidden_act="quick_gelu",
    )


def sincos_positions(dim: int) -> torch.Tensor:
    """2-D sine-cosine table ``[GRID * GRID, dim]``: an initialisation that is trained further."""
    frequency = 1.0 / 100 ** (torch.arange(dim // 4) / (dim // 4))
    angle = torch.arange(GRID)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], 1)
    rows = axis[:, None].expand(GRID, GRID, -1)
    columns = axis[None].expand(GRID, GRID, -1)
    return torch.cat([columns, rows], -1).reshape(GRID * GRID, dim)


class Pretrainer(nn.Module):
    """The tower with its temporary heads."""

    def __init__(self) -> None:
        super().__init__()
        config = tower_config()
        config._attn_implementation = "eager"  # on a CPU, twice as fast to train as sdpa at these sizes
        self.tower = CLIPVisionModel(config)
        dim = config.hidden_size
        with torch.no_grad():
            self.tower.embeddings.position_embedding.weight[1:] = sincos_positions(dim) * 0.5
        self.words = nn.Linear(dim, WORDS)
        self.colour = nn.Linear(dim, COLOUR_CLASSES)
        self.shape = nn.Linear(dim, SHAPE_CLASSES)
        self.pattern = nn.Linear(dim, len(PATTERNS))
        self.place = nn.Linear(dim, 4)

    def forward(self, pixels_B3HW: torch.Tensor, positions_BP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pooled CLS ``[B, D]`` and feature-layer patch tokens ``[B, P, D]`` of windows at the given grid positions."""
        tower = self.tower
        table = tower.embeddings.position_embedding.weight
        patches = tower.embeddings.patch_embedding(pixels_B3HW).flatten(2).transpose(1, 2)
        cls = (tower.embeddings.class_embedding + table[0]).expand(len(patches), 1, -1)
        hidden = tower.pre_layrnorm(torch.cat([cls, patches + table[positions_BP + 1]], 1))
        for layer in tower.encoder.layers[:-1]:
            hidden = layer(hidden, None)
        last = tower.encoder.layers[-1](hidden, None)
        return tower.post_layernorm(last[:, 0]), hidden[:, 1:]


def words_of(scene: Scene) -> np.ndarray:
    """Multi-hot caption ``[WORDS]``."""
    words = np.zeros(WORDS, np.float32)
    for thing in scene.objects:
        words[(thing.colour_class - 1) * len(SHAPES) + thing.shape_class - 1] = 1
    if scene.letter:
        words[PAIRS + scene.letter.shape_class - 1 - len(SHAPES)] = 1
    words[PAIRS + len(LETTERS) + PATTERNS.index(scene.pattern)] = 1
    return words


def make_batch(rng: np.random.Generator, count: int, side: int) -> dict[str, torch.Tensor]:
    """``count`` fresh pictures of ``side`` x ``side`` patches, each at a random position of the grid."""
    rows = []
    for _ in range(count):
        scene = compose(rng, side * PATCH)
        picture, labels = draw(scene), label_patches(scene, 2 * PATCH)
        top, left = rng.integers(0, GRID - side + 1, 2)
        positions = ((np.arange(side) + top)[:, None] * GRID + np.arange(side) + left).ravel()
        thing = labels.covered >= COVERED_ENOUGH
        own = np.stack([positions % GRID, positions // GRID], 1) / (GRID - 1)
        # the centre is relative to the full picture's corner, like the patch's own position
        centre = (labels.centre * side + np.array([left, top])) / GRID
        place = np.concatenate([own, np.where(thing[:, None], centre, own)], 1).astype(np.float32)
        rows.append(
            {
                "pixels": picture.transpose(2, 0, 1),
                "positions": positions,
                "colour": labels.colour * thing,
                "shape": labels.shape * thing,
                "clean": thing | (labels.covered < 0.02),
                "place": place,
                "pattern": PATTERNS.index(scene.pattern),
                "words": words_of(scene),
            }
        )
    batch = {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}
    batch["pixels"] = (batch["pixels"].float() / 255 - MEAN) / STD
    return batch


def losses(model: Pretrainer, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """The weighted loss, and its parts for the log. Objects and background are averaged separately: objects are few."""
    cls, patches = model(batch["pixels"], batch["positions"])
    cls, patches = cls.float(), patches.float()
    thing, background = batch["shape"] > 0, (batch["shape"] == 0) & batch["clean"]
    colour, shape = model.colour(patches), model.shape(patches)

    def balanced(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits[thing], target[thing]) + 0.5 * F.cross_entropy(
            logits[background], target[background]
        )

    place = (model.place(patches) - batch["place"]).square()
    pattern = model.pattern(patches)[background]
    pattern_target = batch["pattern"][:, None].expand_as(background)[background]
    words = F.binary_cross_entropy_with_logits(model.words(cls), batch["words"])
    total = (
        balanced(colour, batch["colour"])
        + 2 * balanced(shape, batch["shape"])
        + 0.5 * F.cross_entropy(pattern, pattern_target)
        + 8 * words
        + 4 * (place.mean() + place[thing].mean())
    )
    with torch.no_grad():
        said = model.words(cls)[:, :PAIRS] > 0
        true = batch["words"][:, :PAIRS] > 0
        figures = {
            "loss": total.item(),
            "colour": (colour[thing].argmax(-1) == batch["colour"][thing]).float().mean().item(),
            "shape": (shape[thing].argmax(-1) == batch["shape"][thing]).float().mean().item(),
            "pattern": (pattern.argmax(-1) == pattern_target).float().mean().item(),
            "place": place[thing].mean().sqrt().item(),
            "pair_recall": ((said & true).sum() / true.sum()).item(),
            "words": words.item(),
        }
    return total, figures


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Warm-up, constant, linear decay over the last 35 % of the window steps; the full-picture steps decay to zero."""
    if step >= args.window_steps:
        return args.full_lr * (1 - (step - args.window_steps) / max(1, args.full_steps))
    decay_from = 0.65 * args.window_steps
    slope = 1 - 0.85 * max(0.0, (step - decay_from) / (args.window_steps - decay_from))
    return args.lr * min(1.0, (step + 1) / 40) * slope


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(args.seed)
    model = Pretrainer()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    first, checkpoint = 0, args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    steps, began = args.window_steps + args.full_steps, time.time()
    for step in range(first, steps):
        full = step >= args.window_steps
        rng = np.random.default_rng(
            (args.seed, step)
        )  # a function of the step, so that a resumed run sees the same data
        batch = make_batch(rng, args.full_batch if full else args.batch, GRID if full else GRID // 2)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        with torch.autocast("cpu", torch.bfloat16):
            total, figures = losses(model, batch)
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0 or step == steps - 1:
            rate = (time.time() - began) / (step - first + 1)
            row = {
                "step": step,
                "full": full,
                **{k: round(v, 4) for k, v in figures.items()},
                "s_per_step": round(rate, 3),
            }
            print(json.dumps(row), f"ETA {rate * (steps - step) / 60:.0f} min", flush=True)
            with (args.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
        if (step + 1) % args.save_every == 0 or step == steps - 1:
            partial = checkpoint.with_suffix(".part")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, partial)
            partial.replace(checkpoint)
    model.tower.save_pretrained(args.out / "tower")
    print(json.dumps({"tower": str(args.out / "tower"), "steps": steps}))


if __name__ == "__main__":
    main()
