"""Ways to answer that take turns on the same questions, timed batch by batch."""

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
from llava.eval.efficiency_report import Power, Result, Turn, Way
from llava.eval.media.reading import Picture, QuestionMedia
from llava.eval.models.llava_answerer import LlavaAnswerer
from llava.eval.models.llava_checkpoint import Checkpoint
from llava.eval.models.reply import Generation, Reply
from llava.eval.power import PowerMeter
from llava.eval.questions import Question

POWER_SECONDS = 10.0  # a loop at least this long, as the sensor averages over up to a second


class Bench:
    """A loaded model with its questions, and the pruners that are compared."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        questions: Sequence[Question],
        images: Path,
        ways: Sequence[Way],
        max_new_tokens: int,
    ) -> None:
        self.checkpoint, self.questions, self.ways = checkpoint, questions, ways
        self.device: torch.device = checkpoint.model.device
        generation = Generation(max_new_tokens=max_new_tokens)
        pruners = dict.fromkeys(way.pruner for way in ways)
        self.answerers = {pruner: LlavaAnswerer(checkpoint, pruner, generation) for pruner in pruners}
        self.reading = QuestionMedia(questions, images, checkpoint.reader)

    def measure(self, warm_up: int, power: bool) -> dict[Way, Result]:
        """Every way's result, with a bar on the way. warm_up: questions a way, in whole batches, that do not count."""
        with self.attention_given_back(), self.bar(warm_up, power) as bar:
            for way in self.ways:
                for first in self.warming(way, warm_up):
                    self.turn(way, first)
                    bar.update(way.batch)
            turns: dict[Way, list[Turn]] = {way: [] for way in self.ways}
            replies: dict[Way, list[Reply]] = {way: [] for way in self.ways}
            with uncollected():
                for first, group in order_of_turns(self.ways, len(self.questions)):
                    for way in group:
                        turn, said = self.turn(way, first)
                        turns[way].append(turn)
                        replies[way] += said
                        bar.update(way.batch)
            results = {}
            for way in self.ways:
                bar.update(way.batch)
                lengths = self.lengths(replies[way])
                results[way] = Result(turns[way], replies[way], lengths, self.peak_memory(way))
                if power:
                    bar.update(len(firsts(way, len(self.questions))) * way.batch)
                    results[way] = results[way]._replace(power=self.power(way))
        return results

    def bar(self, warm_up: int, power: bool) -> tqdm:
        counted = [len(firsts(way, len(self.questions))) * way.batch for way in self.ways]
        others = [(len(self.warming(way, warm_up)) + 1) * way.batch for way in self.ways]
        return tqdm(total=sum(counted) * (2 if power else 1) + sum(others), desc="questions, all rows", unit="q")

    def warming(self, way: Way, questions: int) -> list[int]:
        """Where the batches that do not count begin; from the front again where there are not enough."""
        turns = math.ceil(questions / way.batch)
        return list(itertools.islice(itertools.cycle(firsts(way, len(self.questions))), turns))

    def turn(self, way: Way, first: int) -> tuple[Turn, list[Reply]]:
        """Answer the batch that begins at question `first`."""
        self.use(way.attention)
        begin = perf_counter()
        batch = self.read(way, first)
        read = perf_counter()
        replies = self.answer(way, *batch)
        end = perf_counter()
        share = 1000 / way.batch
        return Turn.of(replies[0], (read - begin) * share, (end - begin) * share), replies

    def read(self, way: Way, first: int) -> tuple[list[str], list[list[Picture]]]:
        """Texts and pictures of a batch. Raises ValueError for a picture that cannot be read."""
        pictures = []
        for number in range(first, first + way.batch):
            shown, problem = self.reading[number]
            if problem is not None:
                name = self.questions[number].question_id
                raise ValueError(f"question {name}: {problem}; the bench needs questions without faults")
            pictures.append(shown)
        return [one.text for one in self.questions[first : first + way.batch]], pictures

    def answer(self, way: Way, texts: list[str], pictures: list[list[Picture]]) -> list[Reply]:
        try:
            return self.answerers[way.pruner].answer(texts, pictures)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"{way.pruner} at --batch {way.batch} with --attention {way.attention} does not fit into the device's "
                f"memory; give a smaller --batch"
            ) from error

    def peak_memory(self, way: Way) -> float:
        """MB of 10^6 bytes that activations take in the first batch, at their most."""
        self.use(way.attention)
        return peak_memory_mb(partial(self.answer, way, *self.read(way, 0)), self.device)

    def power(self, way: Way) -> Power:
        """Over the whole loop, again and again until it lasted `POWER_SECONDS`."""
        answered, begin = 0, perf_counter()
        with PowerMeter(partial(torch.cuda.power_draw, self.device)) as meter:
            while perf_counter() - begin < POWER_SECONDS:
                for first in firsts(way, len(self.questions)):
                    self.turn(way, first)
                    answered += way.batch
            seconds = perf_counter() - begin
        return Power(meter.watts, meter.watts * seconds / answered)

    def lengths(self, replies: Sequence[Reply]) -> list[int]:
        """Tokens of the answers, counted again from their text."""
        tokenizer = self.checkpoint.tokenizer
        return [len(tokenizer(reply.text, add_special_tokens=False).input_ids) for reply in replies]

    def use(self, attention: str) -> None:
        """Switch the attention of tower and language model, where it is another one."""
        if self.checkpoint.model.config._attn_implementation != attention:
            self.checkpoint.model.set_attn_implementation(attention)

    @contextmanager
    def attention_given_back(self) -> Iterator[None]:
        model = self.checkpoint.model
        tower = model.get_vision_tower().vision_tower
        before = model.config._attn_implementation, tower.config._attn_implementation
        model.set_attn_implementation(self.ways[0].attention)
        try:
            yield
        finally:
            model.set_attn_implementation(before[0])
            tower.set_attn_implementation(before[1])


def firsts(way: Way, questions: int) -> range:
    """Where the batches begin, full ones only."""
    return range(0, questions - way.batch + 1, way.batch)


def order_of_turns(ways: Sequence[Way], questions: int) -> Iterator[tuple[int, list[Way]]]:
    """(first question, ways that answer from there on), every way's batches in the end.

    Ways of one batch size follow each other on the same questions, each time beginning with another; the batch sizes
    advance through the questions together.
    """
    groups = {size: [way for way in ways if way.batch == size] for size in dict.fromkeys(way.batch for way in ways)}
    ends = sorted((first + size, size) for size, own in groups.items() for first in firsts(own[0], questions))
    for end, size in ends:
        lead = (end // size - 1) % len(groups[size])
        yield end - size, groups[size][lead:] + groups[size][:lead]


@contextmanager
def uncollected() -> Iterator[None]:
    """The garbage collector does not look through what is there now, which would take time in the middle of a turn."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
