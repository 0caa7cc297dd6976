"""The data set and the collator, on files made here."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.model.tokenizer import load_llama_tokenizer
from llava.train.arguments import DataArguments
from llava.train.data import DataCollatorForSupervisedDataset, LazySupervisedDataset
from llava.train.preprocess import BadSample, preprocess
from llava.train.samples import read_samples


@pytest.fixture
def tokenizer(tokenizer_folder):
    return load_llama_tokenizer(tokenizer_folder)


@pytest.fixture
def dataset(tmp_path, tokenizer, clip_folder):
    """A function from samples (and DataArguments) to a data set; red.png and blue.png are 80 x 60 pictures."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    for colour in ("red", "blue"):
        Image.new("RGB", (80, 60), colour).save(tmp_path / f"{colour}.png")
    (tmp_path / "broken.png").write_bytes(b"not a picture")

    def make(*samples, **arguments):
        (tmp_path / "data.json").write_text(json.dumps(samples))
        data_args = DataArguments(image_folder=str(tmp_path), **arguments)
        data_args.image_processor = CLIPImageProcessorPil.from_pretrained(clip_folder)
        data_args.image_tokens = 16
        return LazySupervisedDataset(str(tmp_path / "data.json"), tokenizer, data_args, conv_templates["v1"])

    return make


def sample(question="<image> how many cats?", answer="two cats", **fields):
    return {
        "id": "a",
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        **fields,
    }


def test_one_image_no_image_and_several(dataset):
    data = dataset(
        sample(image="red.png"),
        sample("hello"),
        sample("is <image> like <image>?", image=["red.png", "blue.png"]),
    )
    assert data[0]["image"].shape == (3, 56, 56)
    assert not data[1]["image"].any()
    assert IMAGE_TOKEN_INDEX not in data[1]["input_ids"]
    red, blue = data[2]["image"]
    assert torch.equal(red, data[0]["image"])
    assert not torch.equal(red, blue)
    batch = DataCollatorForSupervisedDataset(data.tokenizer)([data[0], data[1], data[2]])
    assert torch.equal(batch["images"], torch.stack([red, torch.zeros_like(red), red, blue]))
    assert batch["image_sizes"] == [(80, 60), (56, 56), (80, 60), (80, 60)]  # of the black one, its own
    assert (batch["input_ids"] == IMAGE_TOKEN_INDEX).sum(dim=1).tolist() == [1, 0, 2]


def test_collator_pads_by_length_not_by_token(dataset, tokenizer):
    data = dataset(sample("hello", "two <unk> cats"), sample("hello"))
    long, short = data[0], data[1]
    batch = DataCollatorForSupervisedDataset(tokenizer)([long, short])
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(long["input_ids"]), len(short["input_ids"])]
    assert tokenizer.pad_token_id in long["input_ids"]  # the <unk> of the text, which is no padding
    assert (batch["labels"][1, len(short["labels"]) :] == IGNORE_INDEX).all()


def test_collator_cuts_to_the_longest_sequence(dataset, tokenizer):
    item = dataset(sample("hello"))[0]
    tokenizer.model_max_length = len(item["input_ids"]) - 1
    batch = DataCollatorForSupervisedDataset(tokenizer)([item])
    assert torch.equal(batch["input_ids"][0], item["input_ids"][:-1])


def test_a_placeholder_that_is_cut_off_takes_its_image_along(dataset, tokenizer):
    data = dataset(sample("is <image> like <image>?", "no " * 9, image=["red.png", "blue.png"]))
    item = data[0]
    first, second = (item["input_ids"] == IMAGE_TOKEN_INDEX).nonzero().flatten().tolist()
    for limit, images in ((second + 1, 2), (second, 1), (first, 1)):  # one always stays, as a text's blank image
        tokenizer.model_max_length = limit
        batch = DataCollatorForSupervisedDataset(tokenizer)([item])
        assert len(batch["images"]) == len(batch["image_sizes"]) == images


def test_other_extension_is_found(dataset):
    data = dataset(sample(image="red.jpg"), sample(image="red.png"))
    assert torch.equal(data[0]["image"], data[1]["image"])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (sample(image="absent.png"), r"absent\.png does not exist"),
        (sample(image="broken.png"), r"broken\.png cannot be read"),
        (sample("how many cats?", image="red.png"), r"1 image\(s\) but 0"),
        (sample("<image> or <image>?", image=["red.png"] * 3), r"3 image\(s\) but 2"),
        (sample("hello", ""), "only empty ones"),
        ({"id": "a"}, '"conversations" must be'),
        ({"id": "a", "conversations": [None]}, '"conversations" must be'),
        (sample(image=None), r'its text has <image>, but its "image" is empty'),
        (sample(images=["red.png"]), 'it has "images", which is not read'),
        (sample(image="red.png", video="red.mp4"), 'it has "video", which is not read'),
        (sample(image="/"), "cannot be looked up"),
        (sample(image="x" * 300), "cannot be looked up: .*too long"),
        (sample(image=["red.png", 7]), '"image" must be a path or a list of paths'),
    ],
)
def test_bad_sample_is_named_or_skipped_and_counted(dataset, bad, reason):
    good = sample(image="red.png")
    with pytest.raises(BadSample, match=rf"sample 1 \(id 'a'\): .*{reason}"):
        dataset(good, bad)[1]
    data = dataset(good, bad, skip_bad_samples=True)
    assert torch.equal(data[1]["input_ids"], data[0]["input_ids"])
    assert data.skipped == 1


