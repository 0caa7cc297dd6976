"""Input and output of all answering models: generation settings, and a reply with its costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

DTYPES = ("float32", "float16", "bfloat16")
BACKENDS = ("auto", "llava", "transformers")
LARGEST_SEED = 2**32  # a question's number is added, and torch takes 64 bits


def check_device(name: str | None) -> None:
    """Raise ValueError, one line, for a device that does not exist; None is the default one."""
    import torch  # not before the flags are read

    try:
        device = torch.device(name or "cpu")
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(f"device {name!r} is unknown; use cuda, cuda:1, mps or cpu") from None
    if device.type not in ("cpu", "cuda", "mps", "xpu", "npu"):
        raise ValueError(f"models cannot run on device {name!r}; use cuda, cuda:1, mps or cpu")
    if device.type == "cuda" and (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise ValueError(f"device {name} does not exist: this machine has {torch.cuda.device_count()} GPUs; use cpu")


@dataclass(frozen=True)
class Generation:
    """Generation settings. Temperature 0 is greedy; `seed` has an effect above 0 only.

    Raises ValueError, one line, for values that cannot be.
    """

    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1
    max_new_tokens: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name, right, allowed in (
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "more than 0, up to 1"),
            ("num_beams", self.num_beams >= 1, "1 or more"),
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("seed", 0 <= self.seed < LARGEST_SEED, f"0 to {LARGEST_SEED - 1}"),
        ):
            if not right:
                raise ValueError(f"{name}={getattr(self, name)} is not possible; give {allowed}")

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of transformers' generate."""
        sampling = self.temperature > 0
        return {
            "do_sample": sampling,
            "temperature": self.temperature if sampling else None,
            "top_p": self.top_p if sampling else None,
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_new_tokens,
            "use_cache": True,
        }


class Reply(NamedTuple):
    """An answer and its cost.

    tokens: visual tokens before the encoder's first layer and after each of its layers, without CLS.
    visual_tokens, text_tokens: tokens that the language model read. language_tokens: visual tokens that enter each of
    its layers, for pruners that cut there; else None. ms: from pixels to the end of the answer; encode_ms,
    projector_ms, prefill_ms, decode_ms: parts of it, see `Stopwatch`. The time of a batch is divided evenly among its
    questions.
    """

    text: str
    tokens: list[int]
    visual_tokens: int
    text_tokens: int
    ms: float
    encode_ms: float
    prefill_ms: float
    language_tokens: list[int] | None = None
    projector_ms: float | None = None
    decode_ms: float = 0.0

    def metadata(self) -> dict[str, Any]:
        """Everything but the text, for the answer line."""
        values = {name: value for name, value in self._asdict().items() if name != "text" and value is not None}
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}
