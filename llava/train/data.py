"""LLaVA's JSON training data: samples prepared on demand, and the collator that makes batches of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

import llava.conversation
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation
from llava.mm_utils import Size, process_images
from llava.train.preprocess import BadSample
from llava.train.samples import check_room, encode_sample, find_image, image_names, open_image, read_samples, words

logger = logging.get_logger(__name__)


class LazySupervisedDataset(Dataset):
    """The samples of one JSON list: `{"id", "image" (optional: path or list of paths), "conversations"}`.

    `dataset[i]` is a dict of `input_ids` and `labels` (LongTensors `[length]`) and, in a multimodal run, `image` and
    `image_size`: the pixels `[3, height, width]`, with anyres `[tiles, 3, height, width]`, and the picture's own
    (width, height); lists of them for a list-valued sample. A text-only sample of a multimodal run gets a black image
    of one tile, so that every process runs the vision tower and the projector in every step.

    Args:
        data_path: the JSON file.
        tokenizer: with character offsets.
        data_args: DataArguments; `image_processor` set means a multimodal run.
        conversation: the template; default: `llava.conversation.default_conversation`.

    Raises:
        ValueError: the file is not a non-empty JSON list; and, from `dataset[i]`, `BadSample` naming the sample: image
            missing or corrupt, image and placeholder counts differ, roles in the wrong order, or nothing to learn. With
            `data_args.skip_bad_samples` the next usable sample is returned instead, and `skipped` counts them.
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
        # shared memory, so that the data loader's worker processes use the same counter
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
                    raise BadSample(f"{message}; correct it, or train without it by --skip_bad_samples True") from error
                self._skipped += 1
                logger.warning(f"skipped {message}")
        raise BadSample("no usable sample: every one of the data set was skipped")

    @property
    def skipped(self) -> int:
        """The number of replacements of unusable samples, over all worker processes."""
        return int(self._skipped.item())

    @property
    def lengths(self) -> list[int]:
        """Rough lengths in tokens: words of all turns, and 128 per sample with an image."""
        return [words(sample) + (128 if sample.get("image") else 0) for sample in self.samples]

    @property
    def modality_lengths(self) -> list[int]:
        """Words of all turns; negative for samples without an image. Never 0, which has no sign."""
        return [max(words(sample), 1) * (1 if sample.get("image") else -1) for sample in self.samples]

    def prepare(self, index: int) -> dict[str, Any]:
        """The sample `index` itself; raises BadSample with the reason when it is unusable."""
        sample = self.samples[index]
        multimodal = self.data_args.image_processor is not None
        if image_names(sample) and not multimodal:
            raise BadSample("it has an image, but there is no vision tower; give --vision_tower")
        encoded = encode_sample(sample, self.tokenizer, self.data_args, self.conversation)
        folder = Path(self.data_args.image_folder or "")
        images = [open_image(find_image(folder / name)) for name in encoded.images]
        tokens = [self.visual_tokens(image.size) for image in images]
        check_room(encoded, tokens, self.tokenizer.model_max_length)
        item: dict[str, Any] = {"input_ids": encoded.input_ids, "labels": encoded.labels}
        if multimodal:
            pixels = [self._pixels(image) for image in images] or [self._black_image()]
            sizes = [image.size for image in images] or [(pixels[0].shape[-1], pixels[0].shape[-2])]
            several = isinstance(sample.get("image"), list)
            item |= {"image": pixels, "image_size": sizes} if several else {"image": pixels[0], "image_size": sizes[0]}
        return item

    def visual_tokens(self, size: Size) -> int:
        """How many tokens a picture of (width, height) becomes."""
        count = self.data_args.tile_count
        return self.data_args.image_tokens if count is None else count(size)

    def _pixels(self, image: Image.Image) -> torch.Tensor:
        return process_images([image], self.data_args.image_processor, self.data_args)[0]

    def _black_image(self) -> torch.Tensor:
        size = self.data_args.image_processor.crop_size
        tiles = () if self.data_args.tile_count is None else (1,)
        return torch.zeros(*tiles, 3, size["height"], size["width"])


@dataclass
class DataCollatorForSupervisedDataset:
    """Batches of samples, padded on the right and truncated to the tokenizer's `model_max_length`.

    Returns `input_ids`, `labels` (LongTensors `[batch, length]`), `attention_mask` (bool, same shape), `images`:
    `[images, 3, height, width]` (anyres `[images, tiles, 3, height, width]`), or a list where their shapes differ, in
    the order of their placeholders; and `image_sizes`, (width, height) of each.
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
            sizes: list[Size] = []
            for instance, sequence in zip(instances, ids, strict=True):
                several = isinstance(instance["image"], list)
                # the image of a truncated placeholder is dropped, but one image always stays, as for text-only samples
                shown = max(int((sequence == IMAGE_TOKEN_INDEX).sum()), 1)
                images += instance["image"][:shown] if several else [instance["image"]]
                sizes += instance["image_size"][:shown] if several else [instance["image_size"]]
            same = all(image.shape == images[0].shape for image in images)
            batch |= {"images": torch.stack(images) if same else images, "image_sizes": sizes}
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
