"""Frames of a video as in Video-LLaVA: evenly spread from the first to the last, always the same ones.

Videos are decoded from the beginning without seeking, so that frame numbers are exact in every container. The length
stated by a container is only a hint: the frames are chosen again if the actual number differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from llava.given import home_path

DECODERS = ("pyav", "torchcodec")
# Videos by file extension. A GIF counts as a picture: its first frame.
SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv")


class Clip(NamedTuple):
    """Frames of a video.

    frames: RGB pictures in order of time. indices: their numbers in the video, from 0. total: frames the video has.
    rate: frames per second as stated by the container, or None.
    """

    frames: list[Image.Image]
    indices: list[int]
    total: int
    rate: float | None

    @property
    def sampled_rate(self) -> float:
        """Sampled frames per second of video; an unknown rate counts as 24."""
        return len(self.indices) / self.total * (self.rate or 24.0)


def is_video(name: str) -> bool:
    """Whether a file's name is that of a video."""
    return name.lower().endswith(SUFFIXES)


def spread(total: int, count: int) -> list[int]:
    """`count` frame numbers from the first to the last of `total`, evenly spread and rounded down.

    They repeat where the video has fewer frames than requested. Raises ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"frames={count} is not a number of frames; give 1 or more")
    return np.linspace(0, total - 1, count).astype(int).tolist()


def sample_frames(path: str | Path, count: int = 8, decoder: str = "pyav") -> Clip:
    """`count` frames of a video, the first and the last among them.

    decoder: one of DECODERS, each a package that has to be installed. The choice does not depend on installed
        packages, because decoders convert colours slightly differently.

    A damaged video is an error even if its first frames can be read, because an answer to a part of a video would look
    like any other. Raises ValueError, one line.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder={decoder!r} is unknown; use {' or '.join(DECODERS)}")
    package = {"pyav": "av", "torchcodec": "torchcodec"}[decoder]
    if find_spec(package) is None:
        raise ValueError(f"videos are read with {package}, which is not installed; pip install {package}")
    file = home_path(path)
    if not file.is_file():
        raise ValueError(f"video {file} does not exist")
    return _with_pyav(file, count) if decoder == "pyav" else _with_torchcodec(file, count)


def _with_pyav(file: Path, count: int) -> Clip:
    import av

    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise ValueError(f"video {file} has no pictures; give a file with a video stream")
            stream = container.streams.video[0]
            claimed, rate = stream.frames, stream.average_rate
        wanted = spread(claimed, count) if claimed else []
        frames, total = _decode(file, wanted)
        if total == 0:
            raise ValueError(f"video {file} has no frame that can be decoded; copy it again")
        if total != claimed:
            wanted = spread(total, count)
            frames, total = _decode(file, wanted)
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"video {file} cannot be read ({' '.join(str(error).split())}); copy it again") from error
    return Clip([frames[index] for index in wanted], wanted, total, float(rate) if rate else None)


def _decode(file: Path, wanted: Sequence[int]) -> tuple[dict[int, Image.Image], int]:
    """The wanted frames by number, and how many frames there are."""
    import av
    from av.video.reformatter import VideoReformatter

    # By default PyAV converts colours in several threads, which hangs in a forked reader process.
    one_thread = {"threads": 1} if "threads" in (VideoReformatter.reformat.__doc__ or "") else {}
    frames: dict[int, Image.Image] = {}
    chosen, total = set(wanted), 0
    with av.open(str(file)) as container:
        for frame in container.decode(video=0):
            if total in chosen:
                frames[total] = frame.to_image(**one_thread)
            total += 1
    return frames, total


def _with_torchcodec(file: Path, count: int) -> Clip:
    from torchcodec.decoders import VideoDecoder

    try:
        decoder = VideoDecoder(str(file), seek_mode="exact", dimension_order="NHWC")
        wanted = spread(len(decoder), count)
        pictures = decoder.get_frames_at(wanted).data
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"video {file} cannot be read ({str(error).split(chr(10))[0]}); copy it again") from error
    rate = decoder.metadata.average_fps
    return Clip([Image.fromarray(picture.numpy()) for picture in pictures], wanted, len(decoder), rate)
