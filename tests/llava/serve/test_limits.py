"""Limits of pictures."""

import base64

import pytest
from PIL import Image

from llava.serve.limits import PictureLimits, check_shape, decode_images, read_upload

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n"


def test_pictures_are_checked_one_by_one(pictures, as_base64):
    good = as_base64(pictures[0])
    assert decode_images("<image>", [good])[0].size == pictures[0].size
    for bad, said in {
        "not base64!": "image 2: not base64",
        base64.b64encode(b"no picture").decode(): "image 2: 10 bytes hold no picture",
        base64.b64encode(EPS).decode(): f"image 2: {len(EPS)} bytes hold no picture; send one of BMP, GIF, JPEG",
        good[: len(good) // 2 // 4 * 4]: "image 2: ",
    }.items():
        with pytest.raises(ValueError, match=said) as error:
            decode_images("<image><image>", [good, bad])
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="image 1: larger than 100 bytes"):
        decode_images("<image>", [good], PictureLimits(image_bytes=100))
    with pytest.raises(ValueError, match="image 1: 56 x 40 pixels are more than 2000"):
        decode_images("<image>", [good], PictureLimits(image_pixels=2000))


def test_placeholders_and_pictures_are_counted_before_anything_is_decoded(monkeypatch):
    monkeypatch.setattr("llava.serve.limits.decode_image", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match="20 images for 0 <image> in the prompt"):
        decode_images("what is this", ["?"] * 20)
    with pytest.raises(ValueError, match="40 images are more than 32; send fewer"):
        decode_images("<image>" * 40, ["?"] * 40)


def test_all_pictures_of_a_request_share_the_pixels(pictures, as_base64):
    """Each counts as the square that it is padded to: 56 x 56."""
    texts = [as_base64(pictures[0])] * 3
    assert len(decode_images("<image>" * 3, texts, PictureLimits(image_pixels=3 * 56**2))) == 3
    with pytest.raises(ValueError, match=r"image 3: 56 x 40 pixels, padded to a square, are more than 3135; .*9407"):
        decode_images("<image>" * 3, texts, PictureLimits(image_pixels=3 * 56**2 - 1))


@pytest.mark.parametrize("size", [(1, 20_000), (100_000, 1), (1, 201)])
def test_thin_pictures_are_refused(size, as_base64, tmp_path):
    picture = Image.new("1", size)
    with pytest.raises(ValueError, match=f"image 1: {size[0]} x {size[1]} pixels are too elongated; at most 200 to 1"):
        decode_images("<image>", [as_base64(picture)])
    picture.save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"the picture cannot be read .*too elongated"):
        read_upload(tmp_path / "a.png")


def test_the_square_around_a_picture_counts():
    assert check_shape(Image.new("1", (200, 1)), 40_000) == 40_000
    with pytest.raises(ValueError, match="16000 x 240 pixels, padded to a square, are more than 89478485"):
        check_shape(Image.new("1", (16_000, 240)), 89_478_485)


@pytest.mark.parametrize("content", [EPS, b"", b"\x89PNG\r\n\x1a\nbroken", b"<svg/>"])
def test_an_upload_is_what_it_contains_and_nothing_external_is_run(content, tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "holiday.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"^the picture cannot be read \(") as error:
        read_upload(tmp_path / "holiday.jpg")
    assert "\n" not in str(error.value)
