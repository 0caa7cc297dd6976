"""Everything that is wrong with a run's flags and files, found at once instead of one error for each start."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from llava.model.builder import load_tokenizer
from llava.model.checkpoint import local_folder, read_projector
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.remembered_pruner import remembered_pruner
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments
from llava.train.flags import contradictions
from llava.train.language_model import read_fields
from llava.train.resuming import chosen_checkpoint
from llava.train.samples import read_samples


def faults(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> list[str]:
    """One line for each thing that is wrong; weights are not read, and single samples are `check_data`'s part."""
    found = contradictions(model_args, training_args)

    def attempt(check: Callable[..., Any], *args: Any) -> Any:
        try:
            return check(*args)
        except ValueError as error:
            found.append(str(error))
            return None

    folder = attempt(local_folder, model_args.model_name_or_path, training_args.cache_dir)
    if folder is not None:
        fields = attempt(read_fields, folder)
        attempt(remembered_pruner, fields or {}, folder)
        attempt(load_tokenizer, str(folder))
    if model_args.vision_tower is not None:
        attempt(partial(build_vision_tower, delay_load=True), model_args)
    if model_args.pretrain_mm_mlp_adapter is not None:
        attempt(_check_projector, model_args.pretrain_mm_mlp_adapter)
    for path in (data_args.data_path, data_args.eval_data_path):
        if path is not None or path is data_args.data_path:
            attempt(read_samples, path)
    if data_args.image_folder is not None and not Path(data_args.image_folder).is_dir():
        found.append(
            f"--image_folder {data_args.image_folder}: no such folder; give the one that image paths start from"
        )
    asked = training_args.resume_from_checkpoint
    attempt(chosen_checkpoint, asked, training_args.output_dir, training_args.overwrite_output_dir)
    return list(dict.fromkeys(found))


def _check_projector(path: str) -> None:
    if not Path(path).is_file():
        raise ValueError(f"--pretrain_mm_mlp_adapter {path}: no such file; give the mm_projector.bin of stage 1")
    read_projector(path)
