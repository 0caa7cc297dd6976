"""Visual token pruning: which methods there are, what they keep, what they save, and how well a model answers."""

from __future__ import annotations

import sys

from flowcut.cli.command_tree import Command, spoken, walk
from flowcut.version import __version__

COMMANDS = {
    "list": Command("list the methods with their settings and papers", "flowcut.commands.listing"),
    "show": Command("draw which patches of a picture are kept", "flowcut.commands.show"),
    "compare": Command("ask one question with several methods and budgets, side by side", "flowcut.commands.compare"),
    "flow": Command("draw how information flows through a vision encoder", "flowcut.flow.__main__"),
    "bench": Command("time what pruning saves, with random weights of published sizes", "flowcut.bench.__main__"),
    "evaluate": Command(
        "measure the accuracy of a method, also your own, next to committed results",
        "scripts.tables.evaluate",
        repository=True,
    ),
    "calibrate": Command("find a fixed schedule for FlowCut from some pictures", "flowcut.calibrate"),
    "vtw-search": Command("find the layer from which on VTW can drop all visual tokens", "flowcut.vtw_search"),
}


def main(argv: list[str] | None = None) -> int:
    """Returns the program's exit status."""
    words = sys.argv[1:] if argv is None else argv
    return walk(spoken("flowcut"), __doc__ or "", COMMANDS, f"llava-flowcut {__version__}", list(words))


if __name__ == "__main__":
    sys.exit(main())
