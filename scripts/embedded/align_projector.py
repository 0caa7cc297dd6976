"""Initialise the projector: train it to map each patch feature to the language model's vector for this patch.

A regression (mean squared error) on fresh pictures, with the tower frozen. LLaVA's first stage then starts from the
result, ``mm_projector.bin`` (``--pretrain_mm_mlp_adapter``).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from flowcut.cli.command_line import Parser, parse_first, program
from flowcut.cli.progress import progress_bar
from scripts.embedded.scenes import compose, draw, label_patches


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--tower", type=Path, required=True, help="folder of the pre-trained CLIPVisionModel")
    parser.add_argument("--facts", type=Path, required=True, help="embed_facts.pt of the language pre-training")
    parser.add_argument("--out", type=Path, required=True, help="file to write: mm_projector.bin")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=2048, help="patches per step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=4)
    return parser


parse_first(__name__, build_parser)

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPVisionModel

from scripts.embedded.pretrain_vision import MEAN, STD
from scripts.embedded.symbols import facts_of


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)

    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    tower = CLIPVisionModel.from_pretrained(args.tower, dtype=torch.float32).eval()
    embed_facts = torch.load(args.facts, weights_only=True)
    features, targets, named = [], [], []
    with torch.inference_mode():
        for _ in progress_bar(range(args.scenes), desc="features", unit="scene"):
            scene = compose(rng)
            pixels = (torch.from_numpy(draw(scene)).permute(2, 0, 1)[None].float() / 255 - MEAN) / STD
            features.append(tower(pixels, output_hidden_states=True).hidden_states[-2][0, 1:])
            facts = facts_of(label_patches(scene), scene.pattern)
            targets.append(facts @ embed_facts.T)
            named.append(facts[:, 0] < 1)
    x, y, thing = torch.cat(features).clone(), torch.cat(targets).clone(), torch.cat(named)
    # objects are one patch in eight; they are sampled as often as the background
    weights = torch.where(thing, 0.5 / thing.sum(), 0.5 / (~thing).sum()).double()

    width = y.shape[1]
    projector = nn.Sequential(nn.Linear(x.shape[1], width), nn.GELU(), nn.Linear(width, width))
    optimizer = torch.optim.AdamW(projector.parameters(), lr=args.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    for _ in progress_bar(range(args.steps), desc="aligning", unit="step"):
        chosen = torch.multinomial(weights, args.batch, replacement=True)
        loss = F.mse_loss(projector(x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({f"model.mm_projector.{key}": value for key, value in projector.state_dict().items()}, args.out)
    explained = 1 - loss.item() / y[chosen].var(0).mean().item()
    print(json.dumps({"projector": str(args.out), "mse": round(loss.item(), 5), "explained": round(explained, 4)}))


if __name__ == "__main__":
    main()
