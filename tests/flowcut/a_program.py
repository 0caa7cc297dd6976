"""A program that prints a line, for the tests of what programs share."""

from __future__ import annotations

from flowcut.cli.command_line import Parser, program


@program
def main(argv: list[str]) -> None:
    Parser(__doc__).parse_args(argv)
    print("a line")
