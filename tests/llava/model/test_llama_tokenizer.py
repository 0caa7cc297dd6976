"""Token ids against SentencePiece itself, whatever the config beside the tokenizer says."""

import json
import shutil

import pytest
import sentencepiece
from transformers import LlamaTokenizer

from llava.mm_utils import tokenizer_image_token
from llava.model.builder import load_tokenizer
from llava.model.tokenizer import check_llama_tokenizer, load_llama_tokenizer, save_llama_tokenizer

TEXTS = [
    "A chat between a curious user. USER:",
    "\nWhat is in this image ASSISTANT:",
    "Hello",
    "ASSISTANT: ",
    "[INST] hi [/INST] ",
    "",
]


def copy_of(source, target, config=None, **settings):
    """A copy of a tokenizer's folder with other settings; a setting of None is taken out."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    file = target / "tokenizer_config.json"
    merged = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({name: value for name, value in merged.items() if value is not None}))
    if config:
        (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize("model_type", ["llava", "llava_llama", "llama", "mistral", "llava_mistral"])
@pytest.mark.parametrize("settings", [{}, {"legacy": None}, {"add_bos_token": None}, {"add_bos_token": False}])
def test_ids_are_sentencepieces(tokenizer_folder, tmp_path, model_type, settings):
    folder = copy_of(tokenizer_folder, tmp_path, {"model_type": model_type}, **settings)
    tokenizer = load_tokenizer(str(folder))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text in TEXTS:
        assert tokenizer(text).input_ids == [1, *reference.encode(text)]
    assert tokenizer.pad_token_id == 0
    assert tokenizer.padding_side == "right"


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("text", ["  two cats", " ", "", " <image> two cats <image>", "▁two", "hello <image>  cats"])
def test_prompts_that_begin_with_spaces(tokenizer_folder, tmp_path, legacy, text):
    tokenizer = load_llama_tokenizer(copy_of(tokenizer_folder, tmp_path, legacy=legacy))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    first, *rest = [reference.encode(piece) for piece in text.split("<image>")]
    assert tokenizer_image_token(text, tokenizer) == [1, *first, *(id for piece in rest for id in [-200, *piece])]


@pytest.mark.parametrize("text", [" hello two", "  two", " ", "▁two", "hello", ""])
def test_texts_alone_as_the_slow_tokenizer_does(tokenizer_folder, text):
    tokenizer = load_llama_tokenizer(tokenizer_folder)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_folder / "tokenizer.model"))
    expected = [1, *reference.encode(text)]
    assert tokenizer(text).input_ids == tokenizer.encode(text) == tokenizer([text, "yes"]).input_ids[0] == expected
    assert tokenizer.tokenize(text) == reference.encode(text, out_type=str)
    batch = tokenizer([text, "yes no"], return_offsets_mapping=True).offset_mapping
    places = tokenizer(text, return_offsets_mapping=True).offset_mapping
    assert places == batch[0]
    assert batch[1] == tokenizer("yes no", return_offsets_mapping=True).offset_mapping
    assert places[-1][1] == len(text)
    assert not [place for place in places if not 0 <= place[0] <= place[1] <= len(text)]


def test_the_vocabulary_is_in_the_order_of_its_ids(tokenizer_folder):
    tokenizer = load_llama_tokenizer(tokenizer_folder)
    tokenizer.add_tokens(["<new>"])
    assert list(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


@pytest.mark.parametrize("added", [[], ["<new>"]])
def test_save_pretrained_writes_the_sentencepiece_model(tokenizer_folder, tmp_path, added):
    tokenizer = load_llama_tokenizer(tokenizer_folder)
    tokenizer.add_tokens(added)
    written = tokenizer.save_pretrained(tmp_path)
    assert str(tmp_path / "tokenizer.model") in written
    assert (tmp_path / "tokenizer.model").read_bytes() == (tokenizer_folder / "tokenizer.model").read_bytes()
    again = LlamaTokenizer.from_pretrained(tmp_path, add_bos_token=True)
    assert again("hello two").input_ids == tokenizer("hello two").input_ids
    assert len(again) == len(tokenizer)
    # Whoever gives save_pretrained's folder to a program with transformers 4 gets LLaMA's tokenizer there.
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "LlamaTokenizer"


def test_the_check_sees_both_silent_changes(tokenizer_folder, tmp_path):
    folder = copy_of(tokenizer_folder, tmp_path, {"model_type": "llava"}, add_bos_token=None)
    with pytest.raises(ValueError, match="no BOS before text"):
        check_llama_tokenizer(LlamaTokenizer.from_pretrained(folder))
    with pytest.raises(ValueError, match="no dummy prefix"):
        check_llama_tokenizer(LlamaTokenizer.from_pretrained(folder, add_bos_token=True, add_prefix_space=False))


@pytest.mark.parametrize("legacy", [True, False])
def test_a_saved_tokenizer_cuts_alike(tokenizer_folder, tmp_path, legacy):
    source = copy_of(tokenizer_folder, tmp_path / "source", legacy=legacy)
    tokenizer = load_llama_tokenizer(source)
    tokenizer.model_max_length = 99
    saved = tmp_path / "saved"
    saved.mkdir()
    save_llama_tokenizer(tokenizer, saved)
    names = {file.name for file in saved.iterdir()}
    assert names == {"tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"}
    again = load_llama_tokenizer(saved)
    for text in [*TEXTS, "yes</s>USER: no ASSISTANT: hello</s>"]:
        assert again(text).input_ids == tokenizer(text).input_ids
    assert (again.legacy, again.model_max_length) == (legacy, 99)


def test_added_tokens_are_saved(tokenizer_folder, tmp_path):
    tokenizer = load_llama_tokenizer(tokenizer_folder)
    tokenizer.add_tokens(["<im_start>"], special_tokens=True)
    save_llama_tokenizer(tokenizer, tmp_path)
    again = load_llama_tokenizer(tmp_path)
    assert again("hello <im_start> hello").input_ids == tokenizer("hello <im_start> hello").input_ids
    assert len(again) == len(tokenizer)
    assert (tmp_path / "tokenizer.model").is_file()


def test_no_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="has no tokenizer"):
        load_llama_tokenizer(tmp_path)
