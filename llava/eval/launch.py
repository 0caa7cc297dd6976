"""A benchmark from question file to score: python -m llava.eval.launch gqa --model-path MODEL --pruner none

Checks the benchmark's files and makes its question file (`llava.eval.prepare`), answers it in contiguous chunks, one
process for each device of this and of other nodes, joins the chunks, and scores them (`llava.eval.score`). The same
command continues an interrupted run. Answers are in <benchmark>/answers/<split>/<model>/<pruner>/, so that no run
overwrites another.

Flags that are not listed here are those of the answering program (`--top_p`, `--dtype`, ...).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.eval import score
from llava.eval.answering import evaluate as evaluation
from llava.eval.answering.chunks import Share, share_of
from llava.eval.answering.evaluate import EvaluationSpec, evaluate
from llava.eval.answering.settings import AnswerSettings
from llava.eval.benchmarks.registry import DATA, MODULES
from llava.eval.judge import settings as judge_settings

# Number of nodes and this node's index, as set by SLURM and users of torchrun.
_NODES = ("SLURM_NNODES", "NNODES")
_NODE = ("SLURM_NODEID", "NODE_RANK")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=MODULES)
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder of all benchmarks (default: {DATA})")
    parser.add_argument("--split", help="default: the one of the published number; a wrong name lists all")
    parser.add_argument("--model-path", required=True, help="checkpoint folder, or Hub name")
    parser.add_argument("--pruner", help="flowcut:budget=64, ..., or none (default: the checkpoint's own, if any)")
    parser.add_argument("--limit", type=int, help="number of questions, spread evenly (default: all)")
    parser.add_argument("--devices", help="0,1 or cpu (default: CUDA_VISIBLE_DEVICES, else all GPUs, else the CPU)")
    parser.add_argument("--nodes", type=int, default=_number(_NODES, 1), help="machines that share the work")
    parser.add_argument("--node", type=int, default=_number(_NODE, 0), help="index of this machine, from 0")
    parser.add_argument("--temperature", default="0", help="0 is greedy, as for published numbers")
    parser.add_argument("--skip-bad", action="store_true", help="score even if some questions could not be answered")
    judge_settings.add_arguments(parser)
    return parser


def _number(names: Sequence[str], default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), default)


def spec_of(args: argparse.Namespace, answering: Sequence[str] = ()) -> EvaluationSpec:
    """The evaluation that the flags specify. args: of `build_parser`. answering: other flags, for the answering
    program.

    Raises ValueError, one line, for unknown names and invalid values.
    """
    return EvaluationSpec(
        benchmark=args.benchmark,
        model=args.model_path,
        pruner=args.pruner,
        split=args.split,
        limit=args.limit,
        data=args.data,
        answering=AnswerSettings.parse(["--temperature", args.temperature, *answering]),
        devices=args.devices,
        nodes=args.nodes,
        node=args.node,
        skip_bad=args.skip_bad,
        judge=judge_settings.settings_of(args),
    )


def share(args: argparse.Namespace) -> Share:
    """This node's part, from the flags. Raises ValueError for invalid devices or nodes."""
    return share_of(args.devices, args.nodes, args.node)


def answers_folder(folder: Path, split: str, args: argparse.Namespace) -> Path:
    """The folder of the answers to a question file of `folder`, from the flags."""
    return evaluation.answers_folder(folder, split, args.model_path, args.pruner, args.limit)


def main(argv: list[str] | None = None) -> None:
    args, answering = build_parser().parse_known_args(argv)
    try:
        scored = evaluate(spec_of(args, answering), progress=True)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if scored is None:
        print(json.dumps({"benchmark": args.benchmark, "waiting_for": "other nodes"}))
        return
    score.report(scored)


if __name__ == "__main__":
    main()
