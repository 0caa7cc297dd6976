"""The one reader of pictures: allowed formats, limits of size and memory, colour modes.

Pictures may come from strangers, and a small file can describe a huge picture. A format that Pillow passes to an
external program (PostScript, to Ghostscript) is never tried, whatever a file is called.
"""

from __future__ import annotations

import io
import logging
import math
import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from llava.given import home_path, one_line

logger = logging.getLogger(__name__)

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
LARGEST_PICTURE = 89_478_485  # pixels; above this Pillow warns of a decompression bomb
LARGEST_SQUARE = 2**24  # pixels of a padded picture that is thin; others may have four times their own
_BAND = 256  # rows
LARGEST_RATIO = 200  # of the sides, where the short side is resized; Qwen2-VL's processor has the same limit


def read_picture(path: str | Path, largest: int = LARGEST_PICTURE) -> Image.Image:
    """The picture in RGB in a regular file, in one of FORMATS, of at most `largest` pixels.

    It is not turned by its EXIF orientation, as in LLaVA; a warning says so once.
    Raises ValueError, one line, when the file is missing, no regular one, or cannot be read.
    """
    try:
        picture, turned = _decode(_regular_file(path), largest)
    except FileNotFoundError:
        raise ValueError(f"image {path} does not exist") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"image {path} cannot be read (it is none of {', '.join(FORMATS)})") from None
    except Exception as error:  # Pillow's decoders raise errors of any class on damaged data
        raise ValueError(f"image {path} cannot be read ({one_line(error)})") from error
    if turned:
        _tell_of_orientation(str(path))
    return picture


def _regular_file(path: str | Path) -> Path:
    file = home_path(path)
    if not stat.S_ISREG(file.stat().st_mode):  # a pipe would be waited for, and a device may never end
        raise ValueError("it is not a regular file")
    return file


def picture_names(text: str, separator: str = ",") -> list[str]:
    """The names in a flag's text, between separators. A file of the whole name is one picture."""
    if os.path.isfile(text):
        return [text]
    return [name.strip() for name in text.split(separator) if name.strip()] if separator else [text]


def decode_image(content: bytes, largest: int = LARGEST_PICTURE) -> Image.Image:
    """The picture in RGB in bytes, in one of FORMATS, of at most `largest` pixels. Raises ValueError, one line."""
    try:
        return _decode(io.BytesIO(content), largest)[0]
    except Image.UnidentifiedImageError:
        raise ValueError(f"{len(content)} bytes hold no picture; send one of {', '.join(FORMATS)}") from None
    except Exception as error:
        raise ValueError(one_line(error)) from error


def opened(content: Path | io.BytesIO, largest: int = LARGEST_PICTURE) -> Image.Image:
    """The picture in its own mode, its pixels not read yet. Raises ValueError for too many, and Pillow's errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower, and an error
        image = Image.open(content, formats=FORMATS)  # reads the header only
    if image.width * image.height > largest:
        size = f"{image.width} x {image.height}"
        image.close()
        raise ValueError(f"{size} pixels are more than {largest}; make it smaller")
    return image


def _decode(content: Path | io.BytesIO, largest: int) -> tuple[Image.Image, bool]:
    """-> the picture in RGB, and whether its EXIF says that it lies on a side."""
    with opened(content, largest) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
        return as_rgb(image), turned


def as_rgb(image: Image.Image) -> Image.Image:
    """In RGB of 8 bits. 16 bits are scaled; Pillow alone would clip them, to white.

    Raises ValueError for float values and for larger integers, whose range is unknown.
    """
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_high_bytes(image))
    return image.convert("RGB")


def _high_bytes(image: Image.Image) -> np.ndarray:
    """[height, width], the upper 8 of 16 bits; band by band, since large pictures have no room for copies."""
    high = np.empty((image.height, image.width), np.uint8)
    for top in range(0, image.height, _BAND):
        values = np.asarray(image.crop((0, top, image.width, min(top + _BAND, image.height))))
        if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError(f"its mode {image.mode} has no known range of brightness; convert it to 8 or 16 bits")
        high[top : top + _BAND] = values.astype(np.uint16) >> 8
    return high


_told: list[str] = []


def _tell_of_orientation(path: str) -> None:
    if not _told:
        _told.append(path)
        logger.warning("%s has an EXIF orientation; pictures are used as they are stored, as in LLaVA", path)


def small_enough_for_a_square(image: Image.Image) -> Image.Image:
    """The picture; shrunk if padding it to a square would take far more pixels than it has itself."""
    own, longest = image.width * image.height, max(image.size)
    limit = math.isqrt(min(max(LARGEST_SQUARE, 4 * own), LARGEST_PICTURE))
    if longest <= limit:
        return image
    width, height = (max(1, round(side * limit / longest)) for side in image.size)
    return image.resize((width, height))


def middle_of_a_thin_one(image: Image.Image, ratio: int = LARGEST_RATIO) -> Image.Image:
    """The picture; its middle if one side is more than `ratio` times the other.

    For preprocessing that resizes the short side and crops the centre: the ends would be computed, and cut off.
    """
    long, short = max(image.size), min(image.size)
    cut = long - ratio * short
    if cut <= 0:
        return image
    start = cut // 2
    end = long - (cut - start)
    return image.crop((start, 0, end, short) if image.width == long else (0, start, short, end))
