"""From which checkpoint a run continues: the newest that is whole, with a line about every one that is passed over."""

import zipfile
from pathlib import Path
from typing import Any

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from llava.model.checkpoint import PROJECTOR, finish_save, read_bin, read_object, refuse_pointer, weight_names
from llava.model.lora import OTHER_WEIGHTS, is_lora_folder, read_adapter
from llava.train.saving import BadCheckpoint

logger = logging.get_logger(__name__)

_CHECKSUM = 2**30  # bytes; of larger files only the list at their end is read, which a cut file lacks


def chosen_checkpoint(asked: str | bool | None, output_dir: str | None, overwrite: bool) -> str | None:
    """The checkpoint of `--resume_from_checkpoint`, None for a run from the beginning.

    asked: a folder; True or "True" for the last one in `output_dir`; False or "False" for none; None or "None" for the
        last one if there is one, unless `overwrite`.

    Raises ValueError, one line, when the folder does not exist or is not whole, and when True finds none.
    """
    words = {"true": True, "false": False, "none": None, "": None}
    wish = words.get(asked.lower(), asked) if isinstance(asked, str) else asked
    if wish is False or (wish is None and overwrite):
        return None
    if wish is None or wish is True:
        found = last_complete_checkpoint(output_dir)
        if found is None and wish is True:
            raise ValueError(
                f"--resume_from_checkpoint True: {output_dir} has no complete checkpoint; give a folder, or leave out "
                "the flag"
            )
        return found
    if not Path(wish).is_dir():
        raise ValueError(
            f"--resume_from_checkpoint {wish}: no such folder; give a checkpoint-N folder, True for the last one in "
            f"--output_dir, or False"
        )
    check_whole(Path(wish))
    return wish


def last_complete_checkpoint(output_dir: str | None) -> str | None:
    """The newest whole `checkpoint-N` in `output_dir`, or None; see `check_whole`."""
    numbered = [
        (int(folder.name.rpartition("-")[2]), folder)
        for folder in Path(output_dir or ".").glob("checkpoint-*")
        if folder.name.rpartition("-")[2].isdecimal() and folder.is_dir()
    ]
    for _, folder in sorted(numbered, reverse=True):
        try:
            check_whole(folder)
        except ValueError as error:
            logger.warning(f"{folder} is skipped: {error}")
            continue
        return str(folder)
    if numbered:
        logger.warning(f"no checkpoint in {output_dir} is complete; the run starts from the beginning")
    return None


def check_whole(folder: Path) -> None:
    """Raise BadCheckpoint, one line, unless the folder has everything that a run needs to continue as if unbroken.

    These are the Trainer's state, weights, and the states of optimizer, scheduler and random numbers, none of them cut.
    """
    try:
        finish_save(folder)
        _check_state(folder)
        _check_weights(folder)
        _check_rest(folder)
    except ValueError as error:
        raise BadCheckpoint(f"{error}"[:500]) from error


def _check_state(folder: Path) -> None:
    file = folder / TRAINER_STATE_NAME
    if not file.is_file():
        raise ValueError(
            f"{folder} is not a complete checkpoint: it has no {TRAINER_STATE_NAME}; the save was interrupted"
        )
    fields = read_object(file)
    types: dict[str, Any] = {
        "global_step": int,
        "max_steps": int,
        "num_train_epochs": int,
        "log_history": list,
        "epoch": (int, float),
    }
    wrong = [name for name, kind in types.items() if not isinstance(fields.get(name), kind)]
    number = folder.name.rpartition("-")[2]
    if (
        not wrong
        and number.isdecimal()
        and folder.name.startswith("checkpoint-")
        and int(number) != fields["global_step"]
    ):
        wrong = ["global_step"]
    try:
        TrainerState.load_from_json(str(file))
    except Exception as error:
        raise ValueError(f"{file} is not a state of the Trainer ({' '.join(str(error).split())})") from error
    if wrong:
        raise ValueError(f"{file} is not a state of the Trainer: {wrong[0]} is {str(fields.get(wrong[0]))[:40]}")


def _check_weights(folder: Path) -> None:
    if is_lora_folder(folder):
        read_adapter(folder)
        if (folder / OTHER_WEIGHTS).is_file():
            read_bin(folder / OTHER_WEIGHTS)
    elif (folder / PROJECTOR).is_file():
        read_bin(folder / PROJECTOR)
    else:
        weight_names(folder)


def _check_rest(folder: Path) -> None:
    if (folder / "latest").is_file():  # DeepSpeed's own folder has the optimizer
        step = (folder / "latest").read_text("utf-8", "replace").strip()
        if not any((folder / step).glob("*.pt")):
            raise ValueError(f"{folder} lacks DeepSpeed's folder {step[:80]}")
        return
    random_states = sorted(folder.glob("rng_state*.pth")) or [folder / "rng_state.pth"]
    for file in (folder / "optimizer.pt", folder / "scheduler.pt", *random_states):
        if not file.is_file():
            raise ValueError(f"{file} is missing; without it the run cannot be continued exactly")
        refuse_pointer(file)
        try:
            with zipfile.ZipFile(file) as content:
                damaged = content.testzip() if file.stat().st_size < _CHECKSUM else None
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"{file} is damaged ({error})") from error
        if damaged:
            raise ValueError(f"{file} is damaged (in {damaged})")
