"""Prompts, ids and masks of every template, written out by hand and computed without the code under test.

The expected prompt of each template is text in which the learned parts stand between « and ». Its ids come from the
sentencepiece library itself, piece by piece between images and special tokens; where a token lies is read off the bytes
of its pieces. LLaMA's own vocabulary is not at hand, so its published ids (`USER` after `</s>` is one token there, two
at the beginning) cannot be compared; what follows from them, that text is cut as in context, is.
"""

import re
from types import SimpleNamespace

import pytest
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import tokenizer_image_token
from llava.model.tokenizer import load_llama_tokenizer
from llava.train.preprocess import preprocess, preprocess_multimodal

USER = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
HUMAN = USER.replace("user", "human")
TAGGED = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able to understand the "
    "visual content that the user provides, and assist the user with a variety of tasks using natural language.The "
    "visual content will be provided with the following format: <Image>visual content</Image>."
)
VISION = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
META = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\nIf a question does not make "
    "any sense, or is not factually coherent, explain why instead of answering something not correct. If you don't "
    "know the answer to a question, please don't share false information."
)
MPT = "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
DIALOGUE = [
    {"from": "human", "value": "how many cats?\n<image>"},
    {"from": "gpt", "value": "two cats"},
    {"from": "human", "value": "hello"},
    {"from": "gpt", "value": "hello wörld"},
]

TWO = "{system} USER: {image}\nhow many cats? ASSISTANT:« two cats</s>»USER: hello ASSISTANT:« hello wörld</s>»"
INST = "[INST] {system}{image}\nhow many cats? [/INST]« two cats </s>»{start}[INST] hello [/INST]« hello wörld </s>»"
CHAT = (
    "<|im_start|>system\n{system}<|im_end|><|im_start|>user\n{image}\nhow many cats?<|im_end|><|im_start|>assistant\n"
    "«two cats<|im_end|>»<|im_start|>user\nhello<|im_end|><|im_start|>assistant\n«hello wörld<|im_end|>»"
)
LINES = (
    "{system}\n\n«###» Human: {image}\nhow many cats?\n«### Assistant: two cats\n»«###» Human: hello\n"
    "«### Assistant: hello wörld\n»«### »"
)
TAG = "<Image><image></Image>"
PROMPTS = {
    "v1": TWO.format(system=USER, image="<image>"),
    "vicuna_v1": TWO.format(system=USER, image="<image>"),
    "llava_v1": TWO.format(system=HUMAN, image="<image>"),
    "v1_mmtag": TWO.format(system=TAGGED, image=TAG),
    "llama_2": INST.format(system=f"<<SYS>>\n{META}\n<</SYS>>\n\n", image="<image>", start="<s>"),
    "llava_llama_2": INST.format(system=f"<<SYS>>\n{VISION}\n<</SYS>>\n\n", image="<image>", start="<s>"),
    "mistral_instruct": INST.format(system="", image="<image>", start=""),
    "mpt": CHAT.format(system=MPT, image="<image>"),
    "chatml_direct": CHAT.format(system="Answer the questions.", image="<image>"),
    "mistral_direct": CHAT.format(system="Answer the questions.", image="<image>"),
    "v0": LINES.format(system=HUMAN, image="<image>"),
    "default": LINES.format(system=HUMAN, image="<image>"),
    "llava_v0": LINES.format(system=HUMAN, image="<image>"),
    "v0_mmtag": LINES.format(system=TAGGED, image=TAG),
}


class Reference:
    """Ids and learned ids of a marked prompt, by sentencepiece."""

    def __init__(self, folder, legacy: bool, marks: dict[str, int]) -> None:
        model = ModelProto()
        model.ParseFromString((folder / "tokenizer.model").read_bytes())
        self.prefixed = SentencePieceProcessor(model_proto=model.SerializeToString())
        model.normalizer_spec.add_dummy_prefix = False
        self.bare = SentencePieceProcessor(model_proto=model.SerializeToString())
        self.legacy = legacy
        self.special = {"<s>": 1, "</s>": 2, "<unk>": 0, **marks}

    def tokens(self, text: str) -> list[tuple[int, int]]:
        """(id, first byte in the text) of a piece of prompt without images."""
        found, at = [], 0
        for part in re.split("|".join(f"({re.escape(mark)})" for mark in self.special), text):
            if part in self.special:
                found.append((self.special[part], at))
            elif part:
                prefix = self.legacy or at == 0
                place = at - prefix  # the prefix is no byte of the text
                for token in (self.prefixed if prefix else self.bare).encode(part):
                    found.append((token, max(place, at)))
                    piece = self.bare.id_to_piece(token)
                    place += 1 if self.bare.is_byte(token) else len(piece.replace("▁", " ").encode())
                assert place == at + len(part.encode())
            at += len((part or "").encode())
        return found

    def __call__(self, marked: str, has_image: bool = True) -> tuple[list[int], list[int]]:
        ids, labels = [1], [IGNORE_INDEX]
        learned, chunks = False, marked.split("<image>") if has_image else [marked]
        for number, chunk in enumerate(chunks):
            if number:
                ids.append(IMAGE_TOKEN_INDEX)
                labels.append(IGNORE_INDEX)
            mask = []
            for part in re.split("([«»])", chunk):
                learned = part == "«" if part in "«»" and part else learned
                mask += [] if part in "«»" else [learned] * len(part.encode())
            for token, start in self.tokens(re.sub("[«»]", "", chunk)):
                ids.append(token)
                labels.append(token if mask[start] else IGNORE_INDEX)
        return ids, labels


