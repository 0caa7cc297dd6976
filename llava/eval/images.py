"""Pictures from files and from the web."""

from __future__ import annotations

import io
import urllib.request
from pathlib import Path

from PIL import Image

LARGEST_DOWNLOAD = 64 * 2**20  # bytes
TIMEOUT = 30.0  # seconds without an answer from the server


def load_image(image_file: str | Path) -> Image.Image:
    """The picture in RGB, from a path or an http(s) address.

    Raises ValueError, one line, when it is missing or cannot be read.
    """
    source = str(image_file)
    try:
        if source.startswith(("http://", "https://")):
            content: Path | io.BytesIO = io.BytesIO(_download(source))
        else:
            content = Path(source).expanduser()
        with Image.open(content) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise ValueError(f"image {source} does not exist") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises on bad data
        raise ValueError(f"image {source} cannot be read ({error})") from error


def _download(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "llava-flowcut"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        content = response.read(LARGEST_DOWNLOAD + 1)
    if len(content) > LARGEST_DOWNLOAD:
        raise ValueError(f"larger than {LARGEST_DOWNLOAD >> 20} MiB")
    return content
