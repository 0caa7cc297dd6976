"""Measures what pruning saves in training: `python -m llava.train.bench --pruner flowcut:budget=192`.

The same model alternates training steps with all visual tokens and with the pruner attached, so that drift of the
machine affects both alike. A step is forward, backward and AdamW at learning rate 0, so weights stay the same for both
variants. Each sample has one image, in the middle of the text; the model is trained on the text after the image.

The model is a LLaVA checkpoint (`--model`, default: the embedded one), or one of published sizes with random weights
(`--geometry llava-1.5-7b`, `--layers-slice` decoder layers, a vocabulary of 1000; see `flowcut.bench.synthetic`), which
needs no download. Stage 1 trains the projector, stage 2 the language model too; the tower is frozen in both, as in
LLaVA-1.5.

Weights are float32. --dtype bfloat16 is autocast over them, and on a GPU also the type of the frozen tower. Peak memory
is what a step needs in addition to weights and optimizer state, measured in a separate step: on a GPU by the allocator,
on a CPU from existing tensors. Data loading is not part of a step.
"""

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flowcut.bench.geometries import GEOMETRIES, VOCABULARY
from flowcut.cli.command_line import Parser, parse_first, program
from flowcut.cli.progress import progress_bar

SIZES = [name for name, geometry in GEOMETRIES.items() if geometry.family == "Llava"]


def build_parser() -> Parser:
    made = Parser(__doc__)
    add = made.add_argument
    add(
        "--model-path",
        also=["--model"],
        dest="model",
        default="playground/embedded",
        help="LLaVA checkpoint (default: %(default)s)",
    )
    add("--geometry", choices=SIZES, help="published sizes and random weights instead of a checkpoint")
    add("--layers-slice", type=int, help="with --geometry: decoder layers (default: all)")
    add("--pruner", default="flowcut:budget=192", help="a method of `python -m flowcut list` (default: %(default)s)")
    add("--stage", type=int, default=2, choices=(1, 2), help="1 trains the projector only (default: %(default)s)")
    add("--batch", type=int, default=1, help="samples per step (default: %(default)s)")
    add("--text-tokens", type=int, default=64, help="text of a sample, half of it trained on (default: %(default)s)")
    add("--gradient-checkpointing", action="store_true", help="as in LLaVA's scripts")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="(default: %(default)s)")
    add("--device", help="default: cuda where there is one")
    add("--threads", type=int, help="CPU threads (default: torch's)")
    add("--warmup", type=int, default=2, help="warm-up rounds, not counted (default: %(default)s)")
    add("--repeats", type=int, default=10, help="rounds (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of weights, images and text (default: %(default)s)")
    return made


parse_first(__name__, build_parser)

import torch
import transformers
from transformers import CLIPVisionConfig
from transformers.initialization import no_init_weights

from flowcut import Pruner, attach, parse_pruner
from flowcut.bench.measuring import clock, device_name, keep_freed_memory, spread
from flowcut.bench.memory import peak_memory_mb
from flowcut.bench.synthetic import draw_weights, pictures, sharpen
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.builder import load_pretrained_model
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

RUNS = "unpruned", "pruned"


