"""Generates what strangers and accidents give to programs: pictures, base64, question files, pruner texts, flags.

Everything is made from a fixed seed, so that a failure can be repeated; `count` says how many there are.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

GOOD = {"question_id": "good", "image": "good.png", "text": "what is in this image"}


def encoded(picture: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


def noise(width: int = 24, height: int = 18, mode: str = "RGB") -> Image.Image:
    depth = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, *depth), dtype=np.uint8), mode)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(b"")) + part(b"IEND", b"")


def pictures() -> Iterator[tuple[str, bytes]]:
    """(name, content); most of them broken."""
    rng = random.Random(1)
    whole = {kind: encoded(noise(), kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")}
    for kind, content in whole.items():
        yield f"whole {kind}", content
        for _ in range(6):
            yield f"cut {kind}", content[: rng.randrange(len(content))]
        for _ in range(8):
            changed = bytearray(content)
            for _ in range(rng.randrange(1, 12)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            yield f"changed {kind}", bytes(changed)
    most = 2**31 - 1
    for size in ((0, 1), (1, 0), (most, 1), (1, most), (most, most), (60_000, 60_000), (9_000, 9_000)):
        yield f"claimed {size}", png_of_size(*size)
    for kind in ("EPS", "PDF", "ICO", "TGA", "PCX", "SGI"):
        yield f"other format {kind}", encoded(noise(), kind)
    yield "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    dos = b"\xc5\xd0\xd3\xc6" + struct.pack("<6IH", 32, 50, 0, 0, 0, 0, 0xFFFF)
    yield "DOS EPS", dos + b"%!PS-Adobe-3.0 EPSF-3.0\n"
    yield "SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    yield "floats", encoded(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF")
    yield "negative integers", encoded(Image.fromarray(np.full((4, 4), -5, np.int32)), "TIFF")
    yield "16 bits", encoded(Image.fromarray(np.full((4, 4), 0x8000, np.uint16)), "PNG")
    yield "alpha", encoded(noise(mode="RGBA"))
    yield "grey", encoded(noise(mode="L"))
    yield "one bit", encoded(noise().convert("1"))
    yield "CMYK", encoded(noise().convert("CMYK"), "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "on its side", encoded(noise(), "JPEG", exif=exif)
    for number in range(8):
        yield "random bytes", rng.randbytes(1 << number)
    yield "empty", b""
    for width, height in ((1, 20_000), (20_000, 1), (1, 100_000), (16_000, 240), (240, 16_000), (5_000, 1), (1, 1)):
        yield f"thin {width} x {height}", encoded(Image.new("RGB", (width, height), "red"))


def base64_forms(content: bytes) -> Iterator[str]:
    """One picture in every form that LLaVA's users send."""
    plain = base64.b64encode(content).decode()
    yield plain
    yield "\n".join(plain[at : at + 76] for at in range(0, len(plain), 76))
    yield plain.replace("A", "A\r\n ", 3)
    yield plain.rstrip("=")
    yield base64.urlsafe_b64encode(content).decode()
    yield base64.urlsafe_b64encode(content).decode().rstrip("=")
    yield f"data:image/png;base64,{plain}"
    yield f"  data:image/png;base64,{plain}\n"


def bad_base64() -> Iterator[object]:
    yield from ("!!!!", "a", "abcde", "data:image/png;base64,*", "ä", "\ud800", "a===b", b"\xff\xfe", 3, None, "AA\0A")


