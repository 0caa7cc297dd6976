"""Example pictures of the page. `scripts/serve_examples.py` draws them, so they have this project's licence."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "example_pictures"


class Example(NamedTuple):
    picture: Path
    question: str


EXAMPLES = (
    Example(FOLDER / "square.jpg", "What color is the square?"),
    Example(FOLDER / "letter.jpg", "Which letter is shown?"),
    Example(FOLDER / "diamond.jpg", "Where is the diamond?"),
    Example(FOLDER / "background.jpg", "What is the pattern of the background?"),
)
