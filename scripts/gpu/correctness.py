"""Recorded cases and a slice of the laws on a device; the last line is JSON with one entry for each check.

In float32 the recorded tokens have to be kept exactly. In bfloat16 rounding may change a choice, so the
share of the recorded final tokens that were kept is reported. `--tiny` runs two cases on a CPU.
"""

from __future__ import annotations

import copy
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import Parser, parse_first, program


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--tiny", action="store_true", help="two cases on a CPU")
    return parser


parse_first(__name__, build_parser)

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from flowcut import attach
from flowcut.methods.fastervlm import FasterVLM
from flowcut.methods.flowcut import FlowCut
from flowcut.pruner import Pruner

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"


class Case:
    """A recorded run of published code on a bare CLIP encoder."""

    def __init__(self, name: str, device: torch.device):
        case = json.loads((GOLDEN / "manifest.json").read_text())[name]
        self.name, self.target, self.family = name, case["target"], case["family"]
        self.recorded = load_file(GOLDEN / case["data_file"])
        self.model = CLIPVisionModel(CLIPVisionConfig(**case["config"])).eval().to(device)
        weights = load_file(GOLDEN / case["weights_file"])
        self.model.load_state_dict({key.removeprefix("vision_model."): value.float() for key, value in weights.items()})
        self.pixels = load_file(GOLDEN / case["inputs_file"])["pixel_values"][case["images"]].to(device)

    @property
    def pruner(self) -> Pruner:
        return FlowCut(self.target, batch_coupling="max") if self.family == "clip" else FasterVLM(self.target)

    @property
    def kept(self) -> Tensor:
        return self.recorded["final.keep_abs" if self.family == "clip" else "keep"]

    def run(
        self, pruner: Pruner, pixels: Tensor | None = None, model: CLIPVisionModel | None = None, compile: bool = False
    ) -> list[Tensor]:
        """Which patches stay of each picture, on the host."""
        model, pixels = model or self.model, self.pixels if pixels is None else pixels
        with torch.no_grad(), attach(model, pruner, compile=compile) as handle:
            model(pixels.to(model.dtype))
        assert handle.trace is not None
        return [kept.cpu() for kept in handle.trace.final]


def same_tokens(case: Case, attention: str, dtype: torch.dtype, compile: bool = False) -> dict[str, Any]:
    """The recorded final tokens against those kept now."""
    model = copy.deepcopy(case.model).to(dtype)
    model.set_attn_implementation(attention)
    kept = torch.stack(case.run(case.pruner, model=model, compile=compile))
    share = [torch.isin(mine, theirs).float().mean().item() for mine, theirs in zip(kept, case.kept, strict=True)]
    exact = torch.equal(kept, case.kept)
    return {"passed": exact if dtype == torch.float32 else min(share) > 0.5, "exact": exact, "share": min(share)}


def each_row_as_alone(case: Case) -> dict[str, Any]:
    """A picture keeps in a batch what it keeps by itself, though rows differ in length."""
    pruner = FlowCut(case.target)
    together = case.run(pruner)
    alone = [case.run(pruner, pixels=picture[None])[0] for picture in case.pixels]
    return {"passed": all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))}


def nothing_to_drop(case: Case) -> dict[str, Any]:
    """A budget not below the number of tokens changes no bit."""
    with torch.no_grad():
        plain = case.model(case.pixels).last_hidden_state
        with attach(case.model, FlowCut(10**6)):
            attached = case.model(case.pixels).last_hidden_state
    return {"passed": torch.equal(plain, attached)}


def checks(device: torch.device, tiny: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """Every check by name."""
    manifest = json.loads((GOLDEN / "manifest.json").read_text())
    names = [name for name, case in manifest.items() if case["family"] in ("clip", "fastervlm")]
    names = names[:2] if tiny else names
    attentions = ["sdpa", "eager", *(["flash_attention_2"] if find_spec("flash_attn") and not tiny else [])]
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for name in names:
        case = Case(name, device)
        for attention in attentions:
            for dtype in (torch.float32, torch.bfloat16):
                if "flash" in attention and dtype == torch.float32:
                    continue
                label = f"{name} {attention} {str(dtype).removeprefix('torch.')}"
                found[label] = partial(same_tokens, case, attention, dtype)
        if case.family == "clip":
            found[f"{name} alone"] = partial(each_row_as_alone, case)
            found[f"{name} nothing to drop"] = partial(nothing_to_drop, case)
            if not tiny:
                found[f"{name} compiled"] = partial(same_tokens, case, "sdpa", torch.float32, compile=True)
    return found


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if all checks passed, 1 otherwise."""
    args = build_parser().parse_args(argv)
    device = torch.device("cpu" if args.tiny else "cuda")
    results: dict[str, Any] = {}
    for name, check in checks(device, args.tiny).items():
        try:
            results[name] = check()
        except Exception as error:  # one broken check is a result, and the others are wanted all the same
            traceback.print_exc()
            results[name] = {"passed": False, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    failed = [name for name, result in results.items() if not result["passed"]]
    print(json.dumps({"device": str(device), "torch": torch.__version__, "failed": failed, "checks": results}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
