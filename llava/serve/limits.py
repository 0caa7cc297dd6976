"""Limits of the pictures of a request or an upload, checked before a model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.given import decode_base64
from llava.pictures import LARGEST_PICTURE, LARGEST_RATIO, decode_image

LARGEST_UPLOAD = 20 * 2**20  # bytes
PATIENCE = 600.0  # seconds without a token after which a generation is aborted
MOST_PICTURES = 32


@dataclass(frozen=True)
class PictureLimits:
    """Bytes of each image, pixels of all images of a request together, and their number.

    An image counts as the square around it, because many checkpoints pad to that.
    """

    image_bytes: int = LARGEST_UPLOAD
    image_pixels: int = LARGEST_PICTURE
    images: int = MOST_PICTURES


DEFAULT_LIMITS = PictureLimits()


def check_shape(image: Image.Image, largest: int) -> int:
    """The pixels of the square around a picture. Raises ValueError, one line, for more than `largest`, or when the
    picture is too elongated.
    """
    short, long = sorted(image.size)
    if long > LARGEST_RATIO * short:
        raise ValueError(
            f"{image.width} x {image.height} pixels are too elongated; at most {LARGEST_RATIO} to 1; crop it"
        )
    if long * long > largest:
        raise ValueError(
            f"{image.width} x {image.height} pixels, padded to a square, are more than {largest}; make it smaller"
        )
    return long * long


def decode_images(prompt: str, texts: Sequence[str], limits: PictureLimits = DEFAULT_LIMITS) -> list[Image.Image]:
    """The pictures of a prompt, from base64. Raises ValueError, one line, when their number does not fit the prompt,
    or naming the first one that is invalid or exceeds the limits; nothing after that one is decoded.
    """
    places = prompt.count(DEFAULT_IMAGE_TOKEN)
    if places != len(texts):
        raise ValueError(f"{len(texts)} images for {places} <image> in the prompt; give one for each")
    if len(texts) > limits.images:
        raise ValueError(f"{len(texts)} images are more than {limits.images}; send fewer")
    images, left = [], limits.image_pixels
    for number, text in enumerate(texts, start=1):
        try:
            if len(text) * 3 // 4 > limits.image_bytes:
                raise ValueError(f"larger than {limits.image_bytes} bytes")
            image = decode_image(decode_base64(text), left)
            left -= check_shape(image, left)
        except ValueError as error:
            shared = f" (all images together have {limits.image_pixels})" if number > 1 else ""
            raise ValueError(f"image {number}: {error}{shared}") from error
        images.append(image)
    return images


def read_upload(path: str | Path) -> Image.Image:
    """An uploaded picture in RGB; by its content, whatever its name says. Raises ValueError, one line."""
    try:
        image = decode_image(Path(path).read_bytes())
        check_shape(image, LARGEST_PICTURE)
    except (OSError, ValueError) as error:
        raise ValueError(f"the picture cannot be read ({error})") from error
    return image
