"""Check training data before training: `python -m llava.train.check_data --data_path X ...`.

Every sample is checked as in training, and every picture is decoded. With a tokenizer
(`--model_name_or_path`) lengths are counted in tokens, and one sample is printed in the model's format.

Exit status: 0, training would accept every sample; 1, it would stop at some (--skip_bad_samples True replaces them); 2,
the flags or the file are invalid; 130, interrupted before such a sample was found. The last line of stdout is
one JSON document, which --json writes to a file too.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import Parser, parse_first, print_result, program
from flowcut.cli.progress import progress_bar
from llava.model.fields import GRIDS as PUBLISHED_GRIDS

MERGES = ("flat", "spatial", "spatial_unpad")


def build_parser() -> Parser:
    made = Parser(__doc__)
    add = made.add_argument
    add("--data_path", required=True, help="JSON list of samples in LLaVA's format")
    add("--image_folder", help="folder that the samples' image paths are relative to (default: the working folder)")
    add("--model_name_or_path", help="folder or Hub name of the tokenizer; without one, no lengths in tokens")
    add("--cache_dir", help="where downloaded files are kept")
    add("--version", default="v1", help="conversation template of the run (default: %(default)s)")
    add("--model_max_length", type=int, default=2048, help="maximal number of tokens of the run (default: %(default)s)")
    add("--image_tokens", type=int, default=576, help="visual tokens of an image or tile (default: %(default)s)")
    add("--pruner", default="none", help="the run's pruner, such as flowcut:budget=192 (default: %(default)s)")
    ratios = ("square", "pad", "anyres")
    add(
        "--image_aspect_ratio", default="pad", choices=ratios, help="only anyres changes lengths (default: %(default)s)"
    )
    add("--image_grid_pinpoints", default=PUBLISHED_GRIDS, help="with anyres: canvas sizes (default: %(default)s)")
    add("--mm_patch_merge_type", default="spatial_unpad", choices=MERGES, help="with anyres")
    add("--tile_size", type=int, default=336, help="with anyres: the vision tower's pixels (default: %(default)s)")
    add("--mm_use_im_start_end", action="store_true", help="the run wraps images in <im_start> ... <im_end>")
    add("--workers", type=int, default=os.cpu_count() or 1, help="additional processes (default: %(default)s)")
    add("--limit", type=int, help="check only this number of samples, from the beginning")
    add("--examples", type=int, default=3, help="examples shown of each kind of problem (default: %(default)s)")
    add("--json", type=Path, help="also write the JSON document to this file")
    return made


parse_first(__name__, build_parser)

import numpy as np
from torch.utils.data import DataLoader

from flowcut import parse_pruner
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import conv_templates
from llava.model.builder import load_tokenizer
from llava.train.anyres import TileCount, check_grids, parse_grids, patches_left
from llava.train.checker import HARMLESS, SAME_ID, Checked, Checker, Problem, Rules
from llava.train.samples import Encoded, read_samples

CHUNK = 16  # samples that a worker returns at once


@dataclass
class Tally:
    """The results so far, without the samples themselves: counts, lengths, and the first examples of each kind."""

    examples: int
    checked: int = 0
    unusable: int = 0
    images: Counter = field(default_factory=Counter)
    kinds: Counter = field(default_factory=Counter)
    shown: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    lengths: dict[str, list[int]] = field(default_factory=lambda: {"words": [], "tokens": [], "learned": []})
    ids: set[str] = field(default_factory=set)
    first_usable: int | None = None

    def add(self, checked: Checked, sample: dict[str, Any]) -> None:
        name = sample.get("id")
        problems = list(checked.problems)
        if name is not None:
            if str(name) in self.ids:
                problems.append(Problem(SAME_ID, f"id {name!r}"))
            self.ids.add(str(name))
        self.checked += 1
        self.images[checked.images] += 1
        self.unusable += not checked.usable
        if checked.usable and self.first_usable is None:
            self.first_usable = checked.index
        for kind in {problem.kind: None for problem in problems}:
            self.kinds[kind] += 1
            shown = self.shown.setdefault(kind, [])
            if len(shown) < self.examples:
                message = next(problem.message for problem in problems if problem.kind == kind)
                shown.append({"index": checked.index, "id": name, "message": message})
        for length, value in zip(self.lengths, (checked.words, checked.tokens, checked.learned), strict=True):
            if value is not None:
                self.lengths[length].append(value)

    def report(self) -> dict[str, Any]:
        """The fields of the JSON document; the most severe kinds of problem first."""
        order = sorted(self.kinds, key=lambda kind: (kind in HARMLESS, -self.kinds[kind]))
        return {
            "checked": self.checked,
            "unusable": self.unusable,
            "problems": [
                {
                    "kind": kind,
                    "stops_training": kind not in HARMLESS,
                    "samples": self.kinds[kind],
                    "examples": self.shown[kind],
                }
                for kind in order
            ],
            "text_only": self.images[0],
            "one_image": self.images[1],
            "several_images": sum(count for images, count in self.images.items() if images > 1),
            "images": sum(images * count for images, count in self.images.items()),
            "lengths": {name: statistics(values) for name, values in self.lengths.items() if values},
        }


def statistics(values: list[int]) -> dict[str, float]:
    """Total, mean, extremes and quantiles of a list of lengths."""
    quantiles = {f"p{share}": float(np.percentile(values, share)) for share in (50, 90, 99)}
    ends = {"min": min(values), "max": max(values), "total": sum(values)}
    return {"mean": round(sum(values) / len(values), 2), **quantiles, **ends}


def check(checker: Checker, workers: int, tally: Tally, collect: Callable[[Iterable], Iterable]) -> bool:
    """Check every sample into `tally`; returns whether it was interrupted (Ctrl-C), the tally then being partial.

    collect: wraps the chunks of checked samples, for instance in a progress bar.
    """
    loader = DataLoader(checker, batch_size=CHUNK, num_workers=workers, collate_fn=list)
    try:
        for chunk in collect(loader):
            for checked in chunk:
                tally.add(checked, checker.samples[checked.index])
    except KeyboardInterrupt:
        return True
    return False


def preview(encoded: Encoded, tokenizer: Any) -> str:
    """The sample's text in runs, each after `read` or `learn`; an image is written as its placeholder."""

    def said(ids: list[int]) -> str:
        pieces = groupby(ids, key=lambda token: token == IMAGE_TOKEN_INDEX)
        return "".join(
            DEFAULT_IMAGE_TOKEN * len(list(run)) if is_image else tokenizer.decode(list(run))
            for is_image, run in pieces
        )

    pairs = zip(encoded.input_ids.tolist(), (encoded.labels != IGNORE_INDEX).tolist(), strict=True)
    runs = groupby(pairs, key=lambda pair: pair[1])
    lines = [("learn" if learned else "read ", said([token for token, _ in run])) for learned, run in runs]
    return "\n".join(f"  {what} {text!r}" for what, text in lines)


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    partly = " (interrupted)" if report["interrupted"] else ""
    lines = [f"{report['checked']} of {report['samples']} samples checked{partly}, {report['unusable']} unusable"]
    lines += [", ".join(f"{report[name]} {name.replace('_', ' ')}" for name in ("text_only", "one_image"))]
    lines[-1] += f", {report['several_images']} with several images; {report['images']} images in all"
    for name, numbers in report["lengths"].items():
        lines.append(f"{name:8} " + "  ".join(f"{key} {value:g}" for key, value in numbers.items()))
    for problem in report["problems"]:
        effect = "stops training" if problem["stops_training"] else "harmless to the run"
        lines += ["", f"{problem['kind']}: {problem['samples']} sample(s), {effect}"]
        lines += [f"  sample {e['index']} (id {e['id']!r}): {e['message']}" for e in problem["examples"]]
    return "\n".join(lines)


