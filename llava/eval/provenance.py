"""The origin of a number: fingerprints of its inputs, versions and hardware."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_WEIGHTS = (".safetensors", ".bin")
_SAMPLE = 2**20


def fingerprint(files: Iterable[Path]) -> str:
    """16 hex digits over names and contents, in the order given."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def model_fingerprint(folder: Path) -> str:
    """16 hex digits over a checkpoint's config and weights.

    Of a weight file, only the size and a megabyte each at its beginning, middle and end are hashed, which is fast for
    14 GB.
    """
    config = folder / "config.json"
    if not config.is_file():
        config = folder / "adapter_config.json"  # an adapter that has its base's config
    digest = hashlib.sha256(config.read_bytes())
    for file in sorted(path for path in folder.rglob("*") if path.suffix in _WEIGHTS):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder)} {size}".encode())
        with file.open("rb") as content:
            for start in sorted({0, max(0, size // 2), max(0, size - _SAMPLE)}):
                content.seek(start)
                digest.update(content.read(_SAMPLE))
    return digest.hexdigest()[:16]


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, hardware and, in a git checkout, the commit ("+" when files differ from it)."""
    packages = ("torch", "transformers", "tokenizers", "numpy", "pillow")
    hardware = {"cpu": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(device)
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "hardware": hardware,
    }


def _cpu_name() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None  # no git, or no checkout
