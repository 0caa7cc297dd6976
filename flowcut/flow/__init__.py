"""How information flows through a vision encoder: recorded, measured and drawn. `python -m flowcut.flow --help`.

`record` and `watch` run an encoder, `measures` holds what is computed, a `Study` is what is kept of several pictures.
Drawing needs matplotlib and is left to `flowcut.flow.report`. The names below are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowcut.flow.record import ImageFlow, Recorder, WatchedRun, record, watch
    from flowcut.flow.study import Run, Study, make_study
    from flowcut.flow.subject import Subject, load_subject

__all__ = [
    "ImageFlow",
    "Recorder",
    "Run",
    "Study",
    "Subject",
    "WatchedRun",
    "load_subject",
    "make_study",
    "record",
    "watch",
]
MODULES = ("record", "study", "subject")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in MODULES:
            found = import_module(f"{__name__}.{module}")
            if hasattr(found, name):
                return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
