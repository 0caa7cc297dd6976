"""Everything that is wrong with a run's flags and files, found at once instead of one error for each start.

And what the run would download, and about how long it would take.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from flowcut.cli.command_line import refuse
from llava.forecast import duration, from_environment, missing_weights, size
from llava.given import HUB_NAME, home_path
from llava.model.builder import load_tokenizer
from llava.model.checkpoint import listed, local_folder, read_projector
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.remembered_pruner import remembered_pruner
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments
from llava.train.flags import contradictions
from llava.train.language_model import read_fields
from llava.train.published import FOLDERS, hours, missing_folders, where_from
from llava.train.resuming import chosen_checkpoint
from llava.train.samples import read_samples

SAMPLES_PER_SECOND = "SAMPLES_PER_SECOND"
"""The variable of the environment that says how fast this machine trains: `train_samples_per_second` of a run's log."""
_SMALL = ["*.json", "tokenizer.model"]
"""What a dry run downloads of a model: no weights."""


def examine(wrong: list[str], *groups: Any) -> bool:
    """A dry run's part before the trainer is built: print what is missing, and refuse everything that is wrong.

    wrong: what the flags' reader has found. groups: model, data and training arguments. Returns whether all weights are
    on this machine, so that the trainer can be built too.
    """
    here = True
    if groups[2].dry_run:
        wrong = [*wrong, *faults(*groups)]
        here = forecast(*groups)
    if wrong:
        refuse("\n".join(f"error: {reason}" for reason in wrong))
    if not here:
        print("dry run: nothing is wrong with what is here, and nothing was trained")
    return here


def faults(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> list[str]:
    """One line for each thing that is wrong; weights are not read, and single samples are `check_data`'s part."""
    found = contradictions(model_args, training_args)

    def attempt(check: Callable[..., Any], *args: Any) -> Any:
        try:
            return check(*args)
        except ValueError as error:
            found.append(str(error))
            return None

    folder = attempt(local_folder, model_args.model_name_or_path, training_args.cache_dir, _SMALL)
    if folder is not None:
        fields = attempt(read_fields, folder)
        attempt(remembered_pruner, fields or {}, folder)
        attempt(load_tokenizer, str(folder))
    if model_args.vision_tower is not None:
        attempt(partial(build_vision_tower, delay_load=True), model_args)
    if model_args.pretrain_mm_mlp_adapter is not None:
        attempt(_check_projector, model_args.pretrain_mm_mlp_adapter)
    samples = [attempt(_read_list, path) for path in (data_args.data_path, data_args.eval_data_path) if path]
    if not data_args.data_path:
        attempt(read_samples, None)
    if data_args.image_folder is not None:
        found += _missing_pictures(data_args.data_path or "", samples, Path(data_args.image_folder))
    asked = training_args.resume_from_checkpoint
    attempt(chosen_checkpoint, asked, training_args.output_dir, training_args.overwrite_output_dir)
    return list(dict.fromkeys(found))


def _read_list(path: str) -> list[dict[str, Any]]:
    if not home_path(path).is_file() and where_from(path):
        raise ValueError(f"{path}: no such file; {where_from(path)}")
    return read_samples(path)


def _missing_pictures(data_path: str, samples: list[list[dict[str, Any]] | None], folder: Path) -> list[str]:
    """A line for each published folder that is missing; one for the folders that samples of other lists name."""
    if Path(data_path).name in FOLDERS:
        return missing_folders(data_path, folder)
    if not folder.is_dir():
        return [f"--image_folder {folder}: no such folder; give the one that image paths start from"]
    images = (sample.get("image") for own in samples for sample in own or ())
    named = {PurePosixPath(image).parent for image in images if isinstance(image, str)}
    lacking = [str(name) for name in named if not (folder / name).is_dir()]
    return [f"--image_folder {folder} lacks folders that samples name: {listed(lacking)}"] if lacking else []


def _check_projector(path: str) -> None:
    if not Path(path).is_file():
        raise ValueError(f"--pretrain_mm_mlp_adapter {path}: no such file; give the mm_projector.bin of stage 1")
    read_projector(path)


def forecast(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> bool:
    """Print which models the run would download, and its hours; returns whether all models are on this machine."""
    names = (model_args.model_name_or_path, model_args.vision_tower)
    absent = missing_weights([name for name in names if name and HUB_NAME.fullmatch(name)], training_args.cache_dir)
    for name, gigabytes in absent.items():
        print(f"https://huggingface.co/{name} will be downloaded, {size(gigabytes)}")
    print(f"estimate: {_hours(model_args, data_args, training_args)}")
    return not absent


def _hours(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> str:
    """By the environment's `SAMPLES_PER_SECOND`, else LLaVA's published hours for its own recipe."""
    epochs, path = training_args.num_train_epochs, data_args.data_path or ""
    own = from_environment(SAMPLES_PER_SECOND)
    if own is not None and home_path(path).is_file() and training_args.max_steps <= 0:
        return f"{duration(epochs * len(read_samples(path)) / own)} at {own:g} samples a second"
    published = hours(path, model_args.model_name_or_path or "")
    other = training_args.lora_enable or training_args.max_steps > 0 or data_args.image_aspect_ratio == "anyres"
    if published is None or other:
        return f"hours unknown; {SAMPLES_PER_SECOND}=n and the list of samples give them"
    return (
        f"{duration(3600 * published * epochs)} on eight A100, as LLaVA's README says of its own run; fewer with fewer "
        f"visual tokens ({SAMPLES_PER_SECOND}=n sets another speed)"
    )
