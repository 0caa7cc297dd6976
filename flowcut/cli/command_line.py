"""What all programs share: how they read their flags, how they end, and how they tell an error. Nothing heavy.

A program is a module with `build_parser` and `main`. It asks for its flags before it imports torch:

    parse_first(__name__, build_parser)  # --help and wrong flags end here

and is run as `python -m MODULE` or by one of the two command trees, `flowcut` and `llava`.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple, Never, ParamSpec, TypeVar

from flowcut.cli.extras import extra_of

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

WRONG_USE = 2
"""The exit status where flags, files or names that were given cannot be used. 1: the work itself failed."""
QUIET = {"TQDM_MININTERVAL": "30", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""Environment of progress bars where nobody watches: a line every 30 seconds."""


class Running(NamedTuple):
    """The program that a command tree runs: its module, what was typed to get there, and the arguments after it."""

    module: str
    typed: str
    arguments: list[str]


_running: Running | None = None


def typed(module: str | None = None) -> str:
    """What was typed to start the program: "llava eval", or "python -m llava.eval.launch".

    module: the program's, for calls from outside of any program.
    """
    if _running is not None:
        return _running.typed
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name if spec is not None else module
    return os.path.basename(sys.argv[0]) if name is None else f"python -m {name.removesuffix('.__main__')}"


class Parser(argparse.ArgumentParser):
    """The flags of a program. A flag may be written with hyphens or underscores, and under its older names.

    doc: the module's docstring, shown as it is.
    """

    def __init__(self, doc: str | None = None, **settings: Any) -> None:
        self._older: dict[str, str] = {}
        settings.setdefault("prog", typed())
        settings.setdefault("description", doc)
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**settings)

    def add_argument(self, *names: Any, also: Sequence[str] = (), **settings: Any) -> argparse.Action:
        """As argparse's. also: older names of the flag, which are accepted and not shown."""
        action = super().add_argument(*names, **settings)
        self._older |= {_hyphens(name): action.option_strings[0] for name in also}
        return action

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args(self._spelt(sys.argv[1:] if args is None else list(args)), namespace)

    def error(self, message: str) -> Never:
        """Wrong use: what was wrong, below one line of usage with the arguments that must be given. Status 2."""
        words = [self.prog]
        for action in self._actions:
            if action.required and action.nargs != argparse.ZERO_OR_MORE:
                values = action.metavar or action.dest.upper()
                words += [*action.option_strings[:1], *((values,) if isinstance(values, str) else values)]
        refuse(f"usage: {' '.join(words)} [flags]; --help explains them\nerror: {message}")

    def _spelt(self, given: list[str]) -> list[str]:
        """The arguments, each flag as this parser knows it; what follows `--` is left alone."""
        flags = {_hyphens(name): name for action in self._actions for name in action.option_strings} | self._older
        end = given.index("--") if "--" in given else len(given)
        spelt = []
        for word in given[:end]:
            name, equals, value = word.partition("=")
            known = flags.get(_hyphens(name)) if name.startswith("--") else None
            spelt.append(f"{known}{equals}{value}" if known else word)
        return spelt + given[end:]


def _hyphens(name: str) -> str:
    return name.replace("_", "-")


def parse_first(module: str, build_parser: Callable[[], argparse.ArgumentParser], others: bool = False) -> None:
    """Where the module is the program that runs: read its flags, so that --help and wrong ones end it right here.

    module: its `__name__`. others: flags that it does not know are for another program.
    """
    if module == "__main__":
        given = sys.argv[1:]
    elif _running is not None and module == _running.module:
        given = _running.arguments
    else:
        return
    with told_in_one_line():
        parser = build_parser()
        (parser.parse_known_args if others else parser.parse_args)(given)


def run(module: str, words: str, arguments: Sequence[str]) -> Any:
    """Run the `main` of a program's module, as typed in `words`; the result is its own."""
    global _running
    before, _running = _running, Running(module, words, list(arguments))
    try:
        with told_in_one_line():
            return importlib.import_module(module).main(list(arguments))
    finally:
        _running = before


def program(main: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorates `main`: whatever goes wrong in it is told in one line, see `told_in_one_line`."""

    @wraps(main)
    def told(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with told_in_one_line():
            return main(*args, **kwargs)

    return told


def print_result(document: Mapping[str, Any]) -> None:
    """Print what a program made or measured: one JSON object, the last line of its stdout."""
    print(json.dumps(document, ensure_ascii=False))


@contextmanager
def told_in_one_line(kept: str = "") -> Iterator[None]:
    """A program's body. What is wrong with its input or with the machine ends it with one line on stderr.

    The status is 2 for what was given and cannot be used and for a missing package, 1 for other errors of the machine,
    130 after Ctrl-C, and 141 where the reader of the output has gone.

    kept: what remains after Ctrl-C or an error, for that line.
    """
    if not sys.stderr.isatty():
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
    try:
        try:
            yield
        finally:  # also before the end that --help makes
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("stopped" + (f"; {kept}" if kept else ""), file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output, `head` for instance, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except ModuleNotFoundError as error:
        hint = installation(error)
        if hint is None:
            raise
        refuse(f"error: {hint}")
    except (ValueError, OSError, MemoryError) as error:
        refuse(f"error: {one_line(error)}" + (f"; {kept}" if kept else ""), WRONG_USE if is_wrong_use(error) else 1)


def refuse(line: str, status: int = WRONG_USE) -> Never:
    """End the program with one line on stderr."""
    print(line, file=sys.stderr)
    end = SystemExit(line)
    end.code = status
    raise end


def is_wrong_use(error: BaseException) -> bool:
    """Whether another command line would have helped: not where the disk is full, or a server is gone."""
    if isinstance(error, OSError):  # transformers' own have no number
        return error.errno in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.ENAMETOOLONG)
    return isinstance(error, ValueError)


@contextmanager
def needs(module: str) -> Iterator[None]:
    """Around imports of optional packages in a program: where one is missing, one line says how to install it.

    module: the program's `__name__`. Raises ModuleNotFoundError where the module is imported, and not run.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        hint = installation(error)
        if hint is None:
            raise
        if module == "__main__" or (_running is not None and module == _running.module):
            refuse(f"error: {hint}")
        raise ModuleNotFoundError(f"{module}: {hint}", name=error.name) from error


def installation(error: ModuleNotFoundError) -> str | None:
    """How to install the package that an import did not find; None for a module of this project."""
    package = (error.name or "").split(".")[0]
    if package in ("", "llava", "flowcut", "scripts"):
        return None
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    extra = extra_of(package, _running.module if _running is not None else "" if spec is None else spec.name)
    wanted = f"'llava-flowcut[{extra}]'" if extra else "llava-flowcut"
    return f"this program needs the package {package}; pip install {wanted}"


def one_line(error: BaseException) -> str:
    """An error's message in one line, its class where the message alone says too little."""
    said = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename is not None else error.strerror
    if isinstance(error, KeyError):
        return f"it has no {said}"
    return said if said and isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {said}".rstrip(": ")
