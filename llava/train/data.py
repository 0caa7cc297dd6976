"""LLaVA's JSON training data: samples prepared when they are needed, and the collator that makes batches of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

import llava.conversation
from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation
from llava.mm_utils import process_images
from llava.train.preprocess import BadSample, preprocess, preprocess_multimodal

logger = logging.get_logger(__name__)

IMAGE_EXTENSIONS = (".jpg", ".png", ".gif", ".jpeg")


class LazySupervisedDataset(Dataset):
    """The samples of one JSON list: `{"id", "image" (optional: path or list of paths), "conversations"}`.

    `dataset[i]` is a dict of `input_ids` and `labels` (LongTensors `[length]`) and, in a multimodal run, `image`: one
    tensor `[3, height, width]`, or a list of them for a list-valued sample. A text-only sample of a multimodal run
    gets a black image, so that every process always runs the vision tower and the projector.

    Args:
        data_path: the JSON file.
        tokenizer: with character offsets.
        data_args: DataArguments; `image_processor` set means a multimodal run.
        conversation: the template; default: `llava.conversation.default_conversation`.

    Raises:
        ValueError: the file is not a non-empty JSON list; and, from `dataset[i]`, `BadSample` naming the sample: image
            missing or corrupt, image and placeholder counts differ, roles out of turn, or nothing to learn. With
            `data_args.skip_bad_samples` the next usable sample is given instead, and `skipped` counts them.
    """

    def __init__(
        self,
        data_path: str,
        tokenizer: PreTrainedTokenizerBase,
        data_args: Any,
        conversation: Conversation | None = None,
    ) -> None:
        self.samples = read_samples(data_path)
        self.tokenizer = tokenizer
        self.data_args = data_args
        self.conversation = conversation or llava.conversation.default_conversation
        # shared memory, so that the data loader's worker processes count into the same cell
        self._skipped = torch.zeros(1, dtype=torch.long).share_memory_()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for offset in range(len(self)):
            position = (index + offset) % len(self)
            try:
                return self.prepare(position)
            except BadSample as error:
                message = f"sample {position} (id {self.samples[position].get('id')!r}): {error}"
                if not self.data_args.skip_bad_samples:
                    raise BadSample(f"{message}; mend it, or train without it by --skip_bad_samples True") from error
                self._skipped += 1
                logger.warning(f"skipped {message}")
        raise BadSample("no usable sample: every one of the data set was skipped")

    @property
    def skipped(self) -> int:
        """How often an unusable sample was replaced, over all worker processes."""
        return int(self._skipped.item())

    @property
    def lengths(self) -> list[int]:
        """Rough lengths in tokens: words of all turns, and 128 per sample with an image."""
        return [words(sample) + (128 if "image" in sample else 0) for sample in self.samples]

    @property
    def modality_lengths(self) -> list[int]:
        """Words of all turns; negative for samples without an image. Never 0, which would have no sign."""
        return [max(words(sample), 1) * (1 if "image" in sample else -1) for sample in self.samples]

    def prepare(self, index: int) -> dict[str, Any]:
        """The sample `index` itself; raises BadSample with the reason when it is unusable."""
        sample = self.samples[index]
        turns = sample.get("conversations")
        if not turns or not all(isinstance(turn.get("value"), str) and "from" in turn for turn in turns):
            raise BadSample('"conversations" must be a non-empty list of {"from": ..., "value": text}')
        names = sample.get("image", [])
        names = [names] if isinstance(names, str) else names
        if names and self.data_args.image_processor is None:
            raise BadSample("it has an image, but there is no vision tower; give --vision_tower")
        if names:
            (turns,) = preprocess_multimodal([turns], self.data_args, self.conversation, image_count=len(names))
        encoded = preprocess([turns], self.tokenizer, bool(names), self.conversation)
        item: dict[str, Any] = {"input_ids": encoded["input_ids"][0], "labels": encoded["labels"][0]}
        self._check(item, len(names))
        if self.data_args.image_processor is not None:
            images = [self._image(name) for name in names] or [self._black_image()]
            item["image"] = images if isinstance(sample.get("image"), list) else images[0]
        return item

    def _check(self, item: dict[str, Any], image_count: int) -> None:
        placeholders = int((item["input_ids"] == IMAGE_TOKEN_INDEX).sum())
        if placeholders != image_count:
            raise BadSample(f"it has {image_count} image(s) but {placeholders} {DEFAULT_IMAGE_TOKEN} placeholder(s)")
        learned = (item["labels"] != IGNORE_INDEX).nonzero()
        if not len(learned):
            raise BadSample("nothing to learn: it has no answer, or only empty ones")
        first = int(learned[0])
        images_before = int((item["input_ids"][:first] == IMAGE_TOKEN_INDEX).sum())
        first += images_before * (self.data_args.image_tokens - 1)
        if first >= self.tokenizer.model_max_length:
            raise BadSample(
                f"nothing to learn: its first answer begins at token {first} (images counted by their "
                f"{self.data_args.image_tokens} tokens), beyond --model_max_length {self.tokenizer.model_max_length}"
            )

    def _image(self, name: str) -> torch.Tensor:
        path = find_image(Path(self.data_args.image_folder or "") / name)
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise BadSample(f"image {path} cannot be read: {error}") from error
        return process_images([image], self.data_args.image_processor, self.data_args)[0]

    def _black_image(self) -> torch.Tensor:
        size = self.data_args.image_processor.crop_size
        return torch.zeros(3, size["height"], size["width"])


@dataclass
class DataCollatorForSupervisedDataset:
    """Batches of samples, padded on the right and cut to the tokenizer's `model_max_length`.

    Returns `input_ids`, `labels` (LongTensors `[batch, length]`), `attention_mask` (bool, same shape) and `images`:
    `[images, 3, height, width]`, or a list where their shapes differ, in the order of their placeholders.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, instances: list[dict[str, Any]]) -> dict[str, Any]:
        limit = self.tokenizer.model_max_length
        ids = [instance["input_ids"][:limit] for instance in instances]
        labels = [instance["labels"][:limit] for instance in instances]
        lengths = torch.tensor([len(sequence) for sequence in ids])
        pad = torch.nn.utils.rnn.pad_sequence
        batch: dict[str, Any] = {
            "input_ids": pad(ids, batch_first=True, padding_value=self.tokenizer.pad_token_id),
            "labels": pad(labels, batch_first=True, padding_value=IGNORE_INDEX),
        }
        # from the lengths, not from the pad id: LLaVA pads with <unk>, which may occur in a text
        batch["attention_mask"] = torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]
        if "image" in instances[0]:
            images: list[torch.Tensor] = []
            for instance in instances:
                images += instance["image"] if isinstance(instance["image"], list) else [instance["image"]]
            same = all(image.shape == images[0].shape for image in images)
            batch["images"] = torch.stack(images) if same else images
        return batch


