"""Commands in documentation, docstrings and scripts have flags that their programs know, as --help shows them."""

import ast
import functools
import importlib
import re
from pathlib import Path

import pytest

from llava.eval.answering import settings
from tests.programs import TREES, commands, programs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
HISTORY = ("LOG.md", "decisions")
OTHERS = ("llava.eval.launch", "scripts.tables.benchmark_cell", "scripts.tables.make")
"""Programs that pass flags on: to `llava.eval.launch`, and that to the answering programs."""
COMMANDS = {
    words: command for tree, module in TREES.items() for words, command in commands(tree, module.COMMANDS).items()
}
MODULE = r"(?:python[\d.]*|\$\{?PY\w*\}?\"?) (?:-m ([\w.]+)|(scripts/[\w/]+)\.py)"
PROGRAM = re.compile(rf"(?:{MODULE}|(?<![\w/.-])(flowcut|llava)(?= [a-z-]+ ))([^`\n|#;)&]*)")


def texts():
    """(where, text) of every page, docstring of a program and script, with long commands in one line."""
    found = [(str(page.relative_to(ROOT)), page.read_text("utf-8")) for page in PAGES]
    found = [(name, text) for name, text in found if not any(word in name for word in HISTORY)]
    for name in programs():
        file = ROOT.joinpath(*name.split("."))
        source = (file / "__main__.py" if file.is_dir() else file.with_suffix(".py")).read_text("utf-8")
        found.append((name, ast.get_docstring(ast.parse(source)) or ""))
    found += [
        (str(script.relative_to(ROOT)), script.read_text()) for script in sorted((ROOT / "scripts").rglob("*.sh"))
    ]
    return [(name, re.sub(r"\\\n\s*", "", text)) for name, text in found]


def command_lines():
    """(where, module, flags) of every command that names a flag."""
    for where, text in texts():
        for dotted, path, tree, rest in PROGRAM.findall(text):
            module = dotted or path.replace("/", ".") or program_of(f"{tree} {rest}")
            flags = re.findall(r"(?<![\w-])(--[A-Za-z][\w-]*)", rest)
            if module.partition(".")[0] in ("flowcut", "llava", "scripts") and flags:
                yield where, module, flags


def program_of(line):
    """The module behind the longest command of a tree that the line begins with; empty for none."""
    words = line.split()
    for length in (3, 2):
        command = COMMANDS.get(" ".join(words[:length]))
        if command is not None and command.module:
            return command.module.removesuffix(".__main__")
    return ""


@functools.cache
def flags_of(module):
    """The flags that a program shows; None for one with another parser than this project's."""
    if module == "llava.integrations.vlmevalkit":  # it passes on the flags of the kit, which is not installed
        return None
    try:
        found = importlib.import_module(module)
        build = getattr(found, "build_parser", None) or importlib.import_module(f"{module}.__main__").build_parser
        parser = build()
    except (ImportError, AttributeError, TypeError):
        return None
    known = set(parser._option_string_actions)
    for group in getattr(parser._subparsers, "_group_actions", []):
        known.update(*(one._option_string_actions for one in group.choices.values()))
    if module in OTHERS:
        known |= flags_of(OTHERS[0]) if module != OTHERS[0] else set()
        known |= set(settings.build_parser("", "", "v1", 1)._option_string_actions)
    return known


LINES = sorted({(where, module, tuple(flags)) for where, module, flags in command_lines()})


@pytest.mark.parametrize("where", sorted({where for where, _, _ in LINES}))
def test_flags_are_spelt_as_the_programs_show_them(where):
    wrong = []
    for place, module, flags in LINES:
        known = flags_of(module) if place == where else None
        wrong += [] if known is None else [(module, flag) for flag in flags if flag not in known]
    assert wrong == []


def test_most_commands_are_found():
    assert len(LINES) > 60
    assert len({module for _, module, _ in LINES if flags_of(module)}) > 25
