"""How information flows through a vision encoder: recorded, measured and drawn. `python -m flowcut.flow --help`.

`record` and `watch` run an encoder, `measures` holds what is computed, a `Study` is what is kept of several pictures.
Drawing needs matplotlib and is left to `flowcut.flow.report`.
"""

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
