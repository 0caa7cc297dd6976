"""Videos made on the spot: frame number `i` has one colour that tells `i`."""

from pathlib import Path

import numpy as np
import pytest


def write_video(
    path: Path, frames: int, size: tuple[int, int] = (64, 48), codec: str = "mpeg4", rate: int = 10
) -> Path:
    """A video whose frame `i` is grey of brightness 20 + 7 * i, with a white square in the top left corner."""
    av = pytest.importorskip("av")
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"qmin": "1", "qmax": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            picture = np.full((height, width, 3), 20 + 7 * number, dtype=np.uint8)
            picture[:8, :8] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def number_of(picture) -> int:
    """Which frame a picture is."""
    return round((np.asarray(picture)[16:, 16:].mean() - 20) / 7)
