"""LLaVA-1.5's training data, where it comes from, and the hours that its two stages took: for dry runs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from llava.forecast import size

CAPTIONS, DIALOGUES = "blip_laion_cc_sbu_558k.json", "llava_v1_5_mix665k.json"
"""The sample lists of stage 1 and stage 2."""
_TEXTVQA = "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip"
_GENOME = "https://cs.stanford.edu/people/rak248/VG_100K_2"


class Source(NamedTuple):
    """Where a file or folder of the data comes from, and its download in gigabytes; None where that is not known."""

    address: str
    gigabytes: float | None

    def __str__(self) -> str:
        return f"get it from {self.address}, {size(self.gigabytes)}"


LISTS = {
    CAPTIONS: Source("https://huggingface.co/datasets/liuhaotian/LLaVA-Pretrain", 0.18),
    DIALOGUES: Source("https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K", 1.03),
}
FOLDERS = {
    CAPTIONS: {"": Source("https://huggingface.co/datasets/liuhaotian/LLaVA-Pretrain (images.zip)", 27.4)},
    DIALOGUES: {
        "coco/train2017": Source("http://images.cocodataset.org/zips/train2017.zip", 18),
        "gqa/images": Source("https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip", 20),
        "ocr_vqa/images": Source("https://ocr-vqa.github.io", None),
        "textvqa/train_images": Source(_TEXTVQA, 6.5),
        "vg/VG_100K": Source(f"{_GENOME}/images.zip", 9.2),
        "vg/VG_100K_2": Source(f"{_GENOME}/images2.zip", 5.5),
    },
}
"""Folders of pictures below the image folder, by the sample list that names them; "" is the image folder itself."""
HOURS = {(CAPTIONS, "7b"): 3.5, (CAPTIONS, "13b"): 5.5, (DIALOGUES, "7b"): 10, (DIALOGUES, "13b"): 20}
"""Hours of one epoch on eight A100, without pruning and without LoRA, by sample list and size: LLaVA's README."""


def where_from(path: str) -> str:
    """How to get a published sample list; nothing for other files."""
    source = LISTS.get(Path(path).name)
    return "" if source is None else str(source)


def missing_folders(data_path: str, image_folder: Path) -> list[str]:
    """A line for each folder of pictures that a published sample list names and that is missing."""
    folders = {image_folder / name: source for name, source in FOLDERS.get(Path(data_path).name, {}).items()}
    return [f"{folder}: no such folder; {source}" for folder, source in folders.items() if not folder.is_dir()]


def hours(data_path: str, model: str) -> float | None:
    """Hours of a stage of LLaVA-1.5, by its sample list and the size in the model's name; None for anything else."""
    name = Path(model).name.lower()
    known = [
        value for (samples, weights), value in HOURS.items() if samples == Path(data_path).name and weights in name
    ]
    return known[0] if known and ("vicuna" in name or "llava-v1.5" in name) else None
