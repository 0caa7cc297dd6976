"""Converts conversations to token ids and labels.

A conversation becomes a list of text segments, each to be learned or not. The text is tokenised exactly as at inference
(`llava.mm_utils.tokenizer_image_token`); a token is learned when its first character is in a learned segment. The
mask thus follows the actual ids and is correct for any tokenizer behaviour at the segments' borders.
"""

import itertools
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

import llava.conversation
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import Conversation, SeparatorStyle
from llava.mm_utils import with_dummy_prefix

Turn = dict[str, str]  # {"from": "human" or "gpt", "value": text}
# kinds of BadSample
ROLES = "roles out of turn"
OTHER_TEMPLATE = "not for this template"
MPT_SYSTEM = "<|im_start|>system\n"


class BadSample(ValueError):
    """A training sample that cannot be used; the message has the reason, `kind` its short form."""

    def __init__(self, message: str, kind: str = "unusable sample") -> None:
        # the message only: the data loader creates the exception again from it; a file's name may hold anything
        super().__init__(" ".join(message.encode("utf-8", "backslashreplace").decode().split()))
        self.kind = kind


class Segment(NamedTuple):
    """A piece of the prompt, and whether it is learned."""

    text: str
    learned: bool


def preprocess(
    sources: list[list[Turn]],
    tokenizer: PreTrainedTokenizerBase,
    has_image: bool = False,
    conversation: Conversation | None = None,
) -> dict[str, list[torch.Tensor]]:
    """Token ids and labels of conversations, by the scheme that belongs to the template.

    Args:
        sources: conversations, each a list of `{"from": "human" | "gpt", "value": str}`.
        tokenizer: must give character offsets (every tokenizer of the `tokenizers` library does).
        has_image: whether `<image>` is a placeholder of an image; else it is ordinary text.
        conversation: the template; default: `llava.conversation.default_conversation`.

    Returns:
        `input_ids` and `labels`, each a list of LongTensors `[length]`, one per conversation. Images are
        `IMAGE_TOKEN_INDEX` in `input_ids`; tokens that are not learned are `IGNORE_INDEX` in `labels`.

    Raises:
        BadSample: roles do not alternate, or the turns do not fit the template.
    """
    conversation = conversation or llava.conversation.default_conversation
    pairs = [encode(to_segments(turns, conversation), tokenizer, has_image) for turns in sources]
    return {"input_ids": [ids for ids, _ in pairs], "labels": [labels for _, labels in pairs]}


def preprocess_v1(sources: list[list[Turn]], tokenizer: PreTrainedTokenizerBase, has_image: bool = False) -> dict:
    """`preprocess` with the Vicuna v1 template: learned are the answers, each with its `</s>`."""
    return preprocess(sources, tokenizer, has_image, llava.conversation.conv_templates["v1"])


def preprocess_llama_2(sources: list[list[Turn]], tokenizer: PreTrainedTokenizerBase, has_image: bool = False) -> dict:
    """`preprocess` with LLaVA's Llama-2 template: learned are the answers, each with the space and `</s>` after it."""
    return preprocess(sources, tokenizer, has_image, llava.conversation.conv_templates["llava_llama_2"])


def preprocess_mpt(sources: list[list[Turn]], tokenizer: PreTrainedTokenizerBase, has_image: bool = False) -> dict:
    """`preprocess` with the MPT template: learned are the answers, each with its `<|im_end|>`."""
    return preprocess(sources, tokenizer, has_image, llava.conversation.conv_templates["mpt"])


def preprocess_plain(sources: list[list[Turn]], tokenizer: PreTrainedTokenizerBase) -> dict:
    """`preprocess` for projector pretraining: image and caption only; learned are the caption and its newline."""
    return preprocess(sources, tokenizer, True, llava.conversation.conv_templates["plain"])


def preprocess_multimodal(
    sources: list[list[Turn]], data_args: Any, conversation: Conversation | None = None, image_count: int = 1
) -> list[list[Turn]]:
    """Convert the `<image>` placeholders to the format of training; returns new conversations.

    With one image, the placeholder is moved to the beginning of its turn and followed by a newline. With
    several images the placeholders stay where they are, because their positions are part of the question. The `mmtag`
    templates wrap a placeholder as `<Image>...</Image>`; `data_args.mm_use_im_start_end` adds its two tokens.
    """
    conversation = conversation or llava.conversation.default_conversation
    placeholder = DEFAULT_IMAGE_TOKEN
    if "mmtag" in conversation.version:
        placeholder = f"<Image>{placeholder}</Image>"
    if data_args.mm_use_im_start_end:
        placeholder = placeholder.replace(
            DEFAULT_IMAGE_TOKEN, DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN
        )

    def rewrite(text: str) -> str:
        if DEFAULT_IMAGE_TOKEN in text and image_count == 1:
            rest = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
            text = f"{DEFAULT_IMAGE_TOKEN}\n{rest}".strip()
        return text.replace(DEFAULT_IMAGE_TOKEN, placeholder)

    return [[{**turn, "value": rewrite(turn["value"])} for turn in turns] for turns in sources]


