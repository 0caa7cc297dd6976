"""`llava COMMAND ...`: the programs of this package under one name. `llava COMMAND --help` explains each."""

from __future__ import annotations

import importlib
import sys

from llava.given import needs, told_in_one_line

COMMANDS = {
    "ask": ("llava.eval.run_llava", "answer one question about pictures"),
    "chat": ("llava.serve.cli", "chat about pictures in the terminal"),
    "demo": ("llava.serve.demo", "the web page with its services, in one process"),
    "train": ("llava.train.train", "train a model"),
    "check-data": ("llava.train.check_data", "check training data before training"),
    "convert": ("llava.convert", "convert between LLaVA's and transformers' checkpoint layout"),
    "doctor": ("llava.doctor", "report what is installed, what works, and errors"),
}
EXTRAS = {"demo": "serve", "chat": "serve", "train": "train", "check-data": "train"}


def usage() -> str:
    lines = [f"  {name:<12}{purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join([__doc__ or "", "", "commands:", *lines])


def main(argv: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    command, *rest = arguments
    if command not in COMMANDS:
        sys.exit(f"error: no command {command!r}; use one of {', '.join(COMMANDS)}")
    with told_in_one_line():
        name, purpose = COMMANDS[command]
        with needs(EXTRAS.get(command, "eval"), __name__, f"llava {command}: {purpose}."):
            module = importlib.import_module(name)
        status = module.main(rest)
    if isinstance(status, int) and status:
        sys.exit(status)


if __name__ == "__main__":
    main()
