"""Pre-train the embedded language model on symbolic scenes: no pictures, each visual token encodes a list of facts.

A sequence has LLaVA's format (the v1 template with several questions, or a plain caption), and the visual tokens
are a random part of the scene's patches. Because it first learns to answer from clean facts, an hour of CPU time is
enough: from pixels only, the yes/no types stay at chance for long. Resumable like ``pretrain_vision``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from flowcut.cli.command_line import Parser, parse_first, program
from llava.constants import IGNORE_INDEX
from llava.conversation import conv_templates
from scripts.embedded.questions import ask, caption
from scripts.embedded.scenes import Scene, compose, label_patches


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model, its checkpoint and log.jsonl")
    parser.add_argument("--lesson-steps", type=int, default=400, help="maximal steps of one lesson")
    parser.add_argument("--steps", type=int, default=900, help="steps after the lessons")
    parser.add_argument("--batch", type=int, default=20, help="scenes per step; twice as many in a lesson")
    parser.add_argument("--questions", type=int, default=8, help="questions per scene; two in a lesson")
    parser.add_argument("--lr", type=float, default=7e-4)
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--save-every", type=int, default=100)
    return parser


parse_first(__name__, build_parser)

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from scripts.embedded.symbols import COVERED_ENOUGH, FACTS, fact_words, facts_of
from scripts.embedded.tokenizer import build

# The order in which question types are learnt. When all are learnt at once, they stay at chance for very long;
# a learnt lookup transfers to the next type.
LESSONS = ("letter", "color", "shape", "where", "exist", "count", "relation", "background")


def language_config(vocab_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        initializer_range=0.05,  # the usual 0.02 is small for such a narrow model: attention starts nearly uniform
        pad_token_id=0,
    )


class Reader(nn.Module):
    """The language model and the linear map from facts to its word space.

    A fact that has a word starts as that word's embedding, so that one mapping from question words to patches is learnt
    instead of one for each word. Positions start small: their many waves would dominate the names.
    """

    def __init__(self, tokenizer: LlamaTokenizer) -> None:
        super().__init__()
        self.language = LlamaForCausalLM(language_config(len(tokenizer)))
        self.language.set_attn_implementation("eager")  # on a CPU, faster to train than sdpa at these sizes
        self.embed_facts = nn.Linear(FACTS, self.language.config.hidden_size, bias=False)
        words = self.language.model.embed_tokens.weight
        with torch.no_grad():
            nn.init.normal_(self.embed_facts.weight, std=0.01)
            for column, word in fact_words().items():
                (token,) = tokenizer(word, add_special_tokens=False)["input_ids"]
                self.embed_facts.weight[:, column] = words[token]


def some_patches(scene: Scene, rng: np.random.Generator, density: float) -> torch.Tensor:
    """Facts of a random part of the patches, in raster order: of each object its most covered patch and a fraction
    of the others, of the background at least three. ``density`` (0..1) scales the fractions: few tokens are learnt
    sooner."""
    labels = label_patches(scene)
    named = labels.covered >= COVERED_ENOUGH
    share = np.where(named, rng.uniform(0.3, 1.0), rng.uniform(0.005, 0.12))
    keep = rng.random(len(named)) < share * density
    keep[rng.choice(np.flatnonzero(~named), 3, replace=False)] = True
    for thing in {tuple(centre) for centre in labels.centre[named]}:
        keep[np.argmax(labels.covered * (labels.centre == thing).all(1))] = True
    return facts_of(labels, scene.pattern)[torch.from_numpy(keep)]


def encode(tokenizer: LlamaTokenizer, text: str, spans: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Ids of a chunk without BOS, and labels: only tokens that begin inside one of the character ``spans``."""
    output = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = output["input_ids"]
    labels = [
        token if any(begin <= start < end for begin, end in spans) else IGNORE_INDEX
        for token, (start, _) in zip(ids, output["offset_mapping"], strict=True)
    ]
    return ids, labels


def make_sequence(
    tokenizer: LlamaTokenizer,
    rng: np.random.Generator,
    questions: int,
    density: float,
    kinds: tuple[str, ...] = LESSONS,
    terse: bool = False,
) -> tuple[list[int], torch.Tensor, list[int], list[int], list[str]]:
    """One scene as (head ids, facts, tail ids, tail labels, question types); ``terse`` drops the system text."""
    scene = compose(rng)
    facts = some_patches(scene, rng, density)
    if rng.random() < 0.12 and not terse:
        text = caption(scene) + "\n"
        return [tokenizer.bos_token_id], facts, *encode(tokenizer, text, [(0, len(text))]), ["caption"]
    template = conv_templates["v1"]
    asked = ask(scene, rng, questions, kinds)
    head = tokenizer(("" if terse else f"{template.system} ") + f"{template.roles[0]}: ")["input_ids"]
    text, spans = "", []
    for number, question in enumerate(asked):
        text += ("\n" if number == 0 else f"{template.roles[0]}: ") + f"{question.text} {template.roles[1]}:"
        spans.append((len(text), len(text) + len(f" {question.answer}</s>")))
        text += f" {question.answer}</s>"
    return head, facts, *encode(tokenizer, text, spans), [q.kind for q in asked]


