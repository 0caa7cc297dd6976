"""Timing a call, naming the device, and keeping the allocator from adding noise."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch


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


def keep_freed_memory() -> None:
    """Tell glibc's allocator not to return large blocks to the system; does nothing where there is no glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
