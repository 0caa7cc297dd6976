"""Training on tiles: grids that fit, lengths, batches, and what of `image_newline` is learned and kept."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flowcut import attach, parse_pruner
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model
from llava.train.anyres import PUBLISHED_GRIDS, TileCount, check_grids, parse_grids
from llava.train.train import main, prepare, train

GRIDS = "[(56, 112), (112, 56), (112, 112), (168, 56)]"
SIZES = {"square": (60, 60), "wide": (100, 50), "long": (30, 100), "strip": (200, 30)}


@pytest.fixture(scope="module")
def tiles_folder(tmp_path_factory):
    """dialogues.json: one picture each of four shapes, no picture, two pictures; captions.json: the first four."""
    folder = tmp_path_factory.mktemp("tiles")
    rng = np.random.default_rng(0)
    samples = []
    for name, (width, height) in SIZES.items():
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(folder / f"{name}.png")
        turns = [{"from": "human", "value": "<image>\nwhat is this?"}, {"from": "gpt", "value": f"{name} image"}]
        samples.append({"id": name, "image": f"{name}.png", "conversations": turns})
    (folder / "captions.json").write_text(json.dumps(samples))
    text = [{"from": "human", "value": "hello?"}, {"from": "gpt", "value": "hello world"}]
    two = [{"from": "human", "value": "is <image> like <image>?"}, {"from": "gpt", "value": "no"}]
    samples += [
        {"id": "text", "conversations": text},
        {"id": "two", "image": ["wide.png", "square.png"], "conversations": two},
    ]
    (folder / "dialogues.json").write_text(json.dumps(samples))
    return folder


@pytest.fixture(scope="module")
def flags(flags, tiles_folder):
    """Flags of an anyres run as LLaVA-1.6's; a function of the output folder and of more flags, which win."""
    tiles = (
        "--image_aspect_ratio",
        "anyres",
        "--image_grid_pinpoints",
        GRIDS,
        "--mm_patch_merge_type",
        "spatial_unpad",
    )
    tiles += ("--version", "v1", "--data_path", tiles_folder / "dialogues.json", "--image_folder", tiles_folder)
    tiles += ("--per_device_train_batch_size", 3, "--max_steps", 2, "--save_steps", 1, "--model_max_length", 400)
    return lambda output, *more: flags(output, *tiles, *more)


UNFROZEN = ("--unfreeze_mm_vision_tower", True, "--mm_vision_tower_lr", 2e-6)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, flags):
    output = tmp_path_factory.mktemp("tuned")
    return output, train(argv=flags(output, *UNFROZEN))


@pytest.mark.parametrize(
    "text", ["[]", "[(336,)]", "[(336, 0)]", "[(336, 672.0)]", "336", "(336, 672)", "[(1, 2)", "a b"]
)
def test_what_is_no_list_of_grids_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match=r"--image_grid_pinpoints .* such as") as caught:
        parse_grids(text)
    assert "\n" not in str(caught.value)


def test_grids_as_text_and_as_lists_are_alike():
    assert parse_grids(GRIDS) == parse_grids([[56, 112], [112, 56], [112, 112], [168, 56]])
    check_grids(parse_grids(PUBLISHED_GRIDS), 336)
    with pytest.raises(ValueError, match="336 x 672 is not made of whole tiles of 224 x 224"):
        check_grids(parse_grids(PUBLISHED_GRIDS), 224)


@pytest.mark.parametrize(
    ("size", "tiles", "tokens"),
    [
        ((336, 336), 3, 1176),
        ((640, 480), 5, 2340),
        ((1000, 300), 4, 2182),
        ((300, 1000), 4, 2232),
        ((672, 672), 5, 2928),
        ((1920, 1080), 5, 1948),
    ],
)
def test_tokens_of_the_published_model(size, tiles, tokens):
    grids = tuple(parse_grids(PUBLISHED_GRIDS))
    assert TileCount(336, 576, grids, "spatial_unpad")(size) == tokens
    assert TileCount(336, 576, grids, "flat")(size) == tiles * 576
    # half the budget from every tile, as FlowCut cuts again inside the language model
    assert TileCount(336, 576, grids, "spatial_unpad", parse_pruner("flowcut:budget=160"))(size) == tiles * 80
    assert TileCount(336, 576, grids, "spatial_unpad", parse_pruner("fastervlm:budget=161"))(size) == 161
    assert TileCount(336, 576, grids, "spatial_unpad", parse_pruner("fastv:budget=160,layer=2"))(size) == tokens