def to_segments(turns: list[Turn], conversation: Conversation) -> list[Segment]:
    """The prompt of a conversation as learned and other segments, by the scheme that belongs to the template.

    Raises BadSample as `preprocess` does.
    """
    if conversation.sep_style == SeparatorStyle.PLAIN:
        return plain_segments(turns, conversation)
    if turns[0]["from"] == "system":
        conversation, turns = with_system(conversation, turns[0]["value"]), turns[1:]
    if not turns:
        raise BadSample("it has a system turn only", ROLES)
    if conversation.sep_style == SeparatorStyle.SINGLE:
        return version_0_segments(turns, conversation)
    return dialogue_segments(turns, conversation)


def with_system(conversation: Conversation, text: str) -> Conversation:
    """The template with a sample's own system text, if it has any; MPT's template has marks before it."""
    changed = conversation.copy()
    if text.strip():
        before, mark, _ = conversation.system.partition(MPT_SYSTEM)
        changed.system = before + mark + text if mark else text
    return changed


def plain_segments(turns: list[Turn], conversation: Conversation) -> list[Segment]:
    """Image, then the caption and a newline, which are learned. The human turn's text is dropped."""
    if len(turns) != 2 or DEFAULT_IMAGE_TOKEN not in turns[0]["value"]:
        raise BadSample(
            f"--version plain takes one human turn with {DEFAULT_IMAGE_TOKEN} and one caption; this sample has "
            f"{len(turns)} turns, the first {'with' if DEFAULT_IMAGE_TOKEN in turns[0]['value'] else 'without'} it",
            OTHER_TEMPLATE,
        )
    if [turn["from"] for turn in turns] != ["human", "gpt"]:
        raise BadSample(f"--version plain takes human and gpt, not {turns[0]['from']!r}, {turns[1]['from']!r}", ROLES)
    return [Segment(DEFAULT_IMAGE_TOKEN, False), Segment(turns[1]["value"] + conversation.sep, True)]


def dialogue_segments(turns: list[Turn], conversation: Conversation) -> list[Segment]:
    """System text and questions are not learned; answers with their end token are. As in LLaVA, an answer before the
    first question is left out.

    The template renders the prompt once up to the answer and once with it. The difference is the learned
    text, with the same spaces and end tokens as at inference.
    """
    if turns[0]["from"] == "gpt":
        turns = turns[1:]
    conversation = conversation.copy()
    conversation.messages = []
    segments, rendered = [], ""
    for index, turn in enumerate(turns):
        if turn["from"] != ("human", "gpt")[index % 2]:
            raise BadSample(f"human and gpt must take turns; turn {index} is from {turn['from']!r}", ROLES)
        if index % 2 == 0:
            conversation.append_message(conversation.roles[0], turn["value"])
            conversation.append_message(conversation.roles[1], None)
        else:
            conversation.messages[-1][1] = turn["value"]
        try:
            prompt = conversation.get_prompt()
        except ValueError as error:
            raise BadSample(f"the template cannot express it: {error}", OTHER_TEMPLATE) from error
        assert prompt.startswith(rendered), "templates render a conversation's beginning as its prompt's beginning"
        segments.append(Segment(prompt[len(rendered) :], index % 2 == 1))
        rendered = prompt
    return segments


def version_0_segments(turns: list[Turn], conversation: Conversation) -> list[Segment]:
    """The first LLaVA's scheme: `### Role: text` lines. Learned are the answers' lines and the marks before a turn."""
    segments = [Segment(f"{conversation.system}\n\n", False)]
    names = {"human": conversation.roles[0], "gpt": conversation.roles[1]}
    for index, turn in enumerate(turns):
        if turn["from"] not in names:
            raise BadSample(f"a turn is from human or gpt; turn {index} is from {turn['from']!r}", ROLES)
        line = f" {names[turn['from']]}: {turn['value']}\n"
        segments += [Segment("###", True), Segment(line, turn["from"] == "gpt")]
    return [*segments, Segment("### ", True)]


def encode(
    segments: list[Segment], tokenizer: PreTrainedTokenizerBase, has_image: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, LongTensors `[length]`, of a prompt given as segments.

    The ids are those of `tokenizer_image_token` on the joined text: the pieces between images are tokenised one by
    one, and the beginning-of-sequence token is kept once.
    """
    prompt = "".join(segment.text for segment in segments)
    learned = list(itertools.chain.from_iterable([segment.learned] * len(segment.text) for segment in segments))
    ids: list[int] = []
    labels: list[int] = []
    position = 0
    for number, piece in enumerate(prompt.split(DEFAULT_IMAGE_TOKEN) if has_image else [prompt]):
        if number:
            ids.append(IMAGE_TOKEN_INDEX)
            labels.append(IGNORE_INDEX)
            position += len(DEFAULT_IMAGE_TOKEN)
        # verbose=False: the length warning would count text only; the collator truncates and the dataset reports
        given = with_dummy_prefix(piece, tokenizer)
        encoding = tokenizer(given, return_offsets_mapping=True, verbose=False)
        shift = len(given) - len(piece)
        piece_ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        skip = int(bool(piece_ids) and piece_ids[0] == tokenizer.bos_token_id)
        if number == 0:
            ids += piece_ids[:skip]
            labels += [IGNORE_INDEX] * skip
        for token, (start, _) in zip(piece_ids[skip:], offsets[skip:], strict=True):
            ids.append(token)
            labels.append(token if learned[position + max(start - shift, 0)] else IGNORE_INDEX)
        position += len(piece)
    return torch.tensor(ids), torch.tensor(labels)
