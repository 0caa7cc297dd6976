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

from flowcut.cli.command_line import Parser, parse_first, program
from llava.eval import score
from llava.eval.answering.settings import AnswerSettings
from llava.eval.benchmarks.registry import DATA, MODULES
from llava.eval.judge import settings as judge_settings

# Number of nodes and this node's index, as set by SLURM and users of torchrun.
_NODES = ("SLURM_NNODES", "NNODES")
_NODE = ("SLURM_NODEID", "NODE_RANK")


def _number(names: Sequence[str], default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), default)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("benchmark", choices=MODULES)
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder of all benchmarks (default: {DATA})")
    parser.add_argument("--split", help="default: the one of the published number; a wrong name lists all")
    parser.add_argument("--model-path", required=True, help="checkpoint folder, or Hub name")
    parser.add_argument("--pruner", help="flowcut:budget=64, ..., or none (default: the checkpoint's own, if any)")
    parser.add_argument("--limit", type=int, help="number of questions, spread evenly (default: all)")
    parser.add_argument("--devices", help="0,1 or cpu (default: CUDA_VISIBLE_DEVICES, else all GPUs, else the CPU)")
    parser.add_argument("--nodes", type=int, default=_number(_NODES, 1), help="machines that share the work")
    parser.add_argument("--node", type=int, default=_number(_NODE, 0), help="index of this machine, from 0")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy, as for published numbers")
    parser.add_argument("--skip-bad", action="store_true", help="score even if some questions could not be answered")
    parser.add_argument("--dry-run", action="store_true", help="run nothing; list what is missing, with its source")
    judge_settings.add_arguments(parser)
    return parser


parse_first(__name__, build_parser, others=True)

from llava.eval.answering.evaluate import EvaluationSpec, evaluate
from llava.eval.dry_run import report_missing
from llava.eval.prepare import hours_of


def spec_of(arguments: Sequence[str] | None = None, exit_on_error: bool = False) -> EvaluationSpec:
    """What a command line of this program asks for. No file is read, and no model loaded.

    arguments: None for this process's own. exit_on_error: end the process as argparse does when a flag is wrong.

    Raises ValueError, one line, for wrong flags, names that do not exist and values that cannot be.
    """
    parser = build_parser()
    parser.exit_on_error = exit_on_error
    try:
        args, answering = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    return EvaluationSpec(
        benchmark=args.benchmark,
        model=args.model_path,
        pruner=args.pruner,
        split=args.split,
        limit=args.limit,
        data=args.data,
        answering=AnswerSettings.parse(answering, args.temperature),
        devices=args.devices,
        nodes=args.nodes,
        node=args.node,
        skip_bad=args.skip_bad,
        judge=judge_settings.settings_of(args),
    )


def dry_run(spec: EvaluationSpec) -> list[str]:
    """Print what the evaluation lacks, where to get it, and about how long it takes; returns what has missing files."""
    missing, sizes, questions = report_missing([spec])
    print(hours_of(sum(questions.values()), spec.model))
    print(json.dumps({"benchmark": spec.benchmark, "model": spec.model, "missing": missing, "sizes": sizes}))
    return missing


@program
def main(argv: list[str] | None = None) -> None:
    spec = spec_of(argv, exit_on_error=True)
    if build_parser().parse_known_args(argv)[0].dry_run:
        sys.exit(1 if dry_run(spec) else 0)
    scored = evaluate(spec, progress=True)
    if scored is None:
        print(json.dumps({"benchmark": spec.benchmark, "waiting_for": "other nodes"}))
        return
    score.report(scored)


if __name__ == "__main__":
    main()