@pytest.mark.parametrize("merge", ["flat", "spatial", "spatial_unpad"])
@pytest.mark.parametrize(
    "pruner", ["none", "flowcut:budget=9,last_layer=-2", "fastervlm:budget=11", "fastervlm:budget=99"]
)
def test_counted_tokens_are_those_of_the_model(make_tiny_llava, merge, pruner):
    grids = parse_grids(GRIDS)
    model = make_tiny_llava(image_aspect_ratio="anyres", image_grid_pinpoints=grids)
    model.config.mm_patch_merge_type = merge
    newline = torch.nn.Parameter(torch.randn(64))
    model.get_model().image_newline = newline
    method = parse_pruner(pruner)
    if method is not None:
        attach(model, method)
    count = TileCount(56, 16, tuple(grids), merge, method)
    settings = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=grids)
    for size in SIZES.values():
        pixels = process_images([Image.new("RGB", size)], model.get_vision_tower().image_processor, settings)
        found = len(model.image_features(pixels, [size])[0])
        if merge == "spatial_unpad" and method is not None and method.budget < 99:
            assert found <= count(size)  # what is left of padding is taken off
        else:
            assert found == count(size)


def test_samples_are_tiles_and_sizes(flags, tmp_path):
    trainer = prepare(argv=flags(tmp_path))
    data = trainer.train_dataset
    items = {sample["id"]: item for sample, item in zip(data.samples, data, strict=False)}
    assert {name: tuple(items[name]["image"].shape) for name in SIZES} == {
        "square": (5, 3, 56, 56),
        "wide": (3, 3, 56, 56),
        "long": (3, 3, 56, 56),
        "strip": (4, 3, 56, 56),
    }
    assert {name: items[name]["image_size"] for name in SIZES} == SIZES
    assert not items["text"]["image"].any()
    assert (items["text"]["image"].shape, items["text"]["image_size"]) == ((1, 3, 56, 56), (56, 56))
    assert [len(pixels) for pixels in items["two"]["image"]] == [3, 5]
    batch = trainer.data_collator([items["two"], items["text"], items["wide"]])
    assert [len(pixels) for pixels in batch["images"]] == [3, 5, 1, 3]
    assert batch["image_sizes"] == [SIZES["wide"], SIZES["square"], (56, 56), SIZES["wide"]]
    alike = trainer.data_collator([items["wide"], items["long"]])
    assert alike["images"].shape == (2, 3, 3, 56, 56)


def test_a_placeholder_that_is_cut_off_takes_its_image_along(flags, tmp_path):
    trainer = prepare(argv=flags(tmp_path))
    item = trainer.train_dataset[5]
    first, second = (item["input_ids"] == IMAGE_TOKEN_INDEX).nonzero().flatten().tolist()
    for limit, images in ((second + 1, 2), (second, 1), (first, 1)):
        trainer.processing_class.model_max_length = limit
        batch = trainer.data_collator([item])
        assert len(batch["images"]) == len(batch["image_sizes"]) == images
        trainer.model(**batch | {"labels": None})  # images and placeholders agree


def test_too_long_counts_every_tile(flags, tmp_path):
    trainer = prepare(argv=flags(tmp_path))
    data, tokenizer = trainer.train_dataset, trainer.processing_class
    item = data[0]
    before = int((item["labels"] != IGNORE_INDEX).nonzero()[0])
    tokens = 16 + 8 * 9  # the whole, and a full grid of 8 x 8 with a newline a row
    tokenizer.model_max_length = before - 1 + tokens + 1
    assert torch.equal(data[0]["labels"], item["labels"])
    tokenizer.model_max_length -= 1
    with pytest.raises(ValueError, match=f"begins at token {before - 1 + tokens} .* by their {tokens} tokens"):
        data[0]


@pytest.mark.parametrize("pruner", ["none", "flowcut:budget=7,last_layer=-2", "fastervlm:budget=9"])
def test_a_batch_is_its_samples_one_by_one(flags, tmp_path, pruner):
    trainer = prepare(argv=flags(tmp_path, *UNFROZEN, "--pruner", pruner, "--attn_implementation", "eager"))
    model, data = trainer.model, trainer.train_dataset
    items = [data[index] for index in range(6)]

    def run(chosen):
        model.zero_grad()
        batch = trainer.data_collator(chosen)
        output = model(**batch)
        # the loss is a mean over tokens; their sum adds up over samples
        learned = sum(int((item["labels"] != IGNORE_INDEX).sum()) for item in chosen)
        (output.loss * learned).backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
        return output.loss.item() * learned, gradients

    loss, gradients = run(items)
    alone = [run([item]) for item in items]
    assert loss == pytest.approx(sum(one for one, _ in alone), rel=1e-5)
    for name, gradient in gradients.items():
        total = sum(one[name] for _, one in alone)
        assert torch.allclose(gradient, total, atol=1e-4 * max(float(total.abs().max()), 1e-2)), name
    for part in ("mm_projector", "vision_tower", "embed_tokens"):
        assert any(float(gradient.abs().max()) > 0 for name, gradient in gradients.items() if part in name)
    # a pruned row of an image has no end; the parameter has a gradient of zero, for which other processes may wait
    assert bool(gradients["model.image_newline"].any()) == (pruner == "none")


