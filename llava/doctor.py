"""What is installed here, what works, and the true reason where something does not: python -m llava.doctor"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import platform
import sys
from typing import NamedTuple

# Package on the index, module to import, what it is needed for.
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
CORE = 5  # of them are needed by everybody
OWN = ("flowcut", "llava.model", "llava.train.train", "llava.eval.run_llava", "llava.serve.cli")


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
    except Exception as error:  # a broken binary raises whatever it likes; showing it is the point
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def devices() -> list[str]:
    """The accelerators torch can use, by name."""
    import torch

    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ["Apple GPU (mps)"] if torch.backends.mps.is_available() else []


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
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
    broken_core = any(one.version is None or one.error for one in findings[:CORE])
    found = [] if broken_core else devices()
    print(f"accelerators: {', '.join(found) or 'none; running on the CPU'}")
    healthy = not broken_core and own["llava.model"] is None and own["flowcut"] is None
    print(json.dumps({"healthy": healthy, "packages": {one.name: one.version for one in findings}, "devices": found}))
    sys.exit(0 if healthy else 1)


if __name__ == "__main__":
    main()
