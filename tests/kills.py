"""Programs that are killed at random moments, as by `kill -9`. KILLS=20 in the environment asks for 20 of them."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence

KILLS = int(os.environ.get("KILLS", "1"))


class Killer:
    """Runs a program in processes of its own, which need not import it anew.

    Attributes:
        seconds: how long the program took that was left alone.
        killed: how many runs were killed.
    """

    def __init__(self, main: Callable[[Sequence[str]], object]):
        self.main = main
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["llava.eval.model_vqa_loader", "llava.train.train"])
        self.seconds, self.killed = 0.0, 0

    def run(self, argv: Sequence[str], until: float | None = None) -> bool:
        """Whether the program was killed, `until` seconds after its start."""
        process = self.context.Process(target=self.main, args=(list(argv),))
        process.start()
        start = time.monotonic()
        process.join(until)
        if process.exitcode is None:
            process.kill()
            process.join()
            self.killed += 1
            return True
        assert process.exitcode == 0
        if until is None:
            self.seconds = time.monotonic() - start
        return False

    def moments(self) -> Iterator[float]:
        """KILLS moments of an unbroken run, other ones each time; then earlier ones, until a run was killed.

        The machine may have been busier while the unbroken run was timed.
        """
        seed = random.randrange(1000)
        print(f"moments of seed {seed}")  # pytest shows it where a test fails
        draw = random.Random(seed)
        latest, before = self.seconds, self.killed
        for number in itertools.count():
            if number >= KILLS:
                if self.killed > before:
                    return
                latest /= 2
            yield draw.uniform(0, latest)
