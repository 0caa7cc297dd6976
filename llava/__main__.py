"""The programs of this package, and the recipes of its repository, under one name."""

from __future__ import annotations

import sys

from flowcut.cli.command_tree import Command, spoken, walk
from flowcut.version import __version__

EVAL = {
    "prepare": Command("make a benchmark's question file, or list what is missing", "llava.eval.prepare"),
    "score": Command("score answers, without a model", "llava.eval.score"),
    "bench": Command("measure questions per second", "llava.eval.bench"),
    "efficiency": Command("measure the cost of an answer by its stages", "llava.eval.efficiency.__main__"),
    "video": Command("answer questions about videos", "llava.eval.video.run_inference_video_qa"),
}
TRAIN = {
    "check-data": Command("check training data before training", "llava.train.check_data"),
    "bench": Command("measure what pruning saves in training", "llava.train.bench"),
}
CHECKPOINT = {
    "convert": Command("convert between LLaVA's and transformers' layout", "llava.convert"),
    "merge-lora": Command("merge a LoRA adapter into its model", "scripts.merge_lora_weights", repository=True),
    "extract-projector": Command("save the projector alone", "scripts.extract_mm_projector", repository=True),
    "consolidate": Command("write a checkpoint again, complete and in the current format", "llava.model.consolidate"),
    "apply-delta": Command("add a delta to its language model", "llava.model.apply_delta"),
    "make-delta": Command("subtract a language model from a checkpoint", "llava.model.make_delta"),
}
SERVE = {
    "controller": Command("keep the list of workers and forward questions", "llava.serve.controller"),
    "worker": Command("answer questions with a model over HTTP", "llava.serve.model_worker"),
    "page": Command("the web page, which uses a controller", "llava.serve.gradio_web_server"),
    "sglang-worker": Command("answer questions through an SGLang server", "llava.serve.sglang_worker"),
    "register": Command("register a running worker with a controller", "llava.serve.register_worker"),
    "test": Command("send a running worker one question", "llava.serve.test_message"),
}
COMMANDS = {
    "ask": Command("answer one question about pictures", "llava.eval.run_llava"),
    "chat": Command("chat about pictures in the terminal", "llava.serve.cli"),
    "demo": Command("the web page with its services, in one process", "llava.serve.demo"),
    "doctor": Command("report what is installed, what works, and errors", "llava.doctor"),
    "eval": Command(
        "evaluate a model on a benchmark, from question file to score",
        "llava.eval.launch",
        EVAL,
        "llava eval BENCHMARK --model-path MODEL answers and scores one; `llava eval gqa --help` lists the flags.",
    ),
    "table": Command("make a table of the paper", "scripts.tables.make", repository=True),
    "train": Command(
        "train a model, with LLaVA's flags",
        "llava.train.train",
        TRAIN,
        "llava train FLAGS trains. The flags, with those of transformers' Trainer, are listed by\n"
        "`python -m llava.train.train --help`, which takes some seconds; docs/training.md explains them.",
    ),
    "ckpt": Command("convert, merge and split checkpoints", commands=CHECKPOINT),
    "serve": Command("the services behind the web page, one by one", commands=SERVE),
}
EARLIER = {"check-data": ["train", "check-data"], "convert": ["ckpt", "convert"]}
"""Commands that had another place."""


def main(argv: list[str] | None = None) -> int:
    """Returns the program's exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and (now := EARLIER.get(words[0].replace("_", "-"))):
        words[:1] = now
    return walk(spoken("llava"), __doc__ or "", COMMANDS, f"llava-flowcut {__version__}", words)


if __name__ == "__main__":
    sys.exit(main())