def make_supervised_data_module(
    tokenizer: PreTrainedTokenizerBase, data_args: Any, conversation: Conversation | None = None
) -> dict[str, Any]:
    """Training set, evaluation set (None without `--eval_data_path`) and collator, by the Trainer's argument names."""
    evaluation = data_args.eval_data_path
    return {
        "train_dataset": LazySupervisedDataset(data_args.data_path, tokenizer, data_args, conversation),
        "eval_dataset": LazySupervisedDataset(evaluation, tokenizer, data_args, conversation) if evaluation else None,
        "data_collator": DataCollatorForSupervisedDataset(tokenizer),
    }


def read_samples(data_path: str | None) -> list[dict[str, Any]]:
    """The JSON list in `data_path`; ValueError in one line when it is missing, not JSON, not a list, or empty."""
    if not data_path or not Path(data_path).is_file():
        raise ValueError(f"--data_path {data_path}: no such file; give a JSON list of samples")
    try:
        samples = json.loads(Path(data_path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{data_path} is not JSON: {error}") from error
    if not isinstance(samples, list) or not samples or not all(isinstance(sample, dict) for sample in samples):
        raise ValueError(f"{data_path} must hold a non-empty JSON list of samples (objects)")
    return samples


def find_image(path: Path) -> Path:
    """`path`, or the file beside it with another image extension (some OCR-VQA images are .gif, listed as .jpg)."""
    for candidate in (path, *(path.with_suffix(extension) for extension in IMAGE_EXTENSIONS)):
        if candidate.is_file():
            return candidate
    raise BadSample(f"image {path} does not exist (nor with {', '.join(IMAGE_EXTENSIONS)})")


def words(sample: dict[str, Any]) -> int:
    """Number of whitespace-separated words over all turns."""
    return sum(len(str(turn.get("value", "")).split()) for turn in sample.get("conversations", []))
