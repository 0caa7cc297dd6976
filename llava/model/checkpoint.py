"""A LLaVA checkpoint as a folder: finding it, reading its names without loading it, writing it.

Written folders have the layout of the published ones: config, weights, tokenizer files; and, when the vision tower was
trained and is therefore part of the checkpoint, a sub-folder `vision_tower/` with the tower's config.

A checkpoint is written into the sub-folder `.partial`, which is renamed to `.complete` and then moved into place. If
the process is killed before the rename, the folder is unchanged; if it is killed later, the next writer of the folder
finishes the move, and readers refuse the folder until then. So a partial checkpoint, or a mixture of two, is never
read, and reading a folder, which may come from a stranger, never writes.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from flowcut.hooks.learned import LEARNED
from llava.given import HUB_NAME, home_path
from llava.model.multimodal_encoder.clip_encoder import KNOWN_TOWERS, CLIPVisionTower
from llava.model.tokenizer import save_llama_tokenizer

logger = logging.getLogger(__name__)

TOWER_FOLDER = "vision_tower"
# Errors of the readers of weight files when a file is truncated or of another kind.
DAMAGE = (SafetensorError, json.JSONDecodeError, EOFError, pickle.UnpicklingError, RuntimeError, KeyError)
PROJECTOR = "mm_projector.bin"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_DOWNLOADS = ["*.json", "*.safetensors", "*.bin", "tokenizer.model"]
_PARTIAL, _COMPLETE, _LIST = ".partial", ".complete", ".files.json"
_TOWER = "vision_tower.vision_tower."
_POINTER = b"version https://git-lfs"


def local_folder(name_or_path: str, cache_dir: str | None = None, patterns: list[str] | None = None) -> Path:
    """The folder of a model path; a Hub name is downloaded (only files that match `patterns`), or found in the cache.

    Raises ValueError when there is neither such a folder nor such a repository.
    """
    folder = home_path(name_or_path)
    if folder.is_dir():
        return folder
    if not HUB_NAME.fullmatch(str(name_or_path)):
        raise ValueError(f"{name_or_path} is not a folder; give a checkpoint's folder, or a Hub name such as org/model")
    try:
        return Path(snapshot_download(str(name_or_path), cache_dir=cache_dir, allow_patterns=patterns or _DOWNLOADS))
    except OSError as error:
        raise ValueError(
            f"{name_or_path} is not a folder here, and the Hugging Face Hub does not provide it "
            f"({type(error).__name__}); check the path or the name, or the network"
        ) from error


def folder_here(name_or_path: str, cache_dir: str | None = None) -> Path | None:
    """A model's folder if it is on this machine, else None; the network is not asked."""
    folder = home_path(name_or_path)
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(str(name_or_path), cache_dir=cache_dir, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None  # not downloaded yet, or a path of another machine


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of config.json. Raises ValueError when it is missing or broken, or when a save is unfinished."""
    refuse_unfinished(folder)
    file = folder / "config.json"
    if not file.is_file():
        partial = (folder / _PARTIAL).is_dir()
        hint = "its save was interrupted; save it again" if partial else "give the folder of a whole checkpoint"
        raise ValueError(f"{folder} has no config.json; {hint}")
    return read_object(file)


def read_object(file: Path, what: str = "checkpoint") -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError, one line, when there is none; then copy the `what` again."""
    refuse_pointer(file)
    try:
        found = json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not readable JSON ({one_line(error)}); copy the {what} again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a JSON {type(found).__name__}, not an object; copy the {what} again")
    return found


def refuse_pointer(file: Path) -> None:
    """Raise ValueError, one line, when a file holds Git LFS's few lines in place of its content."""
    if file.is_file():
        with file.open("rb") as content:
            if content.read(len(_POINTER)) == _POINTER:
                raise ValueError(f"{file} is a pointer of Git LFS, not the file itself; run git lfs pull in its folder")


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first of some names, sorted, and the number of the others."""
    ordered = sorted(names)
    return ", ".join(ordered[:most]) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")


def weight_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's weights; where it has several formats, those that transformers reads.

    Raises ValueError, one line, when there are none, or when one of them is missing or a pointer of Git LFS.
    """
    present = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not present:
        if (folder / PROJECTOR).is_file():
            raise ValueError(f"{folder} has only a projector ({PROJECTOR}); load it together with its base, model_base")
        raise ValueError(f"{folder} has no weights; expected one of {', '.join(WEIGHTS)}")
    first, index = present[0], present[0].with_name(f"{present[0].name}.index.json")
    if index.is_file():
        logger.warning("%s is read, not the files that %s next to it names; remove the outdated one", first, index.name)
    files = [first]
    if first.suffix == ".json":
        files = sorted({folder / name for name in _weight_map(first).values()})
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            other = f", or remove {first.name} if {present[1].name} is whole" if len(present) > 1 else ""
            raise ValueError(
                f"{folder} lacks {len(missing)} of the {len(files)} files that {first.name} names: {listed(missing)}; "
                f"copy them too{other}"
            )
    for file in files:
        refuse_pointer(file)
    return files


def _weight_map(index: Path) -> dict[str, str]:
    """The name of each tensor's file in an index."""
    found = read_object(index).get("weight_map")
    names = list(found.values()) if isinstance(found, dict) else []
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise ValueError(f'{index} has no "weight_map" from names to files of this folder; copy the checkpoint again')
    assert isinstance(found, dict)
    return found


def written(folder: str | Path) -> dict[str, Any]:
    """What a program tells of a checkpoint that it wrote: its folder, number of tensors, and bytes of weights."""
    files = weight_files(Path(folder))
    size = sum(file.stat().st_size for file in files)
    return {"out": str(folder), "tensors": len(weight_names(Path(folder))), "bytes": size}


def weight_names(folder: Path) -> set[str]:
    """The names of the tensors in a checkpoint, from its index or header. Raises ValueError as `weight_files` does."""
    files = weight_files(folder)
    index = next((folder / name for name in WEIGHTS if (folder / name).is_file()), files[0])
    if index.suffix == ".json":
        return set(_weight_map(index))
    try:
        if index.suffix == ".safetensors":
            with safe_open(index, "pt") as tensors:
                return set(tensors.keys())
        return set(read_bin(index))
    except DAMAGE as error:
        raise ValueError(f"{index} is damaged ({one_line(error)}); copy the checkpoint again") from error


def read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """All weights of a checkpoint, name and tensor, one file in memory at a time."""
    for file in weight_files(folder):
        try:
            yield from (load_file(file) if file.suffix == ".safetensors" else read_bin(file)).items()
        except DAMAGE as error:
            raise ValueError(f"{file} cannot be read ({one_line(error)}); copy the checkpoint again") from error


def read_bin(file: Path) -> dict[str, Tensor]:
    """The tensors by name in a file of torch.save, which may hold nothing else.

    Raises ValueError, one line, when it is damaged, or a pointer of Git LFS.
    """
    refuse_pointer(file)
    try:
        try:
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, OSError):  # the format before torch 1.6 cannot be memory-mapped
            found = torch.load(file, map_location="cpu", weights_only=True)
    except (*DAMAGE, OSError) as error:
        raise ValueError(f"{file} is damaged ({one_line(error)}); copy the checkpoint again") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{file} has no tensors by name; give a file of weights")
    return found


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Log only errors of these loggers for a while; the caller reports their warnings in one line."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    try:
        for name in loggers:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def one_line(error: Exception) -> str:
    said = str(error).strip().split("\n")[0] or type(error).__name__
    return f"key {said} is missing" if isinstance(error, KeyError) else said


