"""Command line: `python -m flowcut show` draws which patches stay, `python -m flowcut list` names the pruners."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from flowcut.plots import kept_patches
from flowcut.registry import METHODS, parse_pruner, settings_of
from flowcut.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 after one line on stderr when the input cannot be used."""
    parser = argparse.ArgumentParser(prog="flowcut", description=__doc__)
    parser.add_argument("--version", action="version", version=f"flowcut {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the pruners with their fields and what to cite")
    drawing = commands.add_parser("show", help="draw the patches kept after each selection over an image")
    drawing.add_argument("--image", required=True, help="picture to look at")
    drawing.add_argument("--model-path", default="playground/embedded", help="LLaVA checkpoint (default: %(default)s)")
    drawing.add_argument("--pruner", default="flowcut:budget=64", help="see `list` (default: %(default)s)")
    drawing.add_argument("--out", default="kept.png", help="file to write (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        if args.command == "list":
            describe()
        else:
            show(args.image, args.model_path, args.pruner, args.out)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output, `head` for instance, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ModuleNotFoundError as error:
        print(f"flowcut {args.command}: it needs the package {error.name}; pip install llava-flowcut", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"flowcut {args.command}: stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"flowcut {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def describe() -> None:
    """Print every registered pruner, its fields with their defaults, what they take and what they mean."""
    shown: dict[type, str] = {}
    for name, method in METHODS.items():
        print(f"{name}: {method.paper}")
        settings = settings_of(name)
        if method.cls in shown:  # a preset of a class that was explained before
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
    print("none: no pruning")


def show(image_file: str, model_path: str, pruner_text: str, out: str) -> None:
    """Run a LLaVA's vision tower over one image and write the picture of what was kept.

    Raises:
        ValueError: a pruner, model or image that cannot be used.
        OSError: a file that cannot be read or written.
    """
    from flowcut.checkpoints import pruned_picture  # `list` does not need what this loads

    pruner = parse_pruner(pruner_text)
    if pruner is None:
        raise ValueError("--pruner none keeps every patch; try flowcut:budget=64")
    picture, trace, side = pruned_picture(image_file, model_path, pruner)
    steps = [(f"after layer {layer}", kept[0].cpu().numpy()) for layer, kept in sorted(trace.kept.items())]
    kept_patches(picture, steps, (side, side)).save(out)
    print(Path(out).resolve())


if __name__ == "__main__":
    sys.exit(main())
