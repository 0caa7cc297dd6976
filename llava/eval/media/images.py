"""Pictures from files and from the web. Reading itself, formats and limits are in `llava.pictures`."""

from __future__ import annotations

import http.client
from pathlib import Path

from PIL import Image

from llava.eval.media.fetch import fetch
from llava.given import one_line
from llava.pictures import FORMATS, LARGEST_PICTURE, decode_image, read_picture

__all__ = ["FORMATS", "LARGEST_PICTURE", "decode_image", "load_image"]

LARGEST_DOWNLOAD = 64 * 2**20  # bytes


def load_image(image_file: str | Path, allow_private: bool = False) -> Image.Image:
    """The picture in RGB, from a path or an http(s) address.

    allow_private: also fetch from loopback, private and link-local addresses; see `llava.eval.media.fetch.fetch`.

    Raises ValueError, one line, when it is missing, forbidden, too large, or cannot be read.
    """
    source = str(image_file)
    if not source.startswith(("http://", "https://")):
        return read_picture(source)
    try:
        return decode_image(fetch(source, LARGEST_DOWNLOAD, allow_private=allow_private))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ValueError(f"image {source} cannot be read ({one_line(error)})") from error
