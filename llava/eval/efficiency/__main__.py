"""Measures the cost of an answer by stages, with and without pruning: python -m llava.eval.efficiency

    python -m llava.eval.efficiency --model-path playground/embedded --pruner flowcut:budget=64 \\
        --pruner visionzip:budget=64 --batch 1 8 --attention sdpa eager --out efficiency.json

A row is one variant: `none` or a pruner, a batch size, an attention implementation. All rows answer the same real
questions with the same loaded model and alternate, batch by batch, so that other load on the machine affects all
alike; questions that do not fill a last batch are left out. Each row starts with a warm-up, which is not counted.

Milliseconds are a question's share of its batch. Stages: encode (vision tower), projector, prefill (the language
model's first pass), decode (everything after the first logits); ttft is from pixels on the device to the first logits,
total to the end of the answer. wall is the whole loop, from the picture's file to the answer's text, with the model
loaded; pictures are read in the main process, so wall minus reading is the time of a loop with enough reading workers.
On a GPU, stages are timed by events in its stream, which do not delay the work.

Speed-ups are against `none` of the same batch size and attention: the ratio of medians, and quartiles of the ratios
over pairs of trials about the same questions. Peak memory is that of activations, in a separate run over the first
batch, as in flowcut.bench. GFLOPs are by formula (flowcut.cost) from the measured tokens, up to the first logits.

The last line printed is the report as JSON; --out writes it with every trial's times (`raw`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import Parser, parse_first, program
from llava.eval.files import write_atomic
from llava.eval.models.reply import DTYPES
from llava.eval.questions import Question, questions_of

ATTENTION = ("sdpa", "eager", "flash_attention_2")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--model-path", default="playground/embedded", help="a LLaVA checkpoint (default: %(default)s)")
    parser.add_argument("--model-base", help="base model of a LoRA adapter or a projector")
    parser.add_argument("--conv-mode", help="prompt template (default: the checkpoint's own, else vicuna_v1)")
    parser.add_argument("--question-file", type=Path, help="JSON lines (default: the embedded benchmark)")
    parser.add_argument("--image-folder", type=Path, help="folder that the questions' image paths are relative to")
    parser.add_argument(
        "--pruner", action="append", help="compared with none; may be repeated (default: flowcut:budget=64)"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="questions at a time (default: 1)")
    parser.add_argument("--attention", nargs="+", choices=ATTENTION, default=["sdpa"], help="(default: sdpa)")
    parser.add_argument(
        "--limit",
        also=["--questions"],
        dest="questions",
        type=int,
        default=64,
        help="number of questions, spread evenly over the file (default: 64)",
    )
    parser.add_argument("--warm-up", type=int, default=20, help="warm-up questions per row (default: 20)")
    parser.add_argument("--max-new-tokens", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--power", action="store_true", help="also measure the GPU's power, in separate loops")
    parser.add_argument(
        "--price-per-hour", type=float, help="of the machine, in any currency, for a price of 1000 questions"
    )
    parser.add_argument("--device", help="default: CUDA where there is one")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float16, on a CPU float32")
    parser.add_argument("--out", type=Path, help="JSON file for the report with every trial's times")
    return parser


parse_first(__name__, build_parser)

import torch
from transformers.utils import is_flash_attn_2_available

from flowcut import parse_pruner
from flowcut.bench.measuring import device_name, keep_freed_memory
from llava.eval.efficiency.answer_costs import ModelSizes
from llava.eval.efficiency.power import check_power
from llava.eval.efficiency.report import Variant, VariantResult, row_of, table
from llava.eval.efficiency.trials import Comparison
from llava.eval.models.llava_checkpoint import load_checkpoint
from llava.eval.provenance import environment, fingerprint


def variants_of(args: argparse.Namespace) -> list[Variant]:
    """The rows. Raises ValueError, one line, for invalid flags."""
    if min(args.batch) < 1:
        raise ValueError(f"--batch {min(args.batch)} is invalid; give whole numbers of at least 1")
    if args.questions < max(args.batch):
        raise ValueError(f"--questions {args.questions} do not fill a batch of {max(args.batch)}; ask at least as many")
    if args.warm_up < 0:
        raise ValueError(f"--warm-up {args.warm_up} is invalid; give a whole number of at least 0")
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {args.max_new_tokens} is invalid; give a whole number of at least 1")
    if args.price_per_hour is not None and not 0 < args.price_per_hour < math.inf:
        raise ValueError(f"--price-per-hour {args.price_per_hour:g} is not a price; give a number above 0")
    if args.out is not None and args.out.is_dir():
        raise ValueError(
            f"--out {args.out} is a folder; give the file to write, such as {args.out / 'efficiency.json'}"
        )
    for pruner in args.pruner:
        parse_pruner(pruner)
    pruners = dict.fromkeys(["none", *args.pruner])
    return [
        Variant(*variant)
        for variant in itertools.product(pruners, dict.fromkeys(args.batch), dict.fromkeys(args.attention))
    ]


def check_attention(attention: Sequence[str], device: torch.device, dtype: torch.dtype) -> None:
    """Raises ValueError, one line, where flash attention cannot run."""
    if "flash_attention_2" not in attention:
        return
    leave = "or leave it out of --attention"
    if device.type != "cuda":
        raise ValueError(
            f"flash_attention_2 needs a CUDA GPU and the package flash-attn; this is a {device.type}; {leave}"
        )
    if not is_flash_attn_2_available():
        raise ValueError(f"flash_attention_2 needs a package: pip install 'llava-flowcut[flash]' (flash-attn); {leave}")
    if dtype == torch.float32:
        raise ValueError(f"flash_attention_2 does not take float32; give --dtype float16 or bfloat16, {leave}")


def check_out(file: Path) -> None:
    """Make the folder of the file to write. Raises ValueError, one line, where that is impossible."""
    if file.is_dir():
        raise ValueError(f"--out {file} is a folder; give the file to write, such as {file / 'efficiency.json'}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {file} cannot be written ({error.strerror}); give another file") from error


def data_of(args: argparse.Namespace) -> tuple[list[Question], Path, str]:
    """-> questions, folder of their pictures, and 16 hex digits over question file and pictures.

    Raises ValueError, one line, for a file that is missing or has bad rows, and for too few questions.
    """
    questions, images, file = questions_of(args.question_file, args.image_folder, args.questions)
    if len(questions) < max(args.batch):
        raise ValueError(f"{file} has {len(questions)} questions, not the {max(args.batch)} of a batch; lower --batch")
    shown = sorted({images / str(name) for question in questions for name in question.images})
    return questions, images, fingerprint([file, *(picture for picture in shown if picture.is_file())])


def report(
    comparison: Comparison, results: dict[Variant, VariantResult], args: argparse.Namespace, command: str
) -> dict[str, Any]:
    checkpoint, sizes = comparison.checkpoint, ModelSizes.of(comparison.checkpoint.model)
    rows = []
    for variant, result in results.items():
        pruner = comparison.answerers[variant.pruner].pruner
        inside = pruner is not None and pruner.merges_before_mlp
        rows.append(row_of(variant, result, results[variant.unpruned], sizes, inside, args.price_per_hour))
    return {
        "model": args.model_path,
        "model_hash": checkpoint.fingerprint,
        "conv_mode": checkpoint.mode,
        "questions": len(comparison.questions),
        "data_hash": args.data_hash,
        "warm_up": args.warm_up,
        "max_new_tokens": args.max_new_tokens,
        "reading": "in line",
        "price_per_hour": args.price_per_hour,
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "device": device_name(comparison.device),
        "device_type": comparison.device.type,
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **environment(comparison.device),
        "rows": rows,
    }


@program
def main(argv: list[str] | None = None) -> None:
    """Prints a table and, as the last line, the report as JSON."""
    args = build_parser().parse_args(argv)
    args.pruner = args.pruner or ["flowcut:budget=64"]
    command = "python -m llava.eval.efficiency " + shlex.join(sys.argv[1:] if argv is None else argv)
    variants = variants_of(args)
    if args.out is not None:
        check_out(args.out)
    questions, images, args.data_hash = data_of(args)
    checkpoint = load_checkpoint(args.model_path, args.model_base, args.conv_mode, args.device, args.dtype, "vicuna_v1")
    device = checkpoint.model.device
    check_attention(args.attention, device, checkpoint.model.dtype)
    if args.power and device.type == "cuda":
        check_power(device)
    elif args.power:
        print(f"power is not measured: a {device.type} does not report it", file=sys.stderr)
    keep_freed_memory()
    comparison = Comparison(checkpoint, questions, images, variants, args.max_new_tokens)
    results = comparison.measure(args.warm_up, args.power and device.type == "cuda")
    found = report(comparison, results, args, command)
    if args.out is not None:
        write_atomic(args.out, json.dumps(found, indent=1) + "\n")
    print(f"{found['questions']} questions, {found['device']}, {found['dtype']}, {found['threads']} threads; median ms")
    print(table(found["rows"]))
    brief = [{key: value for key, value in row.items() if key != "raw"} for row in found["rows"]]
    print(json.dumps({**found, "rows": brief}))


if __name__ == "__main__":
    main()
