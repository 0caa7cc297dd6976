"""Questions, answers and captions of a scene: the embedded benchmark's eight question types.

``exist`` (in the manner of POPE: half yes, negatives mostly adversarial), ``color``, ``shape``, ``where``,
``relation``, ``count``, ``letter`` and ``background``. The answers of a type are uniformly distributed, so that a
blind model is at chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from scripts.embedded.scenes import COLOUR_NAMES, PATTERNS, SHAPES, Scene, Thing

PLURAL = {shape: shape + "s" for shape in SHAPES} | {"cross": "crosses"}
NUMBERS = ("zero", "one", "two", "three")
APART = 30  # minimal pixels between two objects, or an object and the centre, for left/right or above/below questions


class SceneQuestion(NamedTuple):
    kind: str
    text: str
    answer: str


def _pick(rng: np.random.Generator, items: list):
    return items[int(rng.integers(len(items)))]


def _references(scene: Scene) -> list[tuple[str, Thing]]:
    """Every phrase that names exactly one object of the scene."""
    objects = scene.objects
    phrases = []
    for thing in objects:
        if sum(o.shape == thing.shape for o in objects) == 1:
            phrases.append((f"the {thing.shape}", thing))
        if sum(o.colour == thing.colour for o in objects) == 1:
            phrases.append((f"the {thing.colour} object", thing))
        if sum((o.colour, o.shape) == (thing.colour, thing.shape) for o in objects) == 1:
            phrases.append((f"the {thing.colour} {thing.shape}", thing))
    return phrases


def _exist(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    present = {(str(o.colour), str(o.shape)) for o in scene.objects}
    if rng.random() < 0.5:
        colour, shape = _pick(rng, sorted(present))
        answer = "yes"
    else:
        colours, shapes = sorted({c for c, _ in present}), sorted({s for _, s in present})
        if rng.random() < 0.7:  # adversarial: colour and shape both exist, on different objects
            absent = [(c, s) for c in colours for s in shapes if (c, s) not in present]
        else:
            absent = [(c, s) for c in COLOUR_NAMES for s in SHAPES if (c in colours) != (s in shapes)]
        if not absent:
            return None
        colour, shape = _pick(rng, absent)
        answer = "no"
    article = "an" if colour == "orange" else "a"
    return SceneQuestion("exist", f"Is there {article} {colour} {shape} in the image?", answer)


def _color(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    unique = [o for o in scene.objects if sum(p.shape == o.shape for p in scene.objects) == 1]
    if not unique:
        return None
    thing = _pick(rng, unique)
    return SceneQuestion("color", f"What color is the {thing.shape}?", str(thing.colour))


def _shape(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    unique = [o for o in scene.objects if sum(p.colour == o.colour for p in scene.objects) == 1]
    if not unique:
        return None
    thing = _pick(rng, unique)
    return SceneQuestion("shape", f"What shape is the {thing.colour} object?", str(thing.shape))


def _where(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    middle = scene.size / 2
    clear = [(p, t) for p, t in _references(scene) if min(abs(t.x - middle), abs(t.y - middle)) > APART]
    if not clear:
        return None
    phrase, thing = _pick(rng, clear)
    answer = f"{'top' if thing.y < middle else 'bottom'} {'left' if thing.x < middle else 'right'}"
    return SceneQuestion("where", f"Where is {phrase}?", answer)


def _relation(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    upright = rng.random() < 0.5
    pairs = []
    references = _references(scene)
    for phrase, thing in references:
        for other_phrase, other in references:
            gap = (other.y - thing.y) if upright else (other.x - thing.x)
            if abs(gap) > APART:
                pairs.append((phrase, other_phrase, gap > 0))
    if not pairs:
        return None
    phrase, other_phrase, true = _pick(rng, pairs)  # both orders are in the list, so yes and no are equally frequent
    relation = "above" if upright else "to the left of"
    return SceneQuestion("relation", f"Is {phrase} {relation} {other_phrase}?", "yes" if true else "no")


def _count(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    if rng.random() < 0.5:
        names = {f"{c} objects": sum(o.colour == c for o in scene.objects) for c in COLOUR_NAMES}
    else:
        names = {PLURAL[s]: sum(o.shape == s for o in scene.objects) for s in SHAPES}
    by_number = {n: [name for name, k in names.items() if k == n] for n in range(len(NUMBERS))}
    number = _pick(rng, [n for n, found in by_number.items() if found])
    return SceneQuestion("count", f"How many {_pick(rng, by_number[number])} are there?", NUMBERS[number])


def _letter(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    return SceneQuestion("letter", "Which letter is shown?", str(scene.letter.letter)) if scene.letter else None


def _background(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    return SceneQuestion("background", "What is the pattern of the background?", scene.pattern)


MAKERS: dict[str, Callable[[Scene, np.random.Generator], SceneQuestion | None]] = {
    "exist": _exist,
    "color": _color,
    "shape": _shape,
    "where": _where,
    "relation": _relation,
    "count": _count,
    "letter": _letter,
    "background": _background,
}


def ask(
    scene: Scene, rng: np.random.Generator, count: int, kinds: tuple[str, ...] = tuple(MAKERS)
) -> list[SceneQuestion]:
    """Up to ``count`` different questions on the scene, kinds drawn uniformly."""
    asked: dict[str, SceneQuestion] = {}
    for _ in range(4 * count):
        if len(asked) == count:
            break
        question = MAKERS[_pick(rng, list(kinds))](scene, rng)
        if question:
            asked.setdefault(question.text, question)
    return list(asked.values())


def caption(scene: Scene) -> str:
    """A caption of the scene, with objects in reading order of their first row of patches."""
    parts = []
    for thing in sorted(scene.objects, key=lambda t: ((t.y - t.radius) // 14, t.x)):
        parts.append(f"{'an' if thing.colour == 'orange' else 'a'} {thing.colour} {thing.shape}")
    if scene.letter:
        parts.append(f"the letter {scene.letter.letter}")
    return ", ".join(parts) + f" on a {scene.pattern} background."


__all__ = ["MAKERS", "PATTERNS", "SceneQuestion", "ask", "caption"]
