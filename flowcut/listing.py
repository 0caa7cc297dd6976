"""List every method with its settings: their defaults, what they take and what they mean, and what to cite."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence

from flowcut.command_line import Parser, parse_first, program


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("method", nargs="*", help="only these (default: all)")
    return parser


parse_first(__name__, build_parser)

from flowcut.registry import METHODS, settings_of


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0."""
    args = build_parser().parse_args(argv)
    if unknown := sorted(set(args.method) - set(METHODS)):
        raise ValueError(f"there is no method {unknown[0]}; choose from {', '.join(METHODS)}")
    describe(args.method or list(METHODS))
    if not args.method:
        print("none: no pruning")
    return 0


def describe(names: Sequence[str]) -> None:
    """Print the methods of these names; a preset of a class that was printed before is told by its difference."""
    shown: dict[type, str] = {}
    for name in names:
        method = METHODS[name]
        print(f"{name}: {method.paper}")
        settings = settings_of(name)
        if method.cls in shown:
            before = shown[method.cls]
            other = {(field.name, field.default) for field in settings_of(before)}
            changed = [
                f"{field.name}={field.default}" for field in settings if (field.name, field.default) not in other
            ]
            print(f"    as {before}, with {', '.join(changed)}")
            continue
        shown[method.cls] = name
        for field in settings:
            default = "" if field.default is None else f"={field.default}"
            text = f"{field.name}{default} ({field.allowed}): {field.meaning}"
            print(textwrap.fill(text, 118, initial_indent="    ", subsequent_indent="        "))


if __name__ == "__main__":
    sys.exit(main())
