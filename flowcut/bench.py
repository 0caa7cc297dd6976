"""What pruning saves: `python -m flowcut.bench encode|prefill|generate --geometry llava-1.5-7b ...`.

Models have the published sizes and random weights; nothing is downloaded. Three runs are timed in turn, round by round,
so that drift of the machine hits all alike:

- vanilla: the model as it is;
- pruned: with the pruner attached;
- unscored: with a pruner that leaves as many tokens of every row in every layer as the pruned run left, but chooses
  them by nothing. Pruned over unscored is what scoring costs.

`encode` runs the vision encoder: a bare CLIPVisionModel without hidden states for LLaVA-1.5, elsewhere the model's own
method of encoding, with projector (and the hidden states that transformers keeps there). `prefill` runs the language
model over text and one image or video per sample, encoded beforehand. `generate` runs everything.

Not as published: `--layers-slice` decoder layers, and a vocabulary of 1000, because embedding and head take memory but
no part in the formulas of FLOPs. LLaVA-NeXT gets images of 672 x 672 (five tiles), Video-LLaVA 8 frames, Qwen2-VL
images of 672 x 672 (2304 patches, 576 tokens).

The weights are random but attend as sharply as trained ones (`flowcut.synthetic`); `prefill` alone leaves this out.

glibc gives tensors above 32 MB back to the system when they are freed, and every new one costs its page faults. So it
is told here to keep what it has, for all runs alike (docs/LOG.md, 2026-11-24).

Peak memory is that of activations (output and KV cache included) in a run of its own that is not timed. On a GPU it is
the allocator's; on a CPU the largest sum of living storages that operators returned, without their inner workspace.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import transformers
from torch import Tensor
from tqdm import tqdm
from transformers.generation.streamers import BaseStreamer
from transformers.initialization import no_init_weights

from flowcut.attach import Handle, attach
from flowcut.cost import decode_flops, encoder_flops, merging_encoder_flops, prefill_flops, projector_flops
from flowcut.memory import peak_memory_mb
from flowcut.pruner import Cut, LanguageView, Pruner, View
from flowcut.registry import parse_pruner
from flowcut.synthetic import GEOMETRIES, PLACEHOLDER, VOCABULARY, draw_weights, media, sharpen
from flowcut.trace import StageTrace, Trace

COMMANDS = {
    "encode": "the vision encoder",
    "prefill": "the language model over a prompt",
    "generate": "encoder, prompt and new tokens",
}
RUNS = "vanilla", "pruned", "unscored"


class Bench:
    """A model, its inputs, and the one call that a command times.

    Attributes:
        model: what pruners are attached to.
        bare: whether it is an encoder alone.
        placeholders: visual tokens of a sample in the unpruned model.
        features: for each run of `prefill`, the encoder's output.
        first: for each `generate` so far, seconds to the first new token.
    """

    def __init__(self, args: argparse.Namespace, pruner: Pruner):
        self.args, self.geometry, self.device = args, GEOMETRIES[args.geometry], torch.device(args.device)
        self.bare = args.command == "encode" and self.geometry.family == "Llava"
        self.modality = "video" if self.geometry.family == "VideoLlava" else "image"
        self.placeholders = 0
        self.prompt: dict[str, Tensor] = {}
        self.features: dict[str, Any] = {}
        self.first: list[float] = []
        self.model = self.build()
        with attach(self.model, pruner):
            pass  # refuses before the long work begins what this model cannot do
        draw_weights(self.model, args.seed)
        if args.command != "prefill":
            others = self.media(2 if self.geometry.family == "Llava" else 1, args.seed + 1)
            sharpen(self.model, partial(self.encode, others))
        self.shown = self.media(args.batch, args.seed)

    def build(self) -> Any:
        """The model, its weights still to be drawn."""
        text = {"vocab_size": VOCABULARY, "num_hidden_layers": self.args.layers_slice}
        config = getattr(transformers, f"{self.geometry.family}Config")(
            vision_config=self.geometry.vision,
            text_config={**self.geometry.text, **text, "bos_token_id": 1, "eos_token_id": None},
            image_token_id=PLACEHOLDER,
            video_token_id=PLACEHOLDER,
            image_grid_pinpoints=[[2 * self.geometry.side] * 2],
        )
        cls = getattr(transformers, f"{self.geometry.family}ForConditionalGeneration")
        if self.bare:
            cls, config = transformers.CLIPVisionModel, config.vision_config
        dtype = getattr(torch, self.args.dtype)
        with no_init_weights(), self.device:
            return cls._from_config(config, attn_implementation=self.args.attention, dtype=dtype).eval()

    def media(self, samples: int, seed: int) -> dict[str, Tensor]:
        """Keyword arguments that bring one image, or one video, per sample, on the model's device."""
        found = media(self.geometry, samples, seed)
        return {
            name: tensor.to(self.device, self.model.dtype if tensor.is_floating_point() else None)
            for name, tensor in found.items()
        }

    def encode(self, media: dict[str, Tensor]) -> Any:
        if self.bare:
            return self.model(**media)
        return getattr(self.model.model, f"get_{self.modality}_features")(**media, return_dict=True)

    def attached(self, pruner: Pruner | None) -> Any:
        return nullcontext() if pruner is None else attach(self.model, pruner)

    def prepare(self, run: str, pruner: Pruner | None) -> Handle:
        """Encode and write the prompt where a run needs it, and go through its call once."""
        with self.attached(pruner) as handle:
            if self.args.command == "prefill" or (self.args.command == "generate" and pruner is None):
                encoded = self.encode(self.shown)
                if pruner is None:
                    visual = sum(math.prod(part.shape[:-1]) for part in encoded.pooler_output)
                    self.placeholders = visual // self.args.batch
                    self.prompt = self.write_prompt()
                self.features = {**self.features, run: encoded} if self.args.command == "prefill" else {}
            self.call(run)
        return handle

    def write_prompt(self) -> dict[str, Tensor]:
        """Half of the text, the placeholders of an image or video, the other half; the same in every row."""
        generator = torch.Generator().manual_seed(self.args.seed)
        text = torch.randint(3, VOCABULARY - 10, (self.args.text_tokens,), generator=generator)
        half = len(text) // 2
        row = torch.cat([text[:half], text.new_full((self.placeholders,), PLACEHOLDER), text[half:]])
        ids = row.expand(self.args.batch, -1).to(self.device)
        prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.geometry.family == "Qwen2VL":
            prompt["mm_token_type_ids"] = (ids == PLACEHOLDER).int()
            prompt["image_grid_thw"] = self.shown["image_grid_thw"]
        return prompt

    def call(self, run: str) -> Any:
        """What is timed."""
        if self.args.command == "encode":
            return self.encode(self.shown)
        if self.args.command == "prefill":
            encoded = {self.modality: self.features[run]}
            return self.model(**self.prompt, mm_encoder_outputs=encoded, logits_to_keep=1)
        watch = _FirstToken()
        inputs = {**self.prompt, **self.shown}
        output = self.model.generate(
            **inputs, max_new_tokens=self.args.new_tokens, do_sample=False, streamer=watch, eos_token_id=None
        )
        self.first.append(watch.seconds)
        return output

    def decoder_paths(self, trace: Trace | None) -> list[list[int]]:
        """Visual tokens entering each decoder layer, per sample; those of the unpruned model if `trace` is None."""
        layers, batch = range(self.args.layers_slice), self.args.batch
        if self.args.command == "encode":
            return []
        if trace is None:
            return [[self.placeholders for _ in layers] for _ in range(batch)]
        entering: list[Sequence[int]] = [[len(tokens) for tokens in trace.tokens] for _ in layers]
        if trace.language is not None:
            entering = list(trace.language.entering)
        each = len(entering[0]) // batch  # a video is one image per frame
        return [[sum(counts[row * each : (row + 1) * each]) for counts in entering] for row in range(batch)]

    def flops(self, trace: Trace, pruned: bool) -> float:
        """FLOPs of the timed call by formula, for a trace's token counts or, not pruned, for all tokens."""
        config, total = self.model.config, 0.0
        vision = config if self.bare else config.vision_config
        inside = pruned and trace.inside
        rows = zip(zip(*trace.entering, strict=True), zip(*trace.leaving, strict=True), strict=True)
        for entering, leaving in rows if self.args.command != "prefill" else ():
            path, left = (entering, leaving[-1]) if pruned else (entering[:1] * len(entering), entering[0])
            if self.geometry.family == "Qwen2VL":
                total += merging_encoder_flops(vision, path, left)
            else:
                left += self.geometry.family == "VideoLlava"  # passes each frame's CLS on
                total += encoder_flops(vision, path, mlp_path=leaving if inside else None)
                total += 0 if self.bare else projector_flops(left, vision.hidden_size, config.text_config.hidden_size)
        for visual in self.decoder_paths(trace if pruned else None):
            lengths = [self.args.text_tokens + count for count in visual]
            total += prefill_flops(config.text_config, lengths)
            if self.args.command == "generate":
                total += decode_flops(config.text_config, lengths, self.args.new_tokens - 1)
        return total


