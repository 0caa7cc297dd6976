"""Train the embedded model's tokenizer: SentencePiece with LLaMA's settings over the benchmark's own sentences.

LLaMA's settings matter (byte fallback, dummy prefix, BOS): the embedded model must have the same tokenisation pitfalls
as a 7B one. Every word of the templates becomes one piece; anything else falls back to smaller pieces and bytes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import sentencepiece
from transformers import LlamaTokenizer

from llava.conversation import conv_templates
from scripts.embedded.questions import ask, caption
from scripts.embedded.scenes import compose

CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    "legacy": False,
    "padding_side": "right",
    "model_max_length": 2048,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<unk>",
    "clean_up_tokenization_spaces": False,
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}


def corpus(seed: int = 3, scenes: int = 1500) -> list[str]:
    rng = np.random.default_rng(seed)
    lines = []
    for name in ("v1", "llava_v1"):
        lines += [conv_templates[name].system, "USER:", "ASSISTANT:"] * 50
    lines += ["Answer the question using a single word or phrase.", "Describe the image."] * 50
    for _ in range(scenes):
        scene = compose(rng)
        lines.append(caption(scene))
        for question in ask(scene, rng, 6):
            lines += [question.text, f"ASSISTANT: {question.answer}"]
    return lines


def build(folder: Path) -> LlamaTokenizer:
    """Write ``tokenizer.model`` and its two JSON files into ``folder`` and load them back."""
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=1100,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL, indent=2) + "\n")
    return LlamaTokenizer.from_pretrained(folder, add_bos_token=True)
