"""Which tokens are learned: exact lists on a tokenizer of LLaMA's kind, with and without its `legacy` behaviour."""

import types

import pytest
import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import tokenizer_image_token
from llava.model.tokenizer import load_llama_tokenizer
from llava.train.preprocess import BadSample, preprocess, preprocess_multimodal, preprocess_plain, preprocess_v1

TWO_TURNS = [
    {"from": "human", "value": "<image>\nhow many cats?"},
    {"from": "gpt", "value": "two cats"},
    {"from": "human", "value": "hello"},
    {"from": "gpt", "value": "hello world"},
]


@pytest.fixture(scope="module", params=[False, True], ids=["current", "legacy"])
def tokenizer(request, make_tokenizer_folder):
    return load_llama_tokenizer(make_tokenizer_folder(legacy=request.param))


def learned(tokenizer, encoded) -> list[str]:
    ids, labels = encoded["input_ids"][0], encoded["labels"][0]
    kept = labels != IGNORE_INDEX
    assert torch.equal(ids[kept], labels[kept])
    return tokenizer.convert_ids_to_tokens(labels[kept].tolist())


def test_v1_learns_every_answer_with_its_end_mark(tokenizer):
    encoded = preprocess_v1([TWO_TURNS], tokenizer, has_image=True)
    assert learned(tokenizer, encoded) == ["▁two", "▁cats", "</s>", "▁hello", "▁world", "</s>"]


@pytest.mark.parametrize("name", ["v1", "llava_v1", "llava_llama_2", "mistral_instruct", "mpt"])
def test_ids_are_those_of_inference(tokenizer, name):
    conversation = conv_templates[name].copy()
    for index, turn in enumerate(TWO_TURNS):
        conversation.append_message(conversation.roles[index % 2], turn["value"])
    encoded = preprocess([TWO_TURNS], tokenizer, True, conv_templates[name])
    assert encoded["input_ids"][0].tolist() == tokenizer_image_token(conversation.get_prompt(), tokenizer)


@pytest.mark.parametrize("name", ["llava_llama_2", "mistral_instruct"])
def test_llama_2_learns_the_space_before_the_end_mark(tokenizer, name):
    encoded = preprocess([TWO_TURNS], tokenizer, True, conv_templates[name])
    assert learned(tokenizer, encoded) == ["▁two", "▁cats", "▁", "</s>", "▁hello", "▁world", "▁", "</s>"]


def test_mpt_learns_answer_and_end_mark(tokenizer):
    encoded = preprocess([TWO_TURNS], tokenizer, True, conv_templates["mpt"])
    text = tokenizer.decode([label for label in encoded["labels"][0].tolist() if label != IGNORE_INDEX])
    assert text.replace(" ", "") == "twocats<|im_end|>helloworld<|im_end|>"


def test_version_0_learns_the_marks_and_the_assistant_lines(tokenizer):
    encoded = preprocess([TWO_TURNS], tokenizer, True, conv_templates["v0"])
    text = tokenizer.decode([label for label in encoded["labels"][0].tolist() if label != IGNORE_INDEX])
    assert text == "###### Assistant: two cats\n###### Assistant: hello world\n### "


def test_plain_is_image_caption_newline(tokenizer):
    turns = [{"from": "human", "value": "what is this?\n<image>"}, {"from": "gpt", "value": "two cats"}]
    encoded = preprocess_plain([turns], tokenizer)
    assert encoded["input_ids"][0].tolist()[:2] == [tokenizer.bos_token_id, IMAGE_TOKEN_INDEX]
    assert learned(tokenizer, encoded) == ["▁two", "▁cats", "<0x0A>"]
    assert len(encoded["input_ids"][0]) == 5


def test_answer_that_opens_with_a_byte_token_keeps_its_prefix(tokenizer):
    # as in LLaMA: the lone prefix token belongs to the answer, for the prompt at inference ends at the colon
    turns = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "猫"}]
    tokens = learned(tokenizer, preprocess_v1([turns], tokenizer))
    assert tokens == ["▁", "<0xE7>", "<0x8C>", "<0xAB>", "</s>"]


def test_a_first_answer_without_question_is_dropped(tokenizer):
    whole, shortened = (preprocess_v1([turns], tokenizer, True) for turns in (TWO_TURNS[1:], TWO_TURNS[2:]))
    assert torch.equal(whole["labels"][0], shortened["labels"][0])


def test_empty_answer_is_not_learned(tokenizer):
    turns = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": ""}, *TWO_TURNS[2:]]
    assert learned(tokenizer, preprocess_v1([turns], tokenizer)) == ["▁hello", "▁world", "</s>"]


def test_roles_out_of_turn_are_named(tokenizer):
    with pytest.raises(BadSample, match="turn 1 is from 'human'"):
        preprocess_v1([[TWO_TURNS[0], TWO_TURNS[2]]], tokenizer)


def test_plain_refuses_dialogues(tokenizer):
    with pytest.raises(BadSample, match="4 turns"):
        preprocess_plain([TWO_TURNS], tokenizer)


def test_placeholder_leads_its_turn_and_several_stay():
    plain = types.SimpleNamespace(mm_use_im_start_end=False)
    marked = types.SimpleNamespace(mm_use_im_start_end=True)

    def rewritten(text, data_args=plain, template="v1", image_count=1):
        turns = [{"from": "human", "value": text}]
        return preprocess_multimodal([turns], data_args, conv_templates[template], image_count)[0][0]["value"]

    assert rewritten("what is this? <image>") == "<image>\nwhat is this?"
    assert rewritten("<image>") == "<image>"
    assert rewritten("no picture") == "no picture"
    assert rewritten("is <image> like <image>?", image_count=2) == "is <image> like <image>?"
    assert rewritten("<image> hello", marked) == "<im_start><image><im_end>\nhello"
    assert rewritten("<image> hello", template="v1_mmtag") == "<Image><image></Image>\nhello"