class _FirstToken(BaseStreamer):
    """Seconds from when it was made to the first new token; `generate` puts the prompt in front of it."""

    def __init__(self) -> None:
        self.start, self.puts, self.seconds = time.perf_counter(), 0, math.nan

    def put(self, value: Any) -> None:
        self.puts += 1
        if self.puts == 2:
            self.seconds = time.perf_counter() - self.start

    def end(self) -> None:
        pass


@dataclass(frozen=True)
class Replay(Pruner):
    """Drops as many tokens as another pruner dropped in the same call, evenly spread.

    Attributes:
        cuts, language_cuts: by layer, what to answer there.
        watches: whether the other one watched the language model.
        original: the other one, which answers for what Qwen2-VL's hooks ask.
    """

    cuts: dict[int, Cut] = field(default_factory=dict)
    language_cuts: dict[int, Cut] = field(default_factory=dict)
    watches: bool = False
    original: Pruner | None = None

    @property
    def keeps_groups(self) -> bool:
        return self.original is None or self.original.keeps_groups

    @property
    def own_places(self) -> bool:
        return self.original is None or self.original.own_places

    @classmethod
    def of(cls, handle: Handle, device: torch.device) -> Replay:
        """Of what an attached pruner did in its last forward."""
        trace, pruner = handle.trace, handle.pruner
        assert trace is not None
        unit = handle.anatomy.encoders[-1].unit if pruner.keeps_groups else 1
        language = _even_cuts(trace.language or StageTrace(), 1, device)
        return cls(pruner.budget, _even_cuts(trace, unit, device), language, handle.watches_language, pruner)

    def cuts_language(self, two_stage: bool) -> bool:
        return self.watches

    def vision(self, view: View) -> Cut | None:
        return self.cuts.get(view.layer)

    def language(self, view: LanguageView) -> Cut | None:
        return self.language_cuts.get(view.layer)