def save_llava_checkpoint(
    model: Any,
    tokenizer: Any,
    output_dir: str | Path,
    image_processor: Any = None,
    dtype: torch.dtype | None = None,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Write a whole checkpoint that `load_pretrained_model` and LLaVA itself can read.

    tokenizer: as loaded from its folder; its SentencePiece file is copied too. None leaves tokenizer files out.
    image_processor: default: the vision tower's.
    dtype: store floating-point weights in this type instead of the model's.
    state_dict: gathered weights, instead of `model.state_dict()`.

    The tower's weights are written when they were trained according to `config.unfreeze_mm_vision_tower`; of a frozen
    tower, only the name is stored.
    """
    with written_aside(Path(output_dir)) as partial:
        _write_llava_checkpoint(model, tokenizer, partial, image_processor, dtype, state_dict)


def _write_llava_checkpoint(
    model: Any, tokenizer: Any, partial: Path, image_processor: Any, dtype: Any, state_dict: dict[str, Tensor] | None
) -> None:
    tower = model.get_vision_tower()
    weights = model.state_dict() if state_dict is None else dict(state_dict)
    in_checkpoint = tower is not None and getattr(model.config, "unfreeze_mm_vision_tower", False)
    weights = {name: value for name, value in weights.items() if LEARNED not in name}  # a pruner's have their own file
    if not in_checkpoint:
        weights = {name: value for name, value in weights.items() if "vision_tower." not in name}
    if dtype is not None:
        weights = {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()}
    model.save_pretrained(partial, state_dict=weights)

    fields = read_config(partial)
    if dtype is not None:
        fields["dtype"] = fields["torch_dtype"] = str(dtype).removeprefix("torch.")
    if tower is not None:
        fields["mm_vision_tower"] = _tower_name(tower, in_checkpoint)
        image_processor = image_processor or tower.image_processor
        fields.pop("mm_vision_tower_config", None)  # for a tower without a folder; it gets one now, or has a known name
        if fields["mm_vision_tower"] == TOWER_FOLDER:
            tower.config.save_pretrained(partial / TOWER_FOLDER)
            image_processor.save_pretrained(partial / TOWER_FOLDER)
    (partial / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", "utf-8")
    if image_processor is not None:
        image_processor.save_pretrained(partial)
    if tokenizer is not None:
        save_llama_tokenizer(tokenizer, partial)


@contextmanager
def written_aside(output: Path) -> Iterator[Path]:
    """A folder to write a checkpoint into, which is moved to `output` when it is complete."""
    finish_save(output)
    partial = output / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    written = [file.relative_to(partial).as_posix() for file in sorted(partial.rglob("*")) if file.is_file()]
    (partial / _LIST).write_text(json.dumps(written), "utf-8")
    os.replace(partial, output / _COMPLETE)
    finish_save(output)


def _tower_name(tower: CLIPVisionTower, in_checkpoint: bool) -> str:
    """The value of `mm_vision_tower` in a checkpoint that may be moved to another path."""
    if tower.vision_tower_name.startswith("openai/") and Path(tower.vision_tower_name).name in KNOWN_TOWERS:
        return tower.vision_tower_name
    if in_checkpoint:
        return TOWER_FOLDER
    return str(Path(tower.source).resolve()) if Path(tower.source).is_dir() else tower.vision_tower_name


def refuse_unfinished(folder: Path) -> None:
    """Raise ValueError, one line, where a save was interrupted while its files were moved into place."""
    if (folder / _COMPLETE).is_dir():
        raise ValueError(
            f"{folder} holds a save that was interrupted at its last step; if you trust the folder, finish it by "
            f"llava.model.checkpoint.finish_save(folder), or save there again"
        )


def finish_save(output: Path) -> None:
    """Move a completely written checkpoint into place, config.json last; does nothing when there is none.

    For folders that this process writes. Raises ValueError, one line, when the list of files names anything outside the
    folder, also by a symbolic link; nothing is moved then.
    """
    complete = output / _COMPLETE
    if not complete.is_dir():
        return
    # The list, not the folder, has the files of this checkpoint: an interrupted move has moved some files already.
    written = _listed_files(output, complete)
    if (complete / "config.json").is_file():
        (output / "config.json").unlink(missing_ok=True)  # other programs then find no checkpoint instead of a mixture
    for old in [*output.glob("model*.safetensors*"), *output.glob("pytorch_model*.bin*")]:
        if old.name not in written:
            old.unlink()  # shards of an earlier checkpoint would be read as part of this one
    for name in sorted(written, key=lambda name: name == "config.json"):
        if (complete / name).is_file():
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(complete / name, output / name)
    shutil.rmtree(complete)


def _listed_files(output: Path, complete: Path) -> list[str]:
    """The names in the list of a finished save. Raises ValueError unless all are files inside `output`."""
    try:
        names = json.loads((complete / _LIST).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{complete} has no readable list of its files; remove it, and save again") from error
    root, source = output.resolve(), complete.resolve()
    for name in names if isinstance(names, list) else [names]:
        path = PurePosixPath(name) if isinstance(name, str) and name and "\0" not in name else PurePosixPath("/")
        plain = not path.is_absolute() and ".." not in path.parts
        # A file in `output` may be a link, which is replaced; a folder that is one would lead elsewhere.
        inside = plain and (output / path).parent.resolve() == (root / path).parent
        if not inside or source != root / _COMPLETE or (complete / path).resolve() != source / path:
            raise ValueError(
                f"{complete / _LIST} names {name!r}, which is not a file inside {output}; remove {complete}"
            )
    return names


def read_projector(path: str) -> dict[str, Tensor]:
    """The projector's own state dict in an `mm_projector.bin`, with any prefix before `mm_projector.` in its keys."""
    weights = read_bin(Path(path))
    marker = "mm_projector."
    found = {key.split(marker, 1)[1]: value for key, value in weights.items() if marker in key}
    if not found:
        raise ValueError(f"{path} holds no key with {marker!r}; give the mm_projector.bin of a pre-training run")
    return found


def fill_projector(projector: nn.Module, path: str) -> None:
    """Load an `mm_projector.bin` into a projector. Raises ValueError, one line, for another type or size."""
    weights = read_projector(path)
    try:
        projector.load_state_dict(weights)
    except RuntimeError as error:
        found = {name: tuple(value.shape) for name, value in weights.items()}
        wanted = {name: tuple(value.shape) for name, value in projector.state_dict().items()}
        raise ValueError(
            f"{path} is of a projector of another type or size: it has {found}, this model {wanted}; give the "
            f"--mm_projector_type, tower and language model that it was trained with"
        ) from error


def with_vision_model_level(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, the tower's keys with the `vision_model.` level that transformers 5 removed from its
    modules.
    """

    def old_name(key: str) -> str:
        head, tower, tail = key.partition(_TOWER)
        return f"{head}{tower}vision_model.{tail}" if tower and not tail.startswith("vision_model.") else key

    return {old_name(key): value for key, value in state_dict.items()}