def test_skips_of_worker_processes_are_counted(dataset):
    data = dataset(sample("hello"), sample(image="absent.png"), skip_bad_samples=True)
    list(torch.utils.data.DataLoader(data, batch_size=None, num_workers=1))
    assert data.skipped == 1


def test_answer_beyond_the_limit_is_a_reason(dataset, tokenizer):
    item = dataset(sample(image="red.png"))[0]
    first = int((item["labels"] != IGNORE_INDEX).nonzero()[0]) + 15  # the image stands for 16 tokens
    tokenizer.model_max_length = first + 1
    assert dataset(sample(image="red.png"))[0]
    tokenizer.model_max_length = first
    with pytest.raises(BadSample, match=f"begins at token {first} .* --model_max_length {first}"):
        dataset(sample(image="red.png"))[0]


def test_lengths_tell_the_modality(dataset):
    data = dataset(sample(image="red.png"), sample("hello"), sample("", ""), sample("hello", image=None), {})
    assert data.modality_lengths == [6, -3, -1, -3, -1]
    assert data.lengths == [6 + 128, 3, 0, 3, 0]


def test_grey_pictures_of_16_bit_keep_their_values(dataset, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (60, 80), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "8.png")
    Image.fromarray(values.astype(np.uint16) * 257).save(tmp_path / "16.png")
    data = dataset(sample(image="8.png"), sample(image="16.png"))
    assert torch.equal(data[0]["image"], data[1]["image"])


@pytest.mark.parametrize("version", ["v1", "mpt", "llava_llama_2", "mistral_instruct", "v0"])
def test_a_samples_own_system_text_takes_the_templates_place(tokenizer, version):
    turns = [{"from": "system", "value": "red star"}, *sample("hello")["conversations"]]
    template = conv_templates[version].copy()
    own = preprocess([turns], tokenizer, conversation=template)
    template.system = "<|im_start|>system\nred star" if version == "mpt" else "red star"
    expected = preprocess([turns[1:]], tokenizer, conversation=template)
    assert torch.equal(own["input_ids"][0], expected["input_ids"][0])
    assert torch.equal(own["labels"][0], expected["labels"][0])
    assert "red star" in tokenizer.decode(own["input_ids"][0])


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_lists_and_lines_with_or_without_a_byte_order_mark(tmp_path, mark, name):
    samples = [sample("hello"), sample("héllo\u2028")]
    file = tmp_path / name
    for text in (json.dumps(samples), "\n".join(json.dumps(one, ensure_ascii=False) for one in samples) + "\n\n"):
        if name == "data.json" or not text.startswith("["):
            file.write_text(mark + text, "utf-8")
            assert read_samples(str(file)) == samples
    file.write_text(json.dumps(sample()) + "\n{\n", "utf-8")
    with pytest.raises(ValueError, match="is not JSON: line 2: "):
        read_samples(str(file))


@pytest.mark.parametrize(
    ("text", "reason"),
    [("[", "not JSON"), ("[]", "non-empty"), ("{}", "non-empty"), ("[" * 99999, "not JSON"), ("{\n", "not JSON")],
)
def test_unusable_file_is_refused(tmp_path, tokenizer, text, reason):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(ValueError, match=reason):
        LazySupervisedDataset(str(tmp_path / "data.json"), tokenizer, DataArguments())


def test_missing_file_is_refused(tokenizer):
    with pytest.raises(ValueError, match="no such file"):
        LazySupervisedDataset("absent.json", tokenizer, DataArguments())


def test_a_lone_surrogate_is_one_samples_problem(tmp_path, tokenizer):
    """The other samples stay, in a list and in lines."""
    rows = [json.dumps(sample("hello")), json.dumps(sample("half \ud83d")), json.dumps(sample("two"))]
    for name, text in (("a.json", f"[{','.join(rows)}]"), ("a.jsonl", "\n".join(rows))):
        (tmp_path / name).write_text(text)
        data = LazySupervisedDataset(str(tmp_path / name), tokenizer, DataArguments(skip_bad_samples=True))
        assert len(data.samples) == 3
        assert len(data[0]["input_ids"]) > 2
        assert len(data[2]["input_ids"]) > 2
        with pytest.raises(BadSample, match="surrogate"):
            data.prepare(1)
