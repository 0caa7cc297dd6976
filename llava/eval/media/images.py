"""Pictures from files, from bytes and from the web."""

from __future__ import annotations

import http.client
import io
import warnings
from pathlib import Path

from PIL import Image

from llava.eval.media.fetch import fetch

LARGEST_DOWNLOAD = 64 * 2**20  # bytes
LARGEST_PICTURE = 89_478_485  # pixels; above this Pillow warns of a decompression bomb
# Formats for untrusted input. Pillow passes some others (EPS) to external programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
# Errors of Pillow and the network on invalid data.
_FAILURES = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, http.client.HTTPException)


def load_image(image_file: str | Path, allow_private: bool = False) -> Image.Image:
    """The picture in RGB, from a path or an http(s) address.

    allow_private: also fetch from loopback, private and link-local addresses; see `llava.eval.media.fetch.fetch`.

    Raises ValueError, one line, when it is missing, forbidden, too large, or cannot be read.
    """
    source = str(image_file)
    try:
        if source.startswith(("http://", "https://")):
            return decode_image(fetch(source, LARGEST_DOWNLOAD, allow_private=allow_private))
        return _decode(Path(source).expanduser(), LARGEST_PICTURE, None)
    except FileNotFoundError:
        raise ValueError(f"image {source} does not exist") from None
    except _FAILURES as error:
        raise ValueError(f"image {source} cannot be read ({_one_line(error)})") from error


def decode_image(content: bytes, largest: int = LARGEST_PICTURE) -> Image.Image:
    """The picture in RGB in untrusted bytes, in one of FORMATS, of at most `largest` pixels.

    Raises ValueError, one line.
    """
    try:
        return _decode(io.BytesIO(content), largest, FORMATS)
    except Image.UnidentifiedImageError:
        raise ValueError(f"{len(content)} bytes hold no picture; send one of {', '.join(FORMATS)}") from None
    except _FAILURES as error:
        raise ValueError(_one_line(error)) from error


def _decode(content: Path | io.BytesIO, largest: int, formats: tuple[str, ...] | None) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower, and an error
        with Image.open(content, formats=formats) as image:  # reads the header only
            if image.width * image.height > largest:
                raise ValueError(f"{image.width} x {image.height} pixels are more than {largest}; make it smaller")
            return image.convert("RGB")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
