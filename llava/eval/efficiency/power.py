"""Mean power of a GPU, sampled during the work."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable

import torch

INTERVAL = 0.05
"""Seconds between samples; the sensor itself averages over up to a second."""


def check_power(device: torch.device) -> None:
    """Raises ValueError, one line, where a GPU does not report its power."""
    try:
        torch.cuda.power_draw(device)
    except ModuleNotFoundError as error:
        raise ValueError("--power needs the package nvidia-ml-py: pip install nvidia-ml-py") from error
    except Exception as error:  # the driver's library has its own exception classes
        reason = " ".join(str(error).split())
        raise ValueError(f"--power: this GPU does not report its power ({reason}); leave --power out") from error


class PowerMeter:
    """Samples power in a thread while it is entered; `watts` is the mean of the samples.

    draw: returns the power in milliwatts, as `torch.cuda.power_draw` does.
    """

    def __init__(self, draw: Callable[[], float], interval: float = INTERVAL) -> None:
        self.draw = draw
        self.interval = interval
        self.samples: list[float] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PowerMeter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def watts(self) -> float:
        return statistics.fmean(self.samples) / 1000

    def _sample(self) -> None:
        self.samples.append(self.draw())
        while not self._done.wait(self.interval):
            self.samples.append(self.draw())