class TrainingBench:
    """A model, a batch, an optimizer, and the training step that is timed."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, torch.device(args.device)
        self.model = (self.of_published_size() if args.geometry else self.checkpoint()).train()
        self.choose_trainable()
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.trained = sum(parameter.numel() for parameter in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
        self.batch = self.make_batch()
        if args.gradient_checkpointing:
            self.model.config.use_cache = False
            self.model.gradient_checkpointing_enable()

    def checkpoint(self) -> Any:
        settings = {"device": self.args.device, "dtype": torch.float32, "pruner": "none"}
        model = load_pretrained_model(self.args.model, None, "llava", **settings)[1]
        if getattr(model, "get_vision_tower", lambda: None)() is None:
            raise ValueError(f"--model {self.args.model} has no vision tower; give a LLaVA checkpoint")
        return model

    def of_published_size(self) -> Any:
        geometry = GEOMETRIES[self.args.geometry]
        layers = self.args.layers_slice or geometry.text["num_hidden_layers"]
        sizes = {name: value for name, value in geometry.text.items() if name != "model_type"}
        with TemporaryDirectory() as folder:
            CLIPVisionConfig(**geometry.vision).save_pretrained(folder)
            config = LlavaConfig(**{**sizes, "num_hidden_layers": layers, "vocab_size": VOCABULARY})
            fields = {"mm_vision_tower": folder, "mm_vision_select_layer": -2, "mm_projector_type": "mlp2x_gelu"}
            fields |= {"mm_hidden_size": geometry.vision["hidden_size"], "unfreeze_mm_vision_tower": True}
            for name, value in fields.items():
                setattr(config, name, value)
            with no_init_weights(), self.device:
                model = LlavaLlamaForCausalLM._from_config(config, dtype=torch.float32)
        draw_weights(model, self.args.seed)
        sharpen(model, partial(model.encode_images, pictures(2, geometry.side, self.args.seed + 1).to(self.device)))
        return model

    def choose_trainable(self) -> None:
        self.model.requires_grad_(self.args.stage == 2)
        self.model.get_model().mm_projector.requires_grad_(True)
        tower = self.model.get_vision_tower()
        tower.requires_grad_(False)
        if self.device.type != "cpu":
            tower.to(getattr(torch, self.args.dtype))

    def make_batch(self) -> dict[str, Any]:
        """Half of the text, an image, and the other half of the text, which is learned."""
        tower, half = self.model.get_vision_tower(), self.args.text_tokens // 2
        generator = torch.Generator().manual_seed(self.args.seed)
        shape, vocabulary = (self.args.batch, self.args.text_tokens), self.model.config.vocab_size
        text = torch.randint(3, vocabulary - 10, shape, generator=generator)
        image = torch.full((self.args.batch, 1), IMAGE_TOKEN_INDEX)
        ids = torch.cat([text[:, :half], image, text[:, half:]], dim=1).to(self.device)
        labels = ids.clone()
        labels[:, : half + 1] = IGNORE_INDEX
        images = pictures(self.args.batch, tower.config.image_size, self.args.seed).to(self.device)
        return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids).bool(), "images": images}

    def step(self) -> torch.Tensor:
        """One training step; returns the loss, a scalar."""
        half = self.args.dtype != "float32"
        precision = torch.autocast(self.device.type, getattr(torch, self.args.dtype)) if half else nullcontext()
        with precision:
            loss = self.model(**self.batch).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def visual_tokens(self) -> int:
        """Visual tokens of the first sample that enter the language model."""
        counts: list[int] = []

        def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            counts.append(int((kwargs["image_index"][0] >= 0).sum()))

        with self.model.get_model().register_forward_pre_hook(look, with_kwargs=True):
            self.step()
        return counts[0]


def measure(bench: TrainingBench, pruner: Pruner) -> dict[str, Any]:
    """Take steps alternately, time them, and measure the memory of one of each. -> the report."""
    args, device = bench.args, bench.device
    attached: dict[str, Callable[[], Any]] = {"unpruned": nullcontext, "pruned": partial(attach, bench.model, pruner)}
    seconds: dict[str, list[float]] = {run: [] for run in RUNS}
    memory, tokens = {}, {}
    steps = len(RUNS) * (2 + args.warmup + args.repeats)
    with progress_bar(total=steps, desc="training steps") as progress:
        for run in RUNS:
            with attached[run]():
                tokens[run] = bench.visual_tokens()
            progress.update()
        gc.collect()
        gc.freeze()  # existing objects: collecting between timed steps then takes no time
        for _ in range(args.warmup + args.repeats):
            for run in RUNS:
                with attached[run]():
                    seconds[run].append(clock(bench.step, device))
                progress.update()
        gc.unfreeze()
        for run in RUNS:
            with attached[run]():
                memory[run] = peak_memory_mb(torch.enable_grad()(bench.step), device)
            progress.update()
    timed = {run: values[args.warmup :] for run, values in seconds.items()}
    median = {run: statistics.median(values) for run, values in timed.items()}
    each = [pruned / unpruned for unpruned, pruned in zip(timed["unpruned"], timed["pruned"], strict=True)]
    return {
        "model": args.geometry or Path(args.model).name,
        "decoder_layers": bench.model.config.num_hidden_layers,
        **{name: getattr(args, name) for name in ("pruner", "stage", "batch", "text_tokens", "gradient_checkpointing")},
        "trained_parameters": bench.trained,
        "visual_tokens": tokens,
        **{f"{run}_s": median[run] for run in RUNS},
        "ratio": median["pruned"] / median["unpruned"],
        "speedup": median["unpruned"] / median["pruned"],
        "ratio_of_pairs": {"median": statistics.median(each), "min": min(each), "max": max(each)},
        "spread": {run: spread(values) for run, values in timed.items()},
        "peak_memory_mb": memory,
        "memory_ratio": memory["pruned"] / memory["unpruned"],
        **{name: getattr(args, name) for name in ("dtype", "device", "warmup", "repeats", "seed")},
        "attention": bench.model.config._attn_implementation,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    head = f"{report['model']} ({report['decoder_layers']} decoder layers), stage {report['stage']}, {report['pruner']}"
    where = f"batch {report['batch']}, {report['dtype']}, {report['threads']} threads, {report['device_name']}"
    lines = [head, f"{where}, {report['repeats']} rounds", ""]
    lines += [f"{'':10}{'tokens':>8}{'median s':>10}{'min s':>10}{'IQR %':>8}{'peak MB':>10}"]
    for run in RUNS:
        wide = report["spread"][run]
        times = f"{report[f'{run}_s']:10.4f}{wide['min_s']:10.4f}{100 * wide['iqr_over_median']:8.1f}"
        lines += [f"{run:10}{report['visual_tokens'][run]:8}{times}{report['peak_memory_mb'][run]:10.1f}"]
    pairs = report["ratio_of_pairs"]
    lines += ["", f"a pruned step takes {report['ratio']:.3f} of the time ({report['speedup']:.2f}x),"]
    lines[-1] += (
        f" pair by pair {pairs['min']:.3f} to {pairs['max']:.3f}, and {report['memory_ratio']:.3f} of the memory"
    )
    return "\n".join(lines)


def check(args: argparse.Namespace) -> Pruner:
    """The pruner; ValueError, one line, for flags that cannot be used."""
    least = {"layers_slice": 1, "batch": 1, "text_tokens": 2, "threads": 1, "warmup": 0, "repeats": 1, "seed": 0}
    for name, lowest in least.items():
        value = getattr(args, name)
        if value is not None and value < lowest:
            raise ValueError(f"--{name.replace('_', '-')} {value}: give a whole number of at least {lowest}")
    pruner = parse_pruner(args.pruner)
    if pruner is None:
        raise ValueError("--pruner none keeps every token, so there is nothing to compare; try flowcut:budget=192")
    return pruner


@program
def main(argv: list[str] | None = None) -> int:
    """Prints a table and, as the last line, the report as JSON."""
    args = build_parser().parse_args(argv)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    keep_freed_memory()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    pruner = check(args)
    report = measure(TrainingBench(args), pruner)
    print(f"{table(report)}\n{json.dumps(report)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