def test_newline_is_learned_and_saved(tuned, clip_folder):
    output, trainer = tuned
    config = json.loads((output / "config.json").read_text())
    assert (config["image_aspect_ratio"], config["mm_patch_merge_type"]) == ("anyres", "spatial_unpad")
    assert config["image_grid_pinpoints"] == [[56, 112], [112, 56], [112, 112], [168, 56]]
    assert config["mm_vision_tower_lr"] == 2e-6
    newline = trainer.model.get_model().image_newline
    saved = [load_file(output / f / "model.safetensors")["model.image_newline"] for f in ("checkpoint-1", "")]
    assert torch.equal(saved[1], newline)
    assert not torch.equal(saved[0], saved[1])
    _, model, _, _ = load_pretrained_model(str(output), None, "llava", device="cpu")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in trainer.model.state_dict().items())


def test_projector_file_carries_the_newline(flags, tmp_path, tiles_folder, llama_folder):
    stage_1 = ("--version", "plain", "--data_path", tiles_folder / "captions.json", "--tune_mm_mlp_adapter", True)
    trainer = train(argv=flags(tmp_path / "1", *stage_1))
    newline = trainer.model.get_model().image_newline
    assert {n.split(".")[1] for n, p in trainer.model.named_parameters() if p.requires_grad} == {
        "mm_projector",
        "image_newline",
    }
    file = tmp_path / "1" / "mm_projector.bin"
    assert torch.equal(torch.load(file, weights_only=True)["model.image_newline"], newline)
    second = prepare(argv=flags(tmp_path / "2", "--pretrain_mm_mlp_adapter", file))
    assert torch.equal(second.model.get_model().image_newline, newline)
    assert second.model.get_model().image_newline.requires_grad
    _, model, _, _ = load_pretrained_model(str(tmp_path / "1"), str(llama_folder), "llava", device="cpu")
    assert torch.equal(model.get_model().image_newline, newline)


def test_lora_keeps_the_newline_beside_the_adapter(flags, tmp_path, llama_folder):
    pytest.importorskip("peft")
    trainer = train(argv=flags(tmp_path, "--lora_enable", True, "--lora_r", 2))
    newline = trainer.model.get_model().image_newline
    assert newline.requires_grad
    beside = torch.load(tmp_path / "non_lora_trainables.bin", weights_only=True)
    assert [torch.equal(value, newline) for name, value in beside.items() if "image_newline" in name] == [True]
    _, model, _, _ = load_pretrained_model(str(tmp_path), str(llama_folder), "llava-lora", device="cpu")
    assert torch.equal(model.get_model().image_newline, newline)


def test_training_goes_on_with_the_grids_of_a_checkpoint(tuned, tiles_folder, tmp_path, monkeypatch):
    start = ["--model_name_or_path", str(tuned[0]), "--data_path", str(tiles_folder / "dialogues.json")]
    start += ["--image_folder", str(tiles_folder), "--output_dir", str(tmp_path), "--version", "v1"]
    start += ["--mm_vision_select_layer", "-2", "--mm_use_im_patch_token", "False", "--report_to", "none"]
    as_before = ["--image_aspect_ratio", "anyres", "--mm_patch_merge_type", "spatial_unpad"]
    warnings: list[str] = []
    monkeypatch.setattr("llava.train.anyres.logger.warning", warnings.append)
    trainer = prepare(argv=[*start, *as_before])
    assert warnings == []
    assert trainer.model.config.image_grid_pinpoints == [[56, 112], [112, 56], [112, 112], [168, 56]]
    assert len(trainer.train_dataset[0]["image"]) == 5
    flat = prepare(argv=start)
    assert [text.partition("--")[2] for text in warnings] == [
        "image_aspect_ratio anyres, this run continues with square",
        "mm_patch_merge_type spatial_unpad, this run continues with flat",
    ]
    assert not flat.model.get_model().image_newline.requires_grad  # nothing would ever reach it


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--image_grid_pinpoints", "[(84, 56)]"), "84 x 56 is not made of whole tiles of 56 x 56 pixels"),
        (("--mm_vision_select_feature", "cls_patch"), "which has no place for CLS"),
    ],
)
def test_what_does_not_fit_the_tower_is_one_line(flags, tmp_path, more, reason):
    with pytest.raises(SystemExit, match=f"error: .*{reason}") as exit:
        main(flags(tmp_path, *more))
    assert "\n" not in str(exit.value)


def test_anyres_without_grids_is_one_line(flags, tmp_path):
    given = flags(tmp_path)
    at = given.index("--image_grid_pinpoints")
    with pytest.raises(SystemExit, match=r"error: .*anyres needs --image_grid_pinpoints"):
        main(given[:at] + given[at + 2 :])
