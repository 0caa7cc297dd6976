"""Checks and preparation of single training samples, for the data set and `check_data`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation
from llava.given import BOM, home_path, parse_json, read_bytes
from llava.pictures import read_picture
from llava.train.preprocess import BadSample, Segment, encode, preprocess_multimodal, to_segments

UNREAD = ("images", "video", "videos", "audio")  # other programs' fields, whose content would be lost
IMAGE_EXTENSIONS = (".jpg", ".png", ".gif", ".jpeg")

# kinds of BadSample
MALFORMED = "malformed sample"
UNREAD_KIND = "field that is not read"
NO_IMAGE = "image missing"
BAD_IMAGE = "image unreadable"
COUNTS = "images and placeholders differ"
NO_ANSWER = "nothing to learn: no answer"
NO_ROOM = "nothing to learn: too long"


class Encoded(NamedTuple):
    """input_ids and labels, LongTensors [length], see `preprocess`; images: the sample's image paths, in order."""

    input_ids: Tensor
    labels: Tensor
    images: list[str]


class Layout(NamedTuple):
    """Positions of text tokens after the insertion of images.

    positions [length], of each token of `input_ids` (of an image: its first); total: the whole length.
    """

    positions: Tensor
    total: int


def read_samples(data_path: str | None) -> list[dict[str, Any]]:
    """The samples in `data_path`, a JSON list or JSON lines; ValueError in one line when it holds neither, or none."""
    if not data_path or not home_path(data_path).is_file():
        raise ValueError(f"--data_path {data_path}: no such file; give a JSON list of samples, or JSON lines")
    content = read_bytes(data_path, "--data_path").removeprefix(BOM)
    try:
        samples = _lines(content) if data_path.endswith((".jsonl", ".ndjson")) else _list_or_lines(content)
    except ValueError as error:
        raise ValueError(f"{data_path} is not JSON: {error}") from error
    if not isinstance(samples, list) or not samples or not all(isinstance(sample, dict) for sample in samples):
        raise ValueError(f"{data_path} must hold a non-empty JSON list of samples (objects), or one on each line")
    return samples


def _list_or_lines(content: bytes) -> Any:
    try:
        return parse_json(content, surrogates=True)
    except ValueError:
        first = content.lstrip().split(b"\n", 1)
        if len(first) < 2 or not first[0].startswith(b"{") or not first[0].rstrip().endswith(b"}"):
            raise
        return _lines(content)


def _lines(content: bytes) -> list[Any]:
    found = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            found += [parse_json(line, surrogates=True)] if line.removeprefix(BOM).strip() else []
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return found


def image_names(sample: dict[str, Any]) -> list[str]:
    """The sample's image paths; none for a text-only sample.

    Raises BadSample for anything other than paths, and for pictures or videos in fields that training does not read.
    """
    for field in UNREAD:
        if sample.get(field):
            raise BadSample(
                f'it has "{field}", which is not read; give pictures as "image", a path or a list', UNREAD_KIND
            )
    names = sample.get("image") or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadSample(f'"image" must be a path or a list of paths, not {str(names)[:80]}', MALFORMED)
    return names


def words(sample: dict[str, Any]) -> int:
    """Number of whitespace-separated words over all turns."""
    turns = sample.get("conversations")
    turns = turns if isinstance(turns, list) else []
    return sum(len(str(turn.get("value", "")).split()) for turn in turns if isinstance(turn, dict))


