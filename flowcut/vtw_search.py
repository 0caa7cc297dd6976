"""Find the layer from which on a model can do without visual tokens: the search of VTW (see `flowcut.VTW`).

For each candidate layer K, all visual tokens are dropped before it, and the distribution of the next token is compared
with that of the unchanged model: KL(unchanged || dropped), mean over prompts. The first K with at most the threshold is
chosen. The paper uses about 20 prompts, candidates from layer 5 on, and a threshold of 0.003
for LLaVA-1.5-7B (0.0005 for 13B, 0.0001 for LLaVA-1.6-7B).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flowcut.cli.command_line import Parser, parse_first, program

FIRST = 5
THRESHOLD = 0.003


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--model-path", required=True, help="LLaVA checkpoint")
    parser.add_argument("--question-file", required=True, help="JSON lines with question_id, image, text")
    parser.add_argument("--image-folder", default="", help="folder that the questions' image paths are relative to")
    parser.add_argument(
        "--limit",
        also=["--samples"],
        type=int,
        default=20,
        help="number of questions, from the beginning of the file (default: 20)",
    )
    parser.add_argument("--first", type=int, default=FIRST, help="first layer to try (default: %(default)s)")
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, help="largest mean KL in nats (default: %(default)s)"
    )
    parser.add_argument("--conv-mode", help="conversation template (default: the checkpoint's)")
    return parser


parse_first(__name__, build_parser)

import torch
from torch import Tensor, nn

from flowcut.anatomy.find import anatomy_of
from flowcut.attach import attach
from flowcut.checkpoints import questions_as_calls
from flowcut.methods.vtw import VTW


@dataclass(frozen=True)
class Search:
    """What was found.

    Attributes:
        layer: the first layer whose divergence does not exceed the threshold; None if there is none.
        divergence: {layer: mean KL in nats} of the layers that were tried; the last one is `layer`, if one was found.
        prompts: how many were asked.
    """

    layer: int | None
    divergence: dict[int, float]
    prompts: int


def divergence(whole: Tensor, withdrawn: Tensor) -> float:
    """KL(whole || withdrawn) in nats, of two [V] vectors of logits."""
    one, other = (logits.double().log_softmax(dim=-1) for logits in (whole, withdrawn))
    return float((one.exp() * (one - other)).sum())


@torch.no_grad()
def search(
    model: nn.Module, prompts: Sequence[Mapping[str, Any]], threshold: float = THRESHOLD, first: int = FIRST
) -> Search:
    """Try layers from `first` on.

    Args:
        model: of a family with a language model, without a pruner.
        prompts: the arguments of one call of the model each: a batch of one prompt with at least one image, not padded.

    Raises:
        ValueError: no prompts, no decoder, a layer or threshold that cannot be, or a prompt without an image.
    """
    layers = anatomy_of(model).decoder_layers
    if layers is None:
        raise ValueError("VTW drops tokens inside a language model, and this is a vision encoder alone")
    if not prompts:
        raise ValueError("no prompts to compare on; give some, the paper takes about 20")
    if not 1 <= first < layers:
        raise ValueError(f"first={first} is not a layer from 1 to {layers - 1} of this decoder")
    if threshold < 0:
        raise ValueError(f"threshold={threshold} is not a divergence >= 0; the paper's is {THRESHOLD}")
    whole = [_next_token(model, prompt) for prompt in prompts]
    tried: dict[int, float] = {}
    for layer in range(first, layers):
        with attach(model, VTW(budget=1, layer=layer)) as handle:
            found = []
            for prompt, logits in zip(prompts, whole, strict=True):
                handle.trace = None
                found.append(divergence(logits, _next_token(model, prompt)))
                if handle.trace is None:
                    raise ValueError("a prompt has no image, so there is nothing to drop; leave it out")
        tried[layer] = sum(found) / len(found)
        if tried[layer] <= threshold:
            return Search(layer, tried, len(prompts))
    return Search(None, tried, len(prompts))


def _next_token(model: nn.Module, prompt: Mapping[str, Any]) -> Tensor:
    return model(**prompt).logits[0, -1]


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Search for a LLaVA checkpoint on a question file; the last line printed is one JSON document."""
    args = build_parser().parse_args(argv)
    if args.limit < 1:
        raise ValueError(f"--limit {args.limit} is not a number of questions >= 1")
    model, prompts = questions_as_calls(
        args.model_path, args.question_file, args.image_folder, args.limit, args.conv_mode
    )
    found = search(model, prompts, args.threshold, args.first)
    for layer, value in found.divergence.items():
        print(f"layer {layer}: {value:.6f}")
    print(json.dumps({"threshold": args.threshold, **asdict(found)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
