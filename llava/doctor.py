"""Reports what is installed, what works, and the original error where something fails: python -m llava.doctor

Lists versions, tries imports, names the distribution that owns each of this project's files, and generates with tiny
random models, with and without the KV cache, with and without a pruner. The exit code is 0 if everything works.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import platform
import re
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path
from typing import NamedTuple

from flowcut.cli.command_line import Parser, program

# Package on the index, module to import, purpose.
PACKAGES = (
    ("torch", "torch", "everything"),
    ("transformers", "transformers", "everything"),
    ("safetensors", "safetensors", "everything"),
    ("sentencepiece", "sentencepiece", "tokenizers"),
    ("pillow", "PIL", "pictures"),
    ("accelerate", "accelerate", "training; device_map"),
    ("peft", "peft", "LoRA"),
    ("deepspeed", "deepspeed", "training on many devices"),
    ("bitsandbytes", "bitsandbytes", "4 and 8 bit"),
    ("flash-attn", "flash_attn", "attn_implementation flash_attention_2"),
    ("gradio", "gradio", "the web page"),
    ("fastapi", "fastapi", "serving"),
    ("av", "av", "videos"),
)
CORE = 5  # of them are required
OWN = (
    "flowcut.api",
    "llava.model.language_model.llava_llama",
    "llava.train.train",
    "llava.eval.run_llava",
    "llava.serve.cli",
)


class Finding(NamedTuple):
    """A module's state: `version` None if it is not installed; `error` None if it imports."""

    name: str
    version: str | None
    purpose: str
    error: str | None


def examine(package: str, module: str, purpose: str) -> Finding:
    try:
        version: str | None = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return Finding(package, None, purpose, None)
    return Finding(package, version, purpose, import_error(module))


def import_error(module: str) -> str | None:
    """What importing a module raises, in one line; None if nothing."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken binary may raise anything; the error is reported
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


DISTRIBUTION = "llava-flowcut"
"""The name under which this project is installed."""


class Folder(NamedTuple):
    """Where a package is imported from: `owners` are distributions, with the files of the folder that each lists."""

    path: Path
    owners: dict[str, list[str]]
    ours: bool

    @property
    def strangers(self) -> dict[str, list[str]]:
        return {name: files for name, files in self.owners.items() if name != DISTRIBUTION}


def owned(package: str) -> Folder | None:
    """The folder that `import package` reads, and which distributions own the files in it; None if there is none.

    Another distribution with a package of the same name overwrites files when it is installed later, or hides
    the whole folder when this project is installed in editable mode.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))).resolve()
    owners: dict[str, list[str]] = {}
    for distribution in importlib.metadata.distributions():
        name = name_of(distribution)
        if name == DISTRIBUTION and folder.parent == editable_location(distribution):
            owners.setdefault(name, [])
        for file in distribution.files or ():
            place = Path(str(distribution.locate_file(file))).resolve()
            if file.parts[:1] == (package,) and place.is_relative_to(folder):
                owners.setdefault(name, []).append(str(file))
    return Folder(folder, owners, folder.parent == Path(__file__).resolve().parent.parent)


def name_of(distribution: Distribution) -> str:
    """A distribution's name, in the spelling of the index; the rest of an interrupted installation may have none."""
    try:
        name = distribution.metadata["Name"]
    except TypeError:  # no METADATA file
        name = None
    return re.sub(r"[-_.]+", "-", name or "nameless").lower()


def editable_location(distribution: Distribution) -> Path | None:
    """The source tree of a distribution that was installed with `pip install -e`; None for any other."""
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(urllib.request.url2pathname(urllib.parse.urlparse(origin["url"]).path)).resolve()


def ownership(package: str) -> Iterator[tuple[str, bool]]:
    """Lines about the owners of a package's files, each with whether it is as expected."""
    folder = owned(package)
    if folder is None:
        yield f"{package}: not found", False
        return
    names = ", ".join(folder.owners) or "no installed distribution (read from a source tree)"
    yield f"{package}: {folder.path}, from {names}", True
    for name, files in folder.strangers.items():
        shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        mend = f"run `pip uninstall {name}`, then install {DISTRIBUTION} again, with --force-reinstall --no-deps"
        yield f"  the distribution {name} owns {shown}; {mend}", False
    if not folder.ours and not folder.strangers:
        yield f"  this is not the folder next to {Path(__file__).resolve().parent}", False


def devices() -> list[str]:
    """The accelerators torch can use, by name."""
    import torch

    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ["Apple GPU (mps)"] if torch.backends.mps.is_available() else []


@program
def main(argv: list[str] | None = None) -> None:
    Parser(__doc__).parse_args(argv)
    findings = [examine(*package) for package in PACKAGES]
    print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for finding in findings:
        state = finding.version or "not installed"
        print(f"{finding.name:<14}{state:<16}{finding.purpose}{'  BROKEN' if finding.error else ''}")
        if finding.error:
            print(f"  {finding.error}")
    own = {module: import_error(module) for module in OWN}
    for module, error in own.items():
        print(f"import {module}: {error or 'works'}")
    owners = [line for package in ("flowcut", "llava") for line in ownership(package)]
    for line, _ in owners:
        print(line)
    broken_core = any(one.version is None or one.error for one in findings[:CORE])
    found = [] if broken_core else devices()
    print(f"accelerators: {', '.join(found) or 'none; running on the CPU'}")
    healthy = not broken_core and own[OWN[0]] is None and own[OWN[1]] is None
    generates = healthy and generation()
    healthy = generates and all(well for _, well in owners)
    packages = {one.name: one.version for one in findings}
    print(json.dumps({"healthy": healthy, "generates": generates, "packages": packages, "devices": found}))
    sys.exit(0 if healthy else 1)


def generation() -> bool:
    """Print how tiny models generate; see `llava.selftest`. -> whether all results are correct."""
    from llava.selftest import check_generation

    outcomes = check_generation()
    for outcome in outcomes:
        pruner = "without a pruner" if outcome.pruner == "none" else f"with {outcome.pruner}"
        same = "gives the same tokens with and without the KV cache"
        print(f"{outcome.model} {pruner}: {outcome.error or same}{'  BROKEN' if outcome.error else ''}")
    return not any(outcome.error for outcome in outcomes)


if __name__ == "__main__":
    main()
