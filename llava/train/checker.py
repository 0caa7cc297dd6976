"""All checks of one training sample, for `check_data`. The checks are those of the data set itself."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX
from llava.conversation import Conversation, SeparatorStyle
from llava.mm_utils import Size
from llava.train.anyres import TileCount
from llava.train.preprocess import BadSample
from llava.train.samples import (
    Encoded,
    check_room,
    encode_sample,
    find_image,
    image_names,
    open_image,
    read_turns,
    segments_of,
    spread_out,
    words,
)

# Kinds of problem that training does not stop at.
OTHER_EXTENSION = "image found under another extension"
EMPTY_ANSWER = "an answer is empty"
CUT = "cut at the longest length"
STRAY = "<image> in the text but no image"
LEFT_OUT = "an answer before the first question is left out"
SAME_ID = "id given before"
HARMLESS = (OTHER_EXTENSION, EMPTY_ANSWER, CUT, STRAY, LEFT_OUT, SAME_ID)


class Problem(NamedTuple):
    """A problem: its kind, equal for all samples that have it, and a description for this sample."""

    kind: str
    message: str

    @property
    def stops(self) -> bool:
        """Whether a training run would stop at the sample."""
        return self.kind not in HARMLESS


@dataclass
class Checked:
    """The result for a sample.

    tokens: text and images together, before truncation. learned: tokens with a label, after truncation. Both are None
    without a tokenizer, and where a problem prevents counting.
    """

    index: int
    images: int = 0
    words: int = 0
    tokens: int | None = None
    learned: int | None = None
    problems: list[Problem] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        return not any(problem.stops for problem in self.problems)

    def note(self, error: BadSample) -> None:
        self.problems.append(Problem(error.kind, str(error)))


@dataclass(frozen=True)
class Rules:
    """The requirements on samples. image_tokens: of an image; with a `tile_count` (anyres), that is used instead."""

    conversation: Conversation
    image_folder: str | None = None
    model_max_length: int = 2048
    image_tokens: int = 576
    tile_count: TileCount | None = None
    mm_use_im_start_end: bool = False

    def visual_tokens(self, size: Size) -> int:
        return self.image_tokens if self.tile_count is None else self.tile_count(size)


class Checker(Dataset):
    """`checker[i]` is sample i `Checked`: its pictures decoded (none kept); with a tokenizer, its tokens counted."""

    def __init__(self, samples: list[dict[str, Any]], rules: Rules, tokenizer: Any = None) -> None:
        self.samples = samples
        self.rules = rules
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Checked:
        sample = self.samples[index]
        checked = Checked(index, words=words(sample))
        try:
            names = image_names(sample)
            checked.images = len(names)
            checked.problems += remarks(sample, self.rules.conversation)
            segments_of(sample, self.rules, self.rules.conversation)
        except BadSample as error:
            checked.note(error)
        sizes = [self.decode(name, checked) for name in names] if checked.images else []
        whole = [size for size in sizes if size is not None]
        if self.tokenizer is not None and checked.usable:
            try:
                self.count(self.encode(index), [self.rules.visual_tokens(size) for size in whole], checked)
            except BadSample as error:
                checked.note(error)
        return checked

    def encode(self, index: int) -> Encoded:
        """The sample as training reads it; raises BadSample where training would."""
        return encode_sample(self.samples[index], self.tokenizer, self.rules, self.rules.conversation)

    def decode(self, name: str, checked: Checked) -> Size | None:
        """(width, height) of a picture; None, with a new problem, if it is missing or damaged."""
        path = Path(self.rules.image_folder or "") / name
        try:
            found = find_image(path)
            size = open_image(found).size
        except BadSample as error:
            checked.note(error)
            return None
        if found != path:
            checked.problems.append(Problem(OTHER_EXTENSION, f"{path} exists as {found.name}"))
        return size

    def count(self, encoded: Encoded, visual_tokens: list[int], checked: Checked) -> None:
        limit = self.rules.model_max_length
        try:
            check_room(encoded, visual_tokens, limit)
        except BadSample as error:  # noted here, because the lengths below belong to the report
            checked.note(error)
        layout = spread_out(encoded.input_ids, visual_tokens)
        answers = encoded.labels != IGNORE_INDEX
        left = answers & (layout.positions < limit)
        checked.tokens, checked.learned = layout.total, int(left.sum())
        if layout.total > limit and checked.usable:
            lost = int(answers.sum()) - checked.learned
            checked.problems.append(
                Problem(
                    CUT, f"{layout.total} tokens, {limit} allowed; {lost} of {int(answers.sum())} to learn are lost"
                )
            )


def remarks(sample: dict[str, Any], conversation: Conversation) -> Iterator[Problem]:
    """Problems of a sample's turns that training would accept. Raises BadSample if they are not turns."""
    turns = read_turns(sample)
    for number, turn in enumerate(turns):
        if turn["from"] == "gpt" and not turn["value"].strip():
            yield Problem(EMPTY_ANSWER, f"turn {number} says nothing")
    said = [turn["from"] for turn in turns if turn["from"] != "system"]
    if said[:1] == ["gpt"] and conversation.sep_style not in (SeparatorStyle.PLAIN, SeparatorStyle.SINGLE):
        yield Problem(LEFT_OUT, "its first turn is an answer")
    if "image" not in sample and any(DEFAULT_IMAGE_TOKEN in turn["value"] for turn in turns):
        yield Problem(STRAY, f"{DEFAULT_IMAGE_TOKEN} will be read as ordinary text")