def _even_cuts(trace: StageTrace, unit: int, device: torch.device) -> dict[int, Cut]:
    cuts = {}
    for layer, (before, after) in enumerate(zip(trace.entering, trace.leaving, strict=True)):
        if before != after:
            groups = [torch.arange(k // unit) * (n // unit) // (k // unit) for n, k in zip(before, after, strict=True)]
            rows = [(row[:, None] * unit + torch.arange(unit)).flatten() for row in groups]
            keep = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
            cuts[layer] = Cut(keep, None if len(set(after)) == 1 else after)
    return cuts


def clock(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a call takes, on the device too, without Python's collector."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    gc.collect()
    gc.disable()
    try:
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        return time.perf_counter() - start
    finally:
        gc.enable()


def measure(bench: Bench, pruner: Pruner) -> dict[str, Any]:
    """Go through the three runs, time them in turn and weigh them. -> the report."""
    args, device = bench.args, bench.device
    pruners: dict[str, Pruner | None] = {"vanilla": None, "pruned": pruner}
    seconds: dict[str, list[float]] = {run: [] for run in RUNS}
    memory: dict[str, float] = {}
    steps = len(RUNS) * (1 + args.warmup + args.repeats) + 2
    with torch.inference_mode(), tqdm(total=steps, desc=f"{args.command} {args.geometry}") as progress:
        bench.prepare("vanilla", None)
        handle = bench.prepare("pruned", pruner)
        trace, pruners["unscored"] = handle.trace, Replay.of(handle, device)
        again = bench.prepare("unscored", pruners["unscored"]).trace
        assert trace is not None
        assert again is not None
        if again.entering != trace.entering or bench.decoder_paths(again) != bench.decoder_paths(trace):
            raise ValueError(f"{args.pruner} cannot be replayed without scores")
        progress.update(len(RUNS))
        bench.first.clear()
        gc.collect()
        gc.freeze()  # what is there now: collecting between timed calls then takes no time
        for _ in range(args.warmup + args.repeats):
            for run in RUNS:
                with bench.attached(pruners[run]):
                    seconds[run].append(clock(partial(bench.call, run), device))
                progress.update()
        gc.unfreeze()
        first = bench.first[args.warmup * len(RUNS) :]
        for run in RUNS[:2]:
            with bench.attached(pruners[run]):
                memory[run] = peak_memory_mb(partial(bench.call, run), device)
            progress.update()
    timed = {run: values[args.warmup :] for run, values in seconds.items()}
    median = {run: statistics.median(values) for run, values in timed.items()}
    ratio = median["pruned"] / median["vanilla"]
    flops = bench.flops(trace, True) / bench.flops(trace, False)
    return {
        **{name: getattr(args, name) for name in ("command", "geometry", "batch", "budget", "pruner")},
        **{f"{run}_s": median[run] for run in RUNS},
        "ratio": ratio,
        "speedup": 1 / ratio,
        "overhead": median["pruned"] / median["unscored"] - 1,
        "flops_ratio": flops,
        "ratio_over_flops": ratio / flops,
        "images_per_s": {run: args.batch / median[run] for run in RUNS},
        "first_token_s": {run: statistics.median(first[at :: len(RUNS)]) for at, run in enumerate(RUNS) if first},
        "spread": {run: spread(values) for run, values in timed.items()},
        "peak_memory_mb": memory,
        "tokens_per_layer": [list(path) for path in zip(*trace.entering, strict=True) if args.command != "prefill"],
        "decoder_tokens_per_layer": bench.decoder_paths(trace),
        "decoder_layers": None if bench.bare else args.layers_slice,
        **{name: getattr(args, name) for name in ("text_tokens", "new_tokens", "dtype", "attention", "device")},
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        **{name: getattr(args, name) for name in ("warmup", "repeats", "seed")},
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """How far the middle half lies apart, over the median, and the least."""
    lower, middle, upper = np.quantile(seconds, (0.25, 0.5, 0.75))
    return {"iqr_over_median": float((upper - lower) / middle), "min_s": min(seconds)}


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's as Linux has it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    names = "command", "geometry", "pruner", "dtype", "attention", "device_name"
    lines = [", ".join(str(report[name]) for name in names)]
    lines += [f"batch {report['batch']}, {report['threads']} threads, {report['repeats']} rounds", ""]
    lines += [f"{'':10}{'median s':>10}{'min s':>10}{'IQR %':>8}{'images/s':>10}{'first s':>10}{'peak MB':>10}"]
    for run in RUNS:
        wide, first = report["spread"][run], report["first_token_s"].get(run, math.nan)
        times = f"{report[f'{run}_s']:10.4f}{wide['min_s']:10.4f}{100 * wide['iqr_over_median']:8.1f}"
        memory = report["peak_memory_mb"].get(run, math.nan)
        lines += [f"{run:10}{times}{report['images_per_s'][run]:10.3f}{first:10.4f}{memory:10.1f}"]
    lines += ["", f"pruned / vanilla: time {report['ratio']:.3f}, FLOPs {report['flops_ratio']:.3f}"]
    lines += [f"time / FLOPs: {report['ratio_over_flops']:.3f}; pruned / unscored - 1: {report['overhead']:.3f}", ""]
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number >= {least}")
        return int(text)

    return number


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Pruner]:
    """Arguments with defaults filled in, and the pruner.

    Raises:
        ValueError: something cannot be used; one line.
    """
    parser = _Parser("python -m flowcut.bench", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for command, what in COMMANDS.items():
        add = commands.add_parser(command, help=f"time {what}", description=f"Time {what}.").add_argument
        add("--geometry", default="llava-1.5-7b", choices=GEOMETRIES, help="sizes of the model (default: %(default)s)")
        add("--layers-slice", type=_at_least(1), help="decoder layers (default: all; on a CPU 2, two-stage 4)")
        add("--batch", type=_at_least(1), default=1, help="images or videos at once (default: %(default)s)")
        add("--budget", type=int, help="visual tokens to keep (default: the geometry's)")
        add("--pruner", default="flowcut", help="as in flowcut:interval=3; `python -m flowcut list` has all")
        add("--text-tokens", type=_at_least(2), default=64, help="prompt tokens not visual (default: %(default)s)")
        add("--new-tokens", type=_at_least(1), default=16, help="tokens to generate (default: %(default)s)")
        add("--threads", type=_at_least(1), default=torch.get_num_threads(), help="CPU threads (default: %(default)s)")
        add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="(default: %(default)s)")
        add("--device", default="cpu", choices=("cpu", "cuda"), help="(default: %(default)s)")
        add("--attention", default="sdpa", choices=("sdpa", "eager"), help="(default: %(default)s)")
        add("--warmup", type=_at_least(0), default=2, help="rounds that do not count (default: %(default)s)")
        add("--repeats", type=_at_least(1), default=9, help="rounds that count (default: %(default)s)")
        add("--seed", type=_at_least(0), default=0, help="of weights, images and text (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU here; use --device cpu")
    geometry = GEOMETRIES[args.geometry]
    depth = geometry.text["num_hidden_layers"]
    args.layers_slice = args.layers_slice or (geometry.slice if args.device == "cpu" else depth)
    if args.layers_slice > depth:
        raise ValueError(f"--layers-slice {args.layers_slice} is more than the {depth} layers of {args.geometry}")
    if "budget=" in args.pruner and args.budget is not None:
        raise ValueError(f"--pruner {args.pruner} has a budget already; leave --budget out")
    if "budget=" not in args.pruner and args.pruner != "none":
        budget = geometry.budget if args.budget is None else args.budget
        args.pruner += f"{',' if ':' in args.pruner else ':'}budget={budget}"
    pruner = parse_pruner(args.pruner)
    if pruner is None:
        raise ValueError("--pruner none keeps every token; try flowcut")
    args.budget = pruner.budget
    return args, pruner


def keep_freed_memory() -> None:
    """Tell glibc's allocator not to return large blocks to the system; does nothing where there is no glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table and, as the last line, the report as JSON. Returns 0, or 2 after one line about bad input."""
    threads = torch.get_num_threads()
    try:
        args, pruner = parse(argv)
        keep_freed_memory()
        torch.set_num_threads(args.threads)
        report = measure(Bench(args, pruner), pruner)
    except ValueError as error:
        print(f"flowcut.bench: {error}", file=sys.stderr)
        return 2
    finally:
        torch.set_num_threads(threads)
    print(table(report))
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
