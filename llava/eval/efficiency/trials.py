"""Variants that answer the same questions alternately, timed per batch. One batch of a variant is a trial."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from tqdm import tqdm

from flowcut.bench.memory import peak_memory_mb
from flowcut.cli.progress import progress_bar
from llava.eval.efficiency.power import PowerMeter
from llava.eval.efficiency.report import Power, Trial, Variant, VariantResult
from llava.eval.media.reading import Picture, QuestionMedia
from llava.eval.models.llava_answerer import LlavaAnswerer
from llava.eval.models.llava_checkpoint import Checkpoint
from llava.eval.models.reply import Generation, Reply
from llava.eval.questions import Question

POWER_SECONDS = 10.0  # minimal duration of a loop, because the sensor averages over up to a second


class Comparison:
    """A loaded model with its questions and the compared pruners."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        questions: Sequence[Question],
        images: Path,
        variants: Sequence[Variant],
        max_new_tokens: int,
    ) -> None:
        self.checkpoint, self.questions, self.variants = checkpoint, questions, variants
        self.device: torch.device = checkpoint.model.device
        generation = Generation(max_new_tokens=max_new_tokens)
        pruners = dict.fromkeys(variant.pruner for variant in variants)
        self.answerers = {pruner: LlavaAnswerer(checkpoint, pruner, generation) for pruner in pruners}
        self.reading = QuestionMedia(questions, images, checkpoint.reader)

    def measure(self, warm_up: int, power: bool) -> dict[Variant, VariantResult]:
        """Every variant's result, with a progress bar. warm_up: questions per variant, in whole batches, not
        counted.
        """
        with self.attention_given_back(), self.bar(warm_up, power) as bar:
            for variant in self.variants:
                for first in self.warming(variant, warm_up):
                    self.trial(variant, first)
                    bar.update(variant.batch)
            trials: dict[Variant, list[Trial]] = {variant: [] for variant in self.variants}
            replies: dict[Variant, list[Reply]] = {variant: [] for variant in self.variants}
            with uncollected():
                for first, group in order_of_trials(self.variants, len(self.questions)):
                    for variant in group:
                        trial, said = self.trial(variant, first)
                        trials[variant].append(trial)
                        replies[variant] += said
                        bar.update(variant.batch)
            results = {}
            for variant in self.variants:
                bar.update(variant.batch)
                lengths = self.lengths(replies[variant])
                results[variant] = VariantResult(trials[variant], replies[variant], lengths, self.peak_memory(variant))
                if power:
                    bar.update(len(firsts(variant, len(self.questions))) * variant.batch)
                    results[variant] = results[variant]._replace(power=self.power(variant))
        return results

    def bar(self, warm_up: int, power: bool) -> tqdm:
        counted = [len(firsts(variant, len(self.questions))) * variant.batch for variant in self.variants]
        others = [(len(self.warming(variant, warm_up)) + 1) * variant.batch for variant in self.variants]
        return progress_bar(
            total=sum(counted) * (2 if power else 1) + sum(others), desc="questions, all rows", unit="q"
        )

    def warming(self, variant: Variant, questions: int) -> list[int]:
        """The first question of each warm-up batch; starts over if there are not enough questions."""
        trials = math.ceil(questions / variant.batch)
        return list(itertools.islice(itertools.cycle(firsts(variant, len(self.questions))), trials))

    def trial(self, variant: Variant, first: int) -> tuple[Trial, list[Reply]]:
        """Answer the batch that begins at question `first`."""
        self.use(variant.attention)
        begin = perf_counter()
        batch = self.read(variant, first)
        read = perf_counter()
        replies = self.answer(variant, *batch)
        end = perf_counter()
        share = 1000 / variant.batch
        return Trial.of(replies[0], (read - begin) * share, (end - begin) * share), replies

    def read(self, variant: Variant, first: int) -> tuple[list[str], list[list[Picture]]]:
        """Texts and pictures of a batch. Raises ValueError for a picture that cannot be read."""
        pictures = []
        for number in range(first, first + variant.batch):
            shown, problem = self.reading[number]
            if problem is not None:
                name = self.questions[number].question_id
                raise ValueError(f"question {name}: {problem}; the bench needs questions without faults")
            pictures.append(shown)
        return [one.text for one in self.questions[first : first + variant.batch]], pictures

    def answer(self, variant: Variant, texts: list[str], pictures: list[list[Picture]]) -> list[Reply]:
        try:
            return self.answerers[variant.pruner].answer(texts, pictures)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"{variant.pruner} at --batch {variant.batch} with --attention {variant.attention} does not fit into "
                f"the device's memory; give a smaller --batch"
            ) from error

    def peak_memory(self, variant: Variant) -> float:
        """Peak memory of activations in the first batch, in MB of 10^6 bytes."""
        self.use(variant.attention)
        return peak_memory_mb(partial(self.answer, variant, *self.read(variant, 0)), self.device)

    def power(self, variant: Variant) -> Power:
        """The power over the whole loop, repeated until it has lasted `POWER_SECONDS`."""
        answered, begin = 0, perf_counter()
        with PowerMeter(partial(torch.cuda.power_draw, self.device)) as meter:
            while perf_counter() - begin < POWER_SECONDS:
                for first in firsts(variant, len(self.questions)):
                    self.trial(variant, first)
                    answered += variant.batch
            seconds = perf_counter() - begin
        return Power(meter.watts, meter.watts * seconds / answered)

    def lengths(self, replies: Sequence[Reply]) -> list[int]:
        """Tokens of the answers, re-counted from their text."""
        tokenizer = self.checkpoint.tokenizer
        return [len(tokenizer(reply.text, add_special_tokens=False).input_ids) for reply in replies]

    def use(self, attention: str) -> None:
        """Set the attention implementation of tower and language model, if it differs."""
        if self.checkpoint.model.config._attn_implementation != attention:
            self.checkpoint.model.set_attn_implementation(attention)

    @contextmanager
    def attention_given_back(self) -> Iterator[None]:
        model = self.checkpoint.model
        tower = model.get_vision_tower().vision_tower
        before = model.config._attn_implementation, tower.config._attn_implementation
        model.set_attn_implementation(self.variants[0].attention)
        try:
            yield
        finally:
            model.set_attn_implementation(before[0])
            tower.set_attn_implementation(before[1])


def firsts(variant: Variant, questions: int) -> range:
    """The first question of each batch, full batches only."""
    return range(0, questions - variant.batch + 1, variant.batch)


def order_of_trials(variants: Sequence[Variant], questions: int) -> Iterator[tuple[int, list[Variant]]]:
    """Pairs (first question, variants that answer from there on), which cover all batches of every variant.

    Variants of one batch size follow each other on the same questions, in rotating order. The batch
    sizes advance through the questions together.
    """
    groups = {
        size: [variant for variant in variants if variant.batch == size]
        for size in dict.fromkeys(variant.batch for variant in variants)
    }
    ends = sorted((first + size, size) for size, own in groups.items() for first in firsts(own[0], questions))
    for end, size in ends:
        lead = (end // size - 1) % len(groups[size])
        yield end - size, groups[size][lead:] + groups[size][:lead]


@contextmanager
def uncollected() -> Iterator[None]:
    """The garbage collector ignores existing objects, so that it takes no time during a trial."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