def read_turns(sample: dict[str, Any]) -> list[dict[str, str]]:
    """The sample's turns; raises BadSample unless each has a role and text."""
    turns = sample.get("conversations")
    turns = turns if isinstance(turns, list) else []
    told = [
        isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("from", "value")) for turn in turns
    ]
    if not turns or not all(told):
        raise BadSample('"conversations" must be a non-empty list of {"from": role, "value": text}', MALFORMED)
    if any(not _is_unicode(turn["value"]) for turn in turns):
        raise BadSample("its text has half a surrogate pair, which is not a character; correct the escapes", MALFORMED)
    return turns


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def segments_of(sample: dict[str, Any], data_args: Any, conversation: Conversation) -> list[Segment]:
    """The learned and other segments of text. Needs no tokenizer and opens no image.

    data_args: `mm_use_im_start_end` is used.
    Raises BadSample: malformed, roles in the wrong order, not for this template, not one placeholder for each image,
    or nothing to learn.
    """
    turns, names = read_turns(sample), image_names(sample)
    if names:
        (turns,) = preprocess_multimodal([turns], data_args, conversation, image_count=len(names))
    segments = to_segments(turns, conversation)
    placeholders = sum(segment.text.count(DEFAULT_IMAGE_TOKEN) for segment in segments) if names else 0
    if not names and "image" in sample and any(DEFAULT_IMAGE_TOKEN in turn["value"] for turn in turns):
        raise BadSample(f'its text has {DEFAULT_IMAGE_TOKEN}, but its "image" is empty; give the path', COUNTS)
    if placeholders != len(names):
        raise BadSample(f"it has {len(names)} image(s) but {placeholders} {DEFAULT_IMAGE_TOKEN} placeholder(s)", COUNTS)
    if not any(segment.learned and segment.text for segment in segments):
        raise BadSample("nothing to learn: it has no answer, or only empty ones", NO_ANSWER)
    return segments


def encode_sample(
    sample: dict[str, Any], tokenizer: PreTrainedTokenizerBase, data_args: Any, conversation: Conversation
) -> Encoded:
    """Ids and labels of a sample. Raises BadSample as `segments_of` does."""
    names = image_names(sample)
    input_ids, labels = encode(segments_of(sample, data_args, conversation), tokenizer, bool(names))
    if not bool((labels != IGNORE_INDEX).any()):
        raise BadSample("nothing to learn: its answers give no tokens", NO_ANSWER)
    return Encoded(input_ids, labels, names)


def spread_out(input_ids: Tensor, visual_tokens: Sequence[int]) -> Layout:
    """The positions of the tokens of `input_ids` when its images take `visual_tokens` positions each."""
    sizes = torch.ones_like(input_ids)
    sizes[input_ids == IMAGE_TOKEN_INDEX] = torch.tensor(visual_tokens, dtype=sizes.dtype)
    ends = sizes.cumsum(0)
    return Layout(ends - sizes, int(ends[-1]))


def check_room(encoded: Encoded, visual_tokens: Sequence[int], limit: int) -> None:
    """Raise BadSample when all learned tokens are beyond the `limit` at which sequences are truncated.

    visual_tokens: of each image.
    """
    first = int(spread_out(encoded.input_ids, visual_tokens).positions[encoded.labels != IGNORE_INDEX][0])
    if first >= limit:
        counted = " and ".join(str(count) for count in dict.fromkeys(visual_tokens))
        images = f" (images counted by their {counted} tokens)" if counted else ""
        raise BadSample(
            f"nothing to learn: its first answer begins at token {first}{images}, beyond --model_max_length {limit}",
            NO_ROOM,
        )


def find_image(path: Path) -> Path:
    """`path`, or the same file with another image extension (some OCR-VQA images are .gif, listed as .jpg)."""
    try:
        for candidate in (path, *(path.with_suffix(extension) for extension in IMAGE_EXTENSIONS)):
            if candidate.is_file():
                return candidate
    except (OSError, ValueError) as error:  # too long, no permission, no name at all
        raise BadSample(f"image {str(path)[:200]} cannot be looked up: {error}"[:400], NO_IMAGE) from error
    raise BadSample(f"image {path} does not exist (nor with {', '.join(IMAGE_EXTENSIONS)})", NO_IMAGE)


def open_image(path: Path) -> Image.Image:
    """The whole picture in RGB. Raises BadSample when the file is damaged, too large, or not a picture."""
    try:
        return read_picture(path)
    except ValueError as error:
        raise BadSample(str(error), BAD_IMAGE) from error
