"""List every method with its settings (default, allowed values, meaning) and the paper to cite."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence

from flowcut.cli.command_line import Parser, parse_first, program


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("method", nargs="*", help="only these (default: all)")
    return parser


parse_first(__name__, build_parser)

from importlib.metadata import entry_points

from flowcut.registered import Registered, registered


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0."""
    args = build_parser().parse_args(argv)
    methods = known_methods(args.method)
    if unknown := sorted(set(args.method) - set(methods)):
        raise ValueError(f"there is no method {unknown[0]}; choose from {', '.join(methods)}")
    describe(methods, args.method or list(methods))
    if not args.method:
        print("none: no pruning")
    return 0


def known_methods(asked: Sequence[str]) -> dict[str, Registered]:
    """Every method by name, those of other packages last. Only the classes of these need torch.

    asked: names; a method that cannot be loaded is an error if it is one of them, and else shown with the reason.
    """
    found = dict(registered())
    if "flowcut.registry" in sys.modules or entry_points(group="flowcut.pruners"):
        from flowcut.registry import all_names, method_named, settings_of

        for name in [name for name in all_names() if name not in found]:
            try:
                method = method_named(name)
            except ValueError as error:
                if name in asked:
                    raise
                found[name] = Registered(name, f"not usable: {error}", [])
            else:
                assert method is not None, "it is one of all names"
                found[name] = Registered(method.cls.__name__, method.paper, settings_of(name))
    return found


def describe(methods: Mapping[str, Registered], names: Sequence[str]) -> None:
    """Print the methods of these names; a preset of a class that was printed before is told by its difference."""
    shown: dict[str, str] = {}
    for name in names:
        method = methods[name]
        print(f"{name}: {method.paper}")
        if method.cls in shown:
            before = shown[method.cls]
            other = {(field.name, field.default) for field in methods[before].settings}
            changed = [
                f"{field.name}={field.default}" for field in method.settings if (field.name, field.default) not in other
            ]
            print(f"    as {before}, with {', '.join(changed)}")
            continue
        shown[method.cls] = name
        for field in method.settings:
            default = "" if field.default is None else f"={field.default}"
            text = f"{field.name}{default} ({field.allowed}): {field.meaning}"
            print(textwrap.fill(text, 118, initial_indent="    ", subsequent_indent="        "))


if __name__ == "__main__":
    sys.exit(main())