def rules_of(args: argparse.Namespace) -> Rules:
    """The requirements on samples, from the flags. Raises ValueError, one line."""
    if args.version not in conv_templates:
        raise ValueError(f"--version {args.version} is not a template; use one of {', '.join(sorted(conv_templates))}")
    if args.image_folder is not None and not Path(args.image_folder).is_dir():
        raise ValueError(
            f"--image_folder {args.image_folder}: no such folder; give the one that image paths start from"
        )
    pruner, image_tokens, tile_count = parse_pruner(args.pruner), args.image_tokens, None
    if args.image_aspect_ratio == "anyres":
        grids = parse_grids(args.image_grid_pinpoints)
        check_grids(grids, args.tile_size)
        tile_count = TileCount(args.tile_size, image_tokens, tuple(grids), args.mm_patch_merge_type, pruner)
    elif pruner is not None:
        (image_tokens,) = patches_left(pruner, image_tokens, tiles=1)
    return Rules(
        conv_templates[args.version],
        args.image_folder,
        args.model_max_length,
        image_tokens,
        tile_count,
        args.mm_use_im_start_end,
    )


def tokenizer_of(args: argparse.Namespace) -> Any:
    """The tokenizer that lengths are counted with, None without one. Raises ValueError, one line."""
    if args.model_name_or_path is None:
        return None
    tokenizer = load_tokenizer(args.model_name_or_path, args.cache_dir)
    if args.mm_use_im_start_end:
        tokenizer.add_tokens([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN], special_tokens=True)
    return tokenizer


@program
def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    args = build_parser().parse_args(argv)
    rules, tokenizer = rules_of(args), tokenizer_of(args)
    samples = read_samples(args.data_path)
    checker = Checker(samples[: args.limit], rules, tokenizer)
    tally = Tally(args.examples)
    with progress_bar(total=len(checker), unit="sample", desc="checking") as progress:

        def advance(chunks: Iterable) -> Iterable:
            for chunk in chunks:
                yield chunk
                progress.update(len(chunk))

        interrupted = check(checker, args.workers, tally, advance)
    head = {"data_path": args.data_path, "samples": len(checker), "interrupted": interrupted}
    report = {**head, **tally.report(), "version": args.version, "model_max_length": args.model_max_length}
    print(table(report))
    if tokenizer is not None and tally.first_usable is not None:
        encoded = checker.encode(tally.first_usable)
        print(f"\nsample {tally.first_usable} in the format of the model, divided into input and training targets:")
        print(preview(encoded, tokenizer))
    if args.json is not None:
        args.json.write_text(json.dumps(report, ensure_ascii=False) + "\n", "utf-8")
    print()
    print_result(report)
    return 1 if report["unusable"] else 130 if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
