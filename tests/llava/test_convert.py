"""Both layouts, both ways: equal logits and files, and what transformers' own classes and processors make of them."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from flowcut import detach
from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversion_check import compare
from llava.convert import convert, main
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model, load_tokenizer, save_llava_checkpoint

GRIDS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


def load(folder):
    return load_pretrained_model(str(folder), None, "llava", device="cpu")


def write(model, llama_folder, folder, **config):
    for name, value in config.items():
        setattr(model.config, name, value)
    save_llava_checkpoint(model, load_tokenizer(str(llama_folder)), folder)
    return folder


@pytest.fixture(scope="module", params=["1.5", "next", "mistral", "flowcut"])
def original(request, make_tiny_llava, llama_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    if request.param == "next":
        extra = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": GRIDS, "conv_version": "v1"}
        return write(make_tiny_llava(merge="spatial_unpad"), llama_folder, folder, **extra)
    model = make_tiny_llava(family="mistral" if request.param == "mistral" else "llama")
    remembered = {"flowcut": {"method": "random", "budget": 9}} if request.param == "flowcut" else {}
    return write(model, llama_folder, folder, image_aspect_ratio="pad", **remembered)


@pytest.fixture(scope="module")
def exported(original, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    convert(str(original), None, "hf", str(folder))
    return folder


def test_there_and_back(original, exported, tmp_path):
    convert(str(exported), None, "llava", str(tmp_path))
    before, after = load_file(original / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    ours = [json.loads((folder / "config.json").read_text()) for folder in (original, tmp_path)]
    for field in ("vocab_size", "rope_theta", "hidden_size", "image_aspect_ratio", "image_grid_pinpoints", "flowcut"):
        assert ours[0].get(field) == ours[1].get(field), field
    text = "hello <pad> what is in this image</s>USER: how many cats?"
    assert load_tokenizer(str(tmp_path))(text).input_ids == load_tokenizer(str(original))(text).input_ids


def test_logits_and_answers_of_transformers_class(original, exported):
    found = compare(str(original), None, str(exported))
    assert found.logits < 1e-5
    assert found.tokens == [True] * 3
    assert [before for before, _ in found.answers] == [after for _, after in found.answers]


TEXTS = [
    "hello",
    " two  spaces",
    "<image>\nwhat is in this image?</s>USER: how many cats?</s>",
    "a cat <image> and<image><image> a dog",
    "</s>in <s> this</s> image<unk>",
    "<image></s>what<image>▁is",
    "",
]


@pytest.mark.parametrize("legacy", [False, True])
def test_a_prompt_in_one_piece_has_the_tokens_of_its_pieces(original, tmp_path, legacy):
    folder = shutil.copytree(original, tmp_path / "llava")
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"legacy": legacy}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    convert(str(folder), None, "hf", str(tmp_path / "hf"))
    tokenizer = load_tokenizer(str(folder))
    whole = AutoProcessor.from_pretrained(tmp_path / "hf").tokenizer
    for text in TEXTS:
        pieces = [520 if one == IMAGE_TOKEN_INDEX else one for one in tokenizer_image_token(text, tokenizer)]
        assert whole(text).input_ids == pieces, text


def test_the_exported_folder_loads_directly(original, exported):
    (tokenizer, one, processor, _), (_, two, same, _) = load(original), load(exported)
    assert type(one) is type(two)
    assert len(tokenizer) == one.config.vocab_size == two.config.vocab_size
    ids, pixels = torch.tensor([[1, 20, -200, 8, 9]]), torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        assert torch.equal(one(ids, images=pixels).logits, two(ids, images=pixels).logits)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 60, 3), dtype=np.uint8))
    shown = [process_images([picture], own, model.config) for own, model in ((processor, one), (same, two))]
    assert torch.equal(*shown)


def test_files_on_the_hub_have_these_names(original, exported):
    names = set(load_file(exported / "model.safetensors"))
    assert "language_model.model.embed_tokens.weight" in names
    assert "language_model.lm_head.weight" in names
    assert "multi_modal_projector.linear_2.bias" in names
    assert "vision_tower.vision_model.embeddings.class_embedding" in names
    fields = json.loads((exported / "config.json").read_text())
    theta = json.loads((original / "config.json").read_text())["rope_theta"]
    assert fields["text_config"]["rope_theta"] == theta
    assert fields["text_config"]["vocab_size"] % 64 == 0
    assert fields["image_token_index"] == 520
    assert {"tokenizer.model", "tokenizer.json", "preprocessor_config.json"} <= {
        file.name for file in exported.iterdir()
    }


def test_transformers_own_processor(original, exported):
    processor = AutoProcessor.from_pretrained(exported)
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (56, 112, 3), dtype=np.uint8))
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "how many cats?"}]}]
    prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
    assert prompt.count("<image>") == 1
    inputs = processor(text=prompt, images=picture, return_tensors="pt")
    _, model, image_processor, _ = load(original)
    pixels = process_images([picture], image_processor, model.config)
    torch.testing.assert_close(inputs["pixel_values"], pixels, atol=1e-5, rtol=0)
    if hasattr(model.config, "flowcut"):
        detach(model)
    count = len(model.image_features(pixels, [picture.size])[0])
    assert (inputs["input_ids"] == 520).sum() == count
    assert inputs["input_ids"][0, 0] == 1


@pytest.mark.parametrize("spelling", ["transformers 5", "no tower level"])
def test_every_spelling_of_the_names_is_read(original, exported, tmp_path, spelling):
    weights = load_file(exported / "model.safetensors")
    for file in exported.iterdir():
        if file.suffix in (".json", ".model"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    renamed = {name.replace("vision_model.", ""): value for name, value in weights.items()}
    if spelling == "transformers 5":
        renamed = {
            name.removeprefix("language_model.")
            if "lm_head" in name
            else f"model.{name.replace('language_model.model', 'language_model')}": value
            for name, value in renamed.items()
        }
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ids, pixels = torch.tensor([[1, 20, -200, 8, 9]]), torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        assert torch.equal(load(original)[1](ids, images=pixels).logits, load(tmp_path)[1](ids, images=pixels).logits)


def test_what_transformers_saved_itself(original, exported, tmp_path):
    if json.loads((exported / "config.json").read_text())["model_type"] != "llava":
        pytest.skip("one class is enough")
    LlavaForConditionalGeneration.from_pretrained(exported).save_pretrained(tmp_path / "again")
    AutoProcessor.from_pretrained(exported).save_pretrained(tmp_path / "again")
    convert(str(tmp_path / "again"), None, "llava", str(tmp_path / "llava"))
    assert compare(str(original), None, str(tmp_path / "llava")).logits == 0


def test_asymmetric_grids_are_turned(make_tiny_llava, llama_folder, tmp_path):
    grids = [[56, 112], [112, 112]]
    model = make_tiny_llava(merge="spatial_unpad")
    write(model, llama_folder, tmp_path / "one", image_aspect_ratio="anyres", image_grid_pinpoints=grids)
    convert(str(tmp_path / "one"), None, "hf", str(tmp_path / "two"))
    turned = json.loads((tmp_path / "two" / "config.json").read_text())["image_grid_pinpoints"]
    assert turned == [[112, 56], [112, 112]]
    assert load(tmp_path / "two")[1].config.image_grid_pinpoints == grids


def test_main(original, tmp_path, capsys):
    main(["--to", "hf", "--model-path", str(original), "--output", str(tmp_path), "--verify"])
    logits, tokens, answers, told = capsys.readouterr().out.splitlines()[1:]
    assert float(logits.split()[-1]) == json.loads(told)["largest_difference"] < 1e-5
    assert tokens.endswith("equal tokens: 3 of 3")
    assert answers.endswith("equal answers: 3 of 3")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type linear has no counterpart"),
        ({"mm_patch_merge_type": "spatial"}, "mm_patch_merge_type spatial has no counterpart"),
    ],
)
def test_what_has_no_counterpart(llava_folder, tmp_path, config, message):
    for file in llava_folder.rglob("*"):
        if file.is_file():
            target = tmp_path / file.relative_to(llava_folder)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())
    fields = json.loads((tmp_path / "config.json").read_text()) | config
    (tmp_path / "config.json").write_text(json.dumps(fields))
    if config.get("mm_projector_type") == "linear":
        weights = load_file(tmp_path / "model.safetensors")
        rest = {name: value for name, value in weights.items() if "mm_projector" not in name}
        projector = {"model.mm_projector.weight": torch.zeros(64, 32), "model.mm_projector.bias": torch.zeros(64)}
        save_file(rest | projector, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemExit, match=message):
        main(["--to", "hf", "--model-path", str(tmp_path), "--output", str(tmp_path / "out")])