def forward(
    model: Reader,
    tokenizer: LlamaTokenizer,
    rng: np.random.Generator,
    batch: int,
    questions: int,
    density: float,
    kinds: tuple[str, ...] = LESSONS,
    terse: bool = False,
) -> tuple[torch.Tensor, list[tuple[str, bool]]]:
    """Loss of one batch, and (kind, right) of every question by teacher-forced argmax."""
    embeds, labels, asked_kinds = [], [], []
    embed = model.language.get_input_embeddings()
    for _ in range(batch):
        head, facts, tail, tail_labels, asked = make_sequence(tokenizer, rng, questions, density, kinds, terse)
        parts = [embed(torch.tensor(head)), model.embed_facts(facts), embed(torch.tensor(tail, dtype=torch.long))]
        embeds.append(torch.cat([part.float() for part in parts]))
        labels.append(torch.tensor([IGNORE_INDEX] * (len(head) + len(facts)) + tail_labels))
        asked_kinds.append(asked)
    mask = pad_sequence([torch.ones(len(row)) for row in embeds], batch_first=True).long()
    target = pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX)
    hidden = model.language.model(inputs_embeds=pad_sequence(embeds, batch_first=True), attention_mask=mask)[0]
    answered = target[:, 1:] != IGNORE_INDEX
    logits = model.language.lm_head(hidden[:, :-1][answered]).float()  # answers only: most positions have no label
    true = target[:, 1:][answered]
    with torch.no_grad():
        wrong = torch.zeros_like(answered)
        wrong[answered] = logits.argmax(-1) != true
        results = []
        for row, asked in enumerate(asked_kinds):
            starts = torch.nonzero(torch.diff(answered[row].int(), prepend=torch.zeros(1, dtype=torch.int)) == 1)
            bounds = [*starts.flatten().tolist(), answered.shape[1]]
            for number, kind in enumerate(asked):
                results.append((kind, not bool(wrong[row, bounds[number] : bounds[number + 1]].any())))
    return F.cross_entropy(logits, true), results


def accuracy(results: list[tuple[str, bool]]) -> dict[str, float]:
    by_kind = defaultdict(list)
    for kind, right in results:
        by_kind[kind].append(right)
    return {kind: round(float(np.mean(rights)), 3) for kind, rights in sorted(by_kind.items())}


class Course:
    """Both phases of the training: lessons (one question type more at a time, short contexts), then LLaVA's format."""

    def __init__(self, args: argparse.Namespace, tokenizer: LlamaTokenizer) -> None:
        self.args, self.tokenizer = args, tokenizer
        self.model = Reader(tokenizer)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
        self.lesson, self.step, self.updates = 0, 0, 0
        self.checkpoint = args.out / "checkpoint.pt"
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.lesson, self.step, self.updates = state["lesson"], state["step"], state["updates"]

    def save(self) -> None:
        progress = {"lesson": self.lesson, "step": self.step, "updates": self.updates}
        partial = self.checkpoint.with_suffix(".part")
        weights = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(weights | progress, partial)
        partial.replace(self.checkpoint)

    def update(
        self, rate: float, batch: int, questions: int, density: float, kinds: tuple[str, ...], terse: bool
    ) -> tuple[float, list[tuple[str, bool]]]:
        """One optimizer step on fresh scenes, which are a function of the step number."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * min(1, (self.updates + 1) / 50)
        rng = np.random.default_rng((self.args.seed, self.updates))
        with torch.autocast("cpu", torch.bfloat16):
            loss, results = forward(self.model, self.tokenizer, rng, batch, questions, density, kinds, terse)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.updates += 1
        return loss.item(), results

    def log(self, **figures: float | int | str) -> None:
        print(json.dumps(figures), flush=True)
        with (self.args.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(figures) + "\n")

    def take_lessons(self) -> None:
        """Each lesson ends when its new type is learnt, or after ``--lesson-steps``."""
        while self.lesson < len(LESSONS):
            new, known = LESSONS[self.lesson], LESSONS[: self.lesson]
            recent: list[tuple[str, bool]] = []
            began = time.time()
            for step in range(1, self.args.lesson_steps + 1):
                kinds = (new,) * max(1, len(known)) + known
                loss, results = self.update(self.args.lr, 2 * self.args.batch, 2, 0.1, kinds, terse=True)
                recent += results
                if step % 25 == 0:
                    right = accuracy(recent)
                    rate = round((time.time() - began) / step, 3)
                    self.log(update=self.updates, lesson=new, loss=round(loss, 4), s_per_step=rate, **right)
                    recent = []
                    if right[new] > 0.9:
                        break
            self.lesson += 1
            self.save()

    def practise(self) -> None:
        """All types, several questions per scene and captions, in LLaVA's own format with more and more patches."""
        began, first = time.time(), self.step
        recent: list[tuple[str, bool]] = []
        while self.step < self.args.steps:
            done = self.step / self.args.steps
            rate = self.args.lr * (0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)
            density = min(1.0, 0.1 + 1.2 * done)
            loss, results = self.update(rate, self.args.batch, self.args.questions, density, LESSONS, terse=False)
            recent += results
            self.step += 1
            if self.step % 50 == 0 or self.step == self.args.steps:
                pace = (time.time() - began) / (self.step - first)
                minutes = round(pace * (self.args.steps - self.step) / 60)
                self.log(
                    step=self.step,
                    loss=round(loss, 4),
                    s_per_step=round(pace, 3),
                    minutes_left=minutes,
                    **accuracy(recent),
                )
                recent = []
            if self.step % self.args.save_every == 0 or self.step == self.args.steps:
                self.save()


@program
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    tokenizer = build(args.out / "language")
    torch.manual_seed(args.seed)
    course = Course(args, tokenizer)
    course.take_lessons()
    course.practise()
    course.model.language.save_pretrained(args.out / "language")
    torch.save(course.model.embed_facts.weight.detach().clone(), args.out / "embed_facts.pt")
    print(json.dumps({"language": str(args.out / "language"), "updates": course.updates}))


if __name__ == "__main__":
    main()