def question_lines() -> Iterator[bytes]:
    """Lines of a question file of which none can be used."""
    for value in (0, 1, False, True, "", {}, [""], [0], [[]], {"a": 1}, 2.5, "\ud800.png", ["good.png", None]):
        yield json.dumps(GOOD | {"image": value}).encode()
    for value in (None, "", [], {}, 3, True, "<image> what", "\ud83d"):
        yield json.dumps(GOOD | {"text": value}).encode()
    for value in (None, "", [], {}, True, 1.5, "\udfff"):
        yield json.dumps(GOOD | {"question_id": value}).encode()
    for key in GOOD:
        yield json.dumps({name: value for name, value in GOOD.items() if name != key}).encode()
    yield from (b"[1]", b"3", b"null", b'"text"', b"{", b"}", b"{'a': 1}", b"\xff\xfe{\x00", b"\x00\x00", b"nan")
    yield json.dumps(GOOD | {"text": "Zürich"}, ensure_ascii=False).encode("latin-1")
    yield b"[" * 200_000
    yield b'{"a":' * 100_000
    yield b'{"question_id": ' + b"9" * 5000 + b', "image": null, "text": "why"}'
    yield json.dumps(GOOD).encode()[:-5]
    yield json.dumps(GOOD).encode("utf-16")


def pictures_that_fail(folder: Path) -> Iterator[object]:
    """Values of `image` that are well formed and lead to no picture. Makes the files."""
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "eps.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    (folder / "empty.png").write_bytes(b"")
    (folder / "huge.png").write_bytes(png_of_size(60_000, 60_000))
    (folder / "loop.png").symlink_to("loop.png")
    yield from ("pipe.png", "folder.png", "eps.jpg", "empty.png", "huge.png", "loop.png", "gone.png", "/dev/zero")
    yield from ("a" * 300, "a\0b", "~nosuchuser/a.png", "/", ".", "..", "good.png/a", "/dev/null", "/proc/self/mem")
    yield ["good.png", "gone.png"]


def pruner_texts() -> Iterator[str]:
    rng = random.Random(2)
    alphabet = "flowcut:budget=64,/.-+e0 \n\0ä☃[]{}()'\"%\\"
    yield from ("", ":", "=", ",", "flowcut", "flowcut:", "flowcut:budget", "flowcut:budget=", "no:budget=4")
    for budget in ("0", "-1", "nan", "inf", "1e999", "0.0", "true", "６４", "__import__('os')", "9" * 5000):
        yield f"flowcut:budget={budget}"
    for more in ("budget=32", "no=1", "interval=0", "a=1," * 500, "layers=9/3", "layer=-1"):
        yield f"flowcut:budget=64,{more}"
    yield from ("pdrop:budget=64,layers=9/3", "fastv:budget=64,layer=-1", "../../flowcut:budget=4")
    for _ in range(60):
        yield "".join(rng.choices(alphabet, k=rng.randrange(1, 30)))


def flags() -> Iterator[list[str]]:
    """Flags of an answering program that cannot be."""
    for value in ("nan", "inf", "-1", "-inf"):
        yield ["--temperature", value]
    for value in ("0", "-1", "nan", "2", "inf"):
        yield ["--temperature", "1", "--top_p", value]
    for name in ("--num_beams", "--max_new_tokens", "--batch-size", "--limit", "--num-chunks"):
        yield [name, "0"]
        yield [name, "-3"]
    for name, value in (("--seed", "-1"), ("--seed", str(2**70)), ("--workers", "-1"), ("--chunk-idx", "5")):
        yield [name, value]
    for name in ("nope", "cuda:99", "meta", "cpu:x", " ", "cuda:-1"):
        yield ["--device", name]
    for name in ("~nosuchuser/q.jsonl", "/", "/dev/null", "gone.jsonl", "a" * 300, "a\0b"):
        yield ["--question-file", name]
    for name in ("/dev/null", "/", "/proc/no/a.jsonl", "a" * 300 + ".jsonl"):
        yield ["--answers-file", name]
        yield ["--answers-file", name, "--fresh"]
    for name in ("--conv-mode", "--pruner", "--model-path", "--host", "--dtype"):
        yield [name, "~nosuchuser/m"]


def count(tmp: Path) -> int:
    made: list[Callable[[], Iterator[object]]] = [pictures, bad_base64, question_lines, pruner_texts, flags]
    made += [lambda: base64_forms(b"x"), lambda: pictures_that_fail(tmp)]
    return sum(len(list(one())) for one in made)
