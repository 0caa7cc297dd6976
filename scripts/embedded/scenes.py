"""Procedural scenes of the embedded benchmark: their objects, and the positions of these on the patch grid.

A scene is 336 x 336 pixels, 24 x 24 patches of 14 pixels, LLaVA-1.5's geometry. It has coloured shapes, at most one
letter, high-contrast "confetti" that no question asks about (salient but irrelevant) and
a patterned background that one question type asks about (so that keeping only objects is not enough).

Everything is a function of an integer seed; nothing is downloaded and only this project's licence applies.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PATCH = 14
COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (40, 84, 214),
    "yellow": (240, 214, 40),
    "purple": (142, 60, 190),
    "orange": (244, 132, 30),
    "cyan": (50, 200, 214),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring")
LETTERS = "ACEHKSTUXZ"
PATTERNS = ("plain", "striped", "dotted", "checkered")

COLOUR_NAMES = tuple(COLOURS)
# class numbers of a patch: 0 is background; letters and confetti count as shapes without a colour
CONFETTI_CLASS = 1 + len(SHAPES) + len(LETTERS)
SHAPE_CLASSES = CONFETTI_CLASS + 1
COLOUR_CLASSES = 1 + len(COLOURS)


@dataclass(frozen=True)
class Thing:
    """One drawn item, centre and radius in pixels: a coloured shape, a letter, or confetti (none of the three)."""

    x: float
    y: float
    radius: float
    colour: str | None = None
    shape: str | None = None
    letter: str | None = None

    @property
    def colour_class(self) -> int:
        return 1 + COLOUR_NAMES.index(self.colour) if self.colour else 0

    @property
    def shape_class(self) -> int:
        if self.shape:
            return 1 + SHAPES.index(self.shape)
        return 1 + len(SHAPES) + LETTERS.index(self.letter) if self.letter else CONFETTI_CLASS


@dataclass(frozen=True)
class Scene:
    """The contents of a picture. ``size`` is its side in pixels, ``texture_seed`` determines all other details."""

    size: int
    pattern: str
    things: tuple[Thing, ...]
    texture_seed: int

    @property
    def objects(self) -> list[Thing]:
        return [thing for thing in self.things if thing.shape]

    @property
    def letter(self) -> Thing | None:
        return next((thing for thing in self.things if thing.letter), None)


@dataclass(frozen=True)
class PatchLabels:
    """Per patch, row-major ``[P]``: class numbers, covered fraction, and its object's centre ``[P, 2]`` (x, y in
    0..1).
    """

    colour: np.ndarray
    shape: np.ndarray
    covered: np.ndarray
    centre: np.ndarray


def compose(rng: np.random.Generator, size: int = 336) -> Scene:
    """A random scene. A third of the objects copy an existing colour or shape, so that questions need both."""
    area = (size / 336) ** 2
    wanted: list[dict] = []
    for _ in range(max(2, int(rng.integers(4, 8) * area**0.6))):
        colour, shape = str(rng.choice(COLOUR_NAMES)), str(rng.choice(SHAPES))
        others = [item for item in wanted if "shape" in item]
        if others and rng.random() < 0.35:
            twin = others[rng.integers(len(others))]
            colour, shape = (twin["colour"], shape) if rng.random() < 0.5 else (colour, twin["shape"])
        wanted.append({"radius": rng.uniform(21, 33), "colour": colour, "shape": shape})
    if rng.random() < 0.5:
        wanted.append({"radius": rng.uniform(24, 32), "letter": str(rng.choice(list(LETTERS)))})
    wanted += [{"radius": rng.uniform(12, 20)} for _ in range(int(rng.integers(0, 4) * area**0.6))]

    things: list[Thing] = []
    for item in wanted:
        radius = item["radius"]
        for _ in range(40):
            x, y = rng.uniform(radius + 2, size - radius - 2, 2)
            if all(np.hypot(x - t.x, y - t.y) > radius + t.radius + 3 for t in things):
                things.append(Thing(float(x), float(y), **item))
                break
    return Scene(size, str(rng.choice(PATTERNS)), tuple(things), int(rng.integers(2**31)))


def inside(thing: Thing, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which of the points (pixels, broadcast together) are inside the outline of ``thing``."""
    u, v = (x - thing.x) / thing.radius, (y - thing.y) / thing.radius
    if thing.letter or not thing.shape:
        return np.maximum(abs(u), abs(v)) < 0.9
    rho = np.hypot(u, v)
    if thing.shape == "circle":
        return rho < 0.95
    if thing.shape == "square":
        return np.maximum(abs(u), abs(v)) < 0.85
    if thing.shape == "triangle":
        return (v < 0.8) & (abs(u) < (v + 1.0) * 0.55)
    if thing.shape == "cross":
        return (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 1.0)
    if thing.shape == "diamond":
        return abs(u) + abs(v) < 1.0
    if thing.shape == "ring":
        return (rho < 1.0) & (rho > 0.58)
    # star: the straight edge between an outer point (radius 1) and the next inner one (radius 0.42), repeated five
    # times
    angle = abs((np.arctan2(u, -v) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    inner_x, inner_y = 0.42 * np.cos(np.pi / 5), 0.42 * np.sin(np.pi / 5)
    px, py = rho * np.cos(angle), rho * np.sin(angle)
    return (px - 1.0) * inner_y - py * (inner_x - 1.0) < 0


@lru_cache(maxsize=256)
def _glyph(letter: str, side: int) -> np.ndarray:
    canvas = Image.new("L", (side, side))
    font = ImageFont.load_default(side * 0.95)
    ImageDraw.Draw(canvas).text((side / 2, side / 2), letter, 255, font, anchor="mm", stroke_width=max(1, side // 20))
    return np.asarray(canvas, np.float32) / 255


@lru_cache(maxsize=1)
def _noise_pool() -> np.ndarray:
    """Four fixed noise tiles to crop from; normal draws per picture would take longer than everything else."""
    return np.random.default_rng(20).normal(0, 7, (4, 504, 504, 3)).astype(np.float32)


def _background(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    size = scene.size
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    angle = rng.choice([0, 1, 2, 3]) * np.pi / 4
    period = rng.uniform(18, 28)
    phase_x, phase_y = rng.uniform(0, period, 2)
    if scene.pattern == "striped":
        wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle) + phase_x) / period) > 0
    elif scene.pattern == "dotted":
        wave = np.hypot((x + phase_x) % period - period / 2, (y + phase_y) % period - period / 2) < period * 0.25
    elif scene.pattern == "checkered":
        wave = (((x + phase_x) // (period / 2)) + ((y + phase_y) // (period / 2))) % 2 > 0
    else:
        wave = np.zeros_like(x)
    tint = rng.uniform(95, 165) + rng.uniform(-14, 14, 3)
    contrast = rng.uniform(22, 34) * rng.choice([-1, 1])
    top, left = rng.integers(0, 504 - size + 1, 2)
    noise = _noise_pool()[rng.integers(4), top : top + size, left : left + size]
    return (tint + contrast * wave[..., None] + noise).astype(np.float32)


def _coverage(thing: Thing, side: int, samples: int) -> tuple[tuple[slice, slice], np.ndarray]:
    """The box of patches around ``thing`` and its outline there, sampled ``samples`` times per patch side (0 or 1)."""
    left, top = (max(0, int((p - thing.radius) // PATCH)) for p in (thing.x, thing.y))
    right, bottom = (min(side, int((p + thing.radius) // PATCH) + 1) for p in (thing.x, thing.y))
    step = PATCH / samples
    ys = np.arange(top * samples, bottom * samples, dtype=np.float32)[:, None] * step + step / 2
    xs = np.arange(left * samples, right * samples, dtype=np.float32)[None] * step + step / 2
    return (slice(top, bottom), slice(left, right)), inside(thing, xs, ys).astype(np.float32)


def label_patches(scene: Scene, samples: int = 4) -> PatchLabels:
    """The contents of each patch, without drawing: the object that covers most of it."""
    side = scene.size // PATCH
    colour, shape = np.zeros((side, side), np.int64), np.zeros((side, side), np.int64)
    covered, centre = np.zeros((side, side), np.float32), np.zeros((side, side, 2), np.float32)
    for thing in scene.things:
        box, mask = _coverage(thing, side, samples)
        rows, columns = (s.stop - s.start for s in box)
        share = mask.reshape(rows, samples, columns, samples).mean((1, 3))
        more = share > covered[box]
        covered[box] = np.where(more, share, covered[box])
        colour[box] = np.where(more, thing.colour_class, colour[box])
        shape[box] = np.where(more, thing.shape_class, shape[box])
        centre[box] = np.where(more[..., None], np.array([thing.x, thing.y]) / scene.size, centre[box])
    return PatchLabels(colour.ravel(), shape.ravel(), covered.ravel(), centre.reshape(-1, 2))


def draw(scene: Scene) -> np.ndarray:
    """The picture, ``uint8 [size, size, 3]``."""
    rng = np.random.default_rng(scene.texture_seed)
    picture = _background(scene, rng)
    for thing in scene.things:
        box, mask = _coverage(thing, scene.size // PATCH, 2 * PATCH)
        rows, columns = ((s.stop - s.start) * PATCH for s in box)
        mask = mask.reshape(rows, 2, columns, 2).mean((1, 3))  # two samples per pixel side: soft edges
        top, left = box[0].start * PATCH, box[1].start * PATCH
        window = picture[top : top + rows, left : left + columns]
        if thing.colour:
            paint = np.array(COLOURS[thing.colour], np.float32) + rng.uniform(-16, 16, 3)
            paint = paint + rng.normal(0, 5, (rows, columns, 1))
        elif thing.letter:
            glyph = _glyph(thing.letter, int(thing.radius * 1.8))
            ink = np.zeros((rows, columns), np.float32)
            y0, x0 = (max(0, round(p - len(glyph) / 2)) for p in (thing.y - top, thing.x - left))
            part = glyph[: rows - y0, : columns - x0]
            ink[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] = part
            paint = np.where(ink[..., None] > 0.5, 20.0, 235.0)
        else:
            cells = rng.integers(0, 2, (rows // 5 + 1, columns // 5 + 1)) * 235.0
            paint = np.kron(cells, np.ones((5, 5)))[:rows, :columns, None]
        window += mask[..., None] * (paint - window)
    return picture.clip(0, 255).astype(np.uint8)
