"""Draws the packages of the code and the imports between them.

    python -m scripts.architecture            writes docs/images/architecture.svg
    python -m scripts.architecture --check    exits with 1 when the committed picture is not up to date

A box ("room") is a package of modules that belong to one stage, or a single module. Every box is drawn above all boxes
that it imports from. Programs, which nothing imports, are left out. Imports in functions and under TYPE_CHECKING count.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from flowcut.cli.command_line import Parser, program

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
PACKAGES = ("flowcut", "llava", "scripts")
COLOURS = {"flowcut": "#dbeafe", "llava": "#dcfce7", "scripts": "#fef3c7"}
WIDTH, HEIGHT, GAP, STEP, MARGIN = 150, 34, 16, 84, 20


def modules(root: Path = ROOT) -> dict[str, Path]:
    """{dotted name: file} of everything in the packages."""
    found = {}
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports_of(file: Path, known: Mapping[str, Path]) -> set[str]:
    """The known modules that a file imports, anywhere in it.

    Raises:
        ValueError: a relative import, which this does not follow.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise ValueError(f"{file}:{node.lineno} imports relatively; write the whole name")
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in known else node.module)
    return found & known.keys()


def import_graph(root: Path = ROOT) -> dict[str, set[str]]:
    """{module: the modules it imports}; a package's own `__init__` does not count as imported by its modules."""
    known = modules(root)
    return {name: imports_of(file, known) - {name} for name, file in known.items()}


def room_of(name: str) -> str | None:
    """The room of a module; None for the top-level packages, which re-export names."""
    parts = name.split(".")
    if len(parts) == 1:
        return None
    if parts[:2] == ["llava", "eval"] and len(parts) > 2:
        return "llava.eval"
    return ".".join(parts[:2])


def room_graph(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Imports between rooms. Programs, which nothing imports, are left out."""
    imported = set().union(*graph.values())
    arrows: dict[str, set[str]] = {}
    for name in imported:
        room = room_of(name)
        if room is not None:
            others = {room_of(other) for other in graph[name]}
            arrows.setdefault(room, set()).update(other for other in others if other is not None and other != room)
    return arrows


def levels(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Rooms from the lowest level up; each level imports from lower ones only.

    Raises:
        ValueError: rooms import each other in a circle.
    """
    rest, found = {room: others & arrows.keys() for room, others in arrows.items()}, []
    while rest:
        level = sorted(room for room, others in rest.items() if not others & rest.keys())
        if not level:
            raise ValueError(f"these rooms import each other in a circle: {', '.join(sorted(rest))}")
        found.append(level)
        rest = {room: others for room, others in rest.items() if room not in level}
    return found


def drawn(arrows: Mapping[str, set[str]], order: Sequence[Sequence[str]]) -> str:
    """The picture as SVG text: the lowest level at the bottom, arrows from importer to imported."""
    width = max(len(level) for level in order) * (WIDTH + GAP) - GAP + 2 * MARGIN
    height = len(order) * STEP - (STEP - HEIGHT) + 2 * MARGIN
    place = {}
    for number, level in enumerate(order):
        left = (width - len(level) * (WIDTH + GAP) + GAP) / 2
        for column, room in enumerate(level):
            place[room] = left + column * (WIDTH + GAP), height - MARGIN - HEIGHT - number * STEP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#64748b"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for room in place:
        for other in sorted(arrows[room] & place.keys()):
            (x, y), (to_x, to_y) = place[room], place[other]
            lines.append(
                f'<line x1="{x + WIDTH / 2:g}" y1="{y + HEIGHT:g}" x2="{to_x + WIDTH / 2:g}" y2="{to_y:g}" '
                'stroke="#94a3b8" stroke-width="0.8" marker-end="url(#tip)"/>'
            )
    for room, (x, y) in place.items():
        colour = COLOURS[room.split(".")[0]]
        lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{colour}" stroke="#64748b"/>'
        )
        lines.append(
            f'<text x="{x + WIDTH / 2:g}" y="{y + HEIGHT / 2 + 4:g}" text-anchor="middle">{escape(room)}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; say whether the picture is up to date")
    return parser


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 when `--check` finds that the committed picture differs."""
    args = build_parser().parse_args(argv)
    arrows = room_graph(import_graph())
    text = drawn(arrows, levels(arrows))
    if args.check:
        current = PICTURE.is_file() and PICTURE.read_text("utf-8") == text
        print("up to date" if current else "not up to date; run python -m scripts.architecture")
        return 0 if current else 1
    PICTURE.write_text(text, "utf-8")
    print(PICTURE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
