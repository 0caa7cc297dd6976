"""A tree of commands: one name, and under it programs, each a module with `main`. Nothing heavy is imported."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flowcut.cli.command_line import WRONG_USE, program, refuse, run

HELP = ("-h", "--help")


@dataclass(frozen=True)
class Command:
    """A program, or a group of them.

    Attributes:
        purpose: what the tree's help says.
        module: of the program; empty for a group of others alone. One that has a group too runs where the next word is
            none of the group's names.
        commands: the group.
        hint: of a program with a group, what its help says about its own arguments.
        repository: whether the module lies outside of the installed packages, in a checkout.
    """

    purpose: str
    module: str = ""
    commands: Mapping[str, Command] = field(default_factory=dict)
    hint: str = ""
    repository: bool = False


def spoken(name: str) -> str:
    """How the tree was called: its name, or "python -m" and its name."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {name}" if spec is not None and spec.name in (name, f"{name}.__main__") else name


def usage(words: str, about: str, commands: Mapping[str, Command]) -> str:
    """The help of a tree or a group."""
    width = 2 + max(map(len, commands), default=0)
    lines = [f"  {name:<{width}}{command.purpose}" for name, command in commands.items()]
    after = f"`{words} COMMAND --help` explains a command."
    return "\n".join([f"usage: {words} COMMAND ...", "", about, "", "commands:", *lines, "", after])


@program
def walk(words: str, about: str, commands: Mapping[str, Command], version: str, argv: Sequence[str]) -> int:
    """Find the program that the arguments name and run it; returns its status."""
    if not argv or argv[0] in HELP:
        print(usage(words, about, commands))
        return 0 if argv else WRONG_USE
    if argv[0] == "--version":
        print(version)
        return 0
    name, *rest = argv
    known = {one.replace("-", "_"): one for one in commands}
    if name.replace("-", "_") not in known:
        refuse(f"error: {words} has no command {name}; use one of {', '.join(commands)}")
    chosen = known[name.replace("-", "_")]
    return _descend(f"{words} {chosen}", commands[chosen], rest, version)


def _descend(words: str, command: Command, rest: list[str], version: str) -> int:
    asks_help = bool(rest) and rest[0] in HELP
    inner = {name.replace("-", "_") for name in command.commands}
    if command.commands and (not command.module or asks_help or (rest and rest[0].replace("-", "_") in inner)):
        about = f"{command.purpose[:1].upper()}{command.purpose[1:]}."
        return walk(words, f"{about}\n{command.hint}".rstrip(), command.commands, version, rest)
    if command.repository:
        _refuse_outside(words, command.module)
    status = run(command.module, words, rest)
    return status if isinstance(status, int) else 0


def _refuse_outside(words: str, module: str) -> None:
    """Programs under scripts/ are not installed; they run from the repository's folder."""
    from importlib.util import find_spec

    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        refuse(f"error: {words} needs a checkout of the repository; change to its folder, which has scripts/")