@pytest.fixture(scope="module", params=[False, True], ids=["current", "legacy"])
def both(request, make_tokenizer_folder):
    """The tokenizer under test, with <im_start> and <im_end>, and the reference."""
    folder = make_tokenizer_folder(legacy=request.param)
    tokenizer = load_llama_tokenizer(folder)
    first = len(tokenizer)
    tokenizer.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
    return tokenizer, Reference(folder, request.param, {"<im_start>": first, "<im_end>": first + 1})


def encoded(tokenizer, turns, template, has_image=True, marks=False) -> tuple[list[int], list[int]]:
    conversation = conv_templates[template]
    if has_image:
        (turns,) = preprocess_multimodal([turns], SimpleNamespace(mm_use_im_start_end=marks), conversation)
    result = preprocess([turns], tokenizer, has_image, conversation)
    return result["input_ids"][0].tolist(), result["labels"][0].tolist()


def test_no_template_is_left_out():
    assert set(conv_templates) == {*PROMPTS, "plain", "v0_plain"}


@pytest.mark.parametrize("template", PROMPTS)
def test_prompt_ids_and_mask(both, template):
    tokenizer, reference = both
    assert encoded(tokenizer, DIALOGUE, template) == reference(PROMPTS[template])


@pytest.mark.parametrize("template", PROMPTS)
def test_text_only(both, template):
    tokenizer, reference = both
    turns = [{**turn, "value": turn["value"].replace("\n<image>", "")} for turn in DIALOGUE]
    marked = PROMPTS[template].replace(TAG, "<image>").replace("<image>\n", "")
    assert encoded(tokenizer, turns, template, has_image=False) == reference(marked, has_image=False)


@pytest.mark.parametrize("template", ["v1", "llava_llama_2", "mpt", "v0", "v1_mmtag"])
def test_image_marks(both, template):
    tokenizer, reference = both
    marked = PROMPTS[template].replace("<image>", "<im_start><image><im_end>")
    assert encoded(tokenizer, DIALOGUE, template, marks=True) == reference(marked)


@pytest.mark.parametrize("template", ["plain", "v0_plain"])
@pytest.mark.parametrize("caption", ["two cats", "猫", "two  cats.\n", "wörld"])
def test_plain(both, template, caption):
    tokenizer, reference = both
    turns = [{"from": "human", "value": "what is this?\n<image>"}, {"from": "gpt", "value": caption}]
    assert encoded(tokenizer, turns, template) == reference(f"<image>«{caption}\n»")


def test_text_that_opens_with_a_space(both):
    tokenizer, reference = both
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": " two cats"}]
    assert encoded(tokenizer, turns, "plain") == reference("<image>« two cats\n»")


def test_several_images_stay_where_they_are(both):
    tokenizer, reference = both
    turns = [{"from": "human", "value": "is <image>, like <image>?"}, {"from": "gpt", "value": "no"}]
    (turns,) = preprocess_multimodal(
        [turns], SimpleNamespace(mm_use_im_start_end=False), conv_templates["v1"], image_count=2
    )
    result = preprocess([turns], tokenizer, True, conv_templates["v1"])
    expected = reference(f"{USER} USER: is <image>, like <image>? ASSISTANT:« no</s>»")
    assert (result["input_ids"][0].tolist(), result["labels"][0].tolist()) == expected


def rounds(tokenizer, prompt: str, answer_mark: str) -> list[int] | None:
    """LLaVA's own way: count tokens of every round apart. None where the counts do not add up and it drops a sample."""
    ids = tokenizer_image_token(prompt, tokenizer)
    labels, at = [IGNORE_INDEX], 1
    for one in prompt.split("</s>"):
        if one:
            question = one[: one.index(answer_mark) + len(answer_mark)]
            size = len(tokenizer_image_token(one, tokenizer))
            # its BOS, which stands for the </s> of the round, and the lone prefix of the last space
            read = len(tokenizer_image_token(question, tokenizer)) - 2
            labels += [IGNORE_INDEX] * read + ids[at + read : at + size]
            at += size
    return labels if at == len(ids) == len(labels) else None


@pytest.mark.parametrize(("template", "mark"), [("v1", " ASSISTANT: "), ("llava_v1", " ASSISTANT: ")])
@pytest.mark.parametrize("turns", [2, 4])
def test_mask_of_counted_rounds(both, template, mark, turns):
    tokenizer, reference = both
    ids, labels = encoded(tokenizer, DIALOGUE[:turns], template)
    prompt = PROMPTS[template].replace("«", "").replace("»", "")
    prompt = prompt if turns == 4 else prompt[: prompt.index("</s>") + 4]
    counted = rounds(tokenizer, prompt, mark)
    if turns == 4 and not reference.legacy:
        assert counted is None  # the second round begins without the prefix it has alone: LLaVA would drop the sample
    else:
        assert labels == counted
    assert ids == tokenizer_image_token(prompt, tokenizer)


@pytest.mark.parametrize("turns", [2, 4])
@pytest.mark.parametrize("template", ["llava_llama_2", "mistral_instruct"])
def test_mask_of_counted_rounds_llama_2(both, template, turns):
    tokenizer, reference = both
    prompt = PROMPTS[template].replace("«", "").replace("»", "")
    prompt = prompt if turns == 4 else prompt[: prompt.index("</s>") + 4]
    counted = rounds(tokenizer, prompt, "[/INST] ")
    if template == "mistral_instruct" and turns == 4 and not reference.legacy:
        assert counted is None  # as with v1; a round of llava_llama_2 opens with a <s> of its own
    else:
        assert encoded(tokenizer, DIALOGUE[:turns], template)[1] == counted
