"""check_data on a file in which every kind of problem occurs once; it and the data set must agree on every sample."""

import dataclasses
import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import llava.__main__
from llava.conversation import conv_templates
from llava.model.tokenizer import load_llama_tokenizer
from llava.train import check_data
from llava.train.arguments import DataArguments
from llava.train.checker import Checker
from llava.train.data import LazySupervisedDataset
from llava.train.preprocess import BadSample


def sample(name, question="<image> how many cats?", answer="two cats", **fields):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": name, "conversations": turns, **fields}


# each with the kinds of problem it has
SAMPLES = [
    (sample("fine", image="red.png"), set()),
    (sample("text", "hello"), set()),
    (sample("two", "is <image>, like <image>?", image=["red.png", "blue.png"]), set()),
    (sample("fine", "hello"), {"id given before"}),
    (sample("gif", image="red.gif"), {"image found under another extension"}),
    (sample("absent", image="absent.png"), {"image missing"}),
    (sample("broken", image="broken.png"), {"image unreadable"}),
    (sample("cut off", image=["red.png", "half.jpg"], question="<image> <image>"), {"image unreadable"}),
    (sample("count", "how many cats?", image="red.png"), {"images and placeholders differ"}),
    (sample("silent", "hello", ""), {"an answer is empty", "nothing to learn: no answer"}),
    (sample("stray", "hello <image>"), {"<image> in the text but no image"}),
    (sample("late", "cats " * 400, "two cats"), {"nothing to learn: too long"}),
    (sample("long", "hello", "two cats " * 200, image=None), {"cut at the longest length"}),
    (sample("number", image=7), {"malformed sample"}),
    (sample("blind", image=""), {"images and placeholders differ"}),
    (sample("other field", images=["red.png"]), {"field that is not read"}),
    (sample("clip", video="a.mp4"), {"field that is not read"}),
    (sample("slash", image="/"), {"image missing"}),
    (sample("endless", image="x" * 300), {"image missing"}),
    (sample("float", image="float.tiff"), {"image unreadable"}),
    (sample("strip", image="strip.png"), set()),  # its middle is used
    (sample("half", "hello \ud800"), {"malformed sample"}),
    (
        {"id": "early", "conversations": [{"from": "gpt", "value": "no"}, *sample("", "hello")["conversations"]]},
        {"an answer before the first question is left out"},
    ),
    ({"id": "nothing"}, {"malformed sample"}),
    ({"id": "null", "conversations": [None]}, {"malformed sample"}),
    (
        {"id": "roles", "conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}]},
        {"roles out of turn"},
    ),
]
LIMIT = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """data.json with all samples and their pictures, fine.json with the first three."""
    folder = tmp_path_factory.mktemp("check")
    for colour in ("red", "blue"):
        Image.new("RGB", (80, 60), colour).save(folder / f"{colour}.png")
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "half.jpg")
    (folder / "half.jpg").write_bytes((folder / "half.jpg").read_bytes()[:-500])
    (folder / "broken.png").write_bytes(b"not a picture")
    Image.fromarray(np.ones((9, 9), dtype=np.float32)).save(folder / "float.tiff")
    Image.fromarray(np.full((9, 9), 30000, dtype=np.uint16)).save(folder / "deep.png")
    Image.new("RGB", (1, 201)).save(folder / "strip.png")
    (folder / "data.json").write_text(json.dumps([sample for sample, _ in SAMPLES]))
    (folder / "fine.json").write_text(json.dumps([sample for sample, _ in SAMPLES[:3]]))
    return folder


@pytest.fixture
def run(folder, tokenizer_folder, capsys):
    """Exit status, report and printed lines of check_data on a file of the folder."""

    def run(file, *more, tokenizer=True):
        flags = ["--data_path", folder / file, "--image_folder", folder, "--model_max_length", LIMIT]
        flags += ["--image_tokens", 16, "--workers", 0]
        flags += ["--model_name_or_path", tokenizer_folder] if tokenizer else []
        status = check_data.main([str(flag) for flag in (*flags, *more)])
        lines = capsys.readouterr().out.splitlines()
        return status, json.loads(lines[-1]), lines[:-1]

    return run


@pytest.mark.parametrize("workers", [0, 2])
def test_every_problem_is_found_once(run, workers):
    status, report, lines = run("data.json", "--workers", workers)
    assert status == 1
    expected: dict[str, int] = {}
    for _, kinds in SAMPLES:
        for kind in kinds:
            expected[kind] = expected.get(kind, 0) + 1
    assert {problem["kind"]: problem["samples"] for problem in report["problems"]} == expected
    for problem in report["problems"]:
        for example in problem["examples"]:
            given, kinds = SAMPLES[example["index"]]
            assert (example["id"], problem["kind"] in kinds) == (given["id"], True)
            assert example["message"]
        assert any(line.startswith(problem["kind"]) for line in lines)
    assert (report["samples"], report["checked"], report["interrupted"]) == (len(SAMPLES), len(SAMPLES), False)
    assert (report["one_image"], report["several_images"], report["images"]) == (9, 2, 13)
    assert report["text_only"] == len(SAMPLES) - 11


def data_set(folder, tokenizer_folder, clip_folder, file, version="v1"):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = load_llama_tokenizer(tokenizer_folder)
    tokenizer.model_max_length = LIMIT
    arguments = DataArguments(image_folder=str(folder))
    arguments.image_processor, arguments.image_tokens = CLIPImageProcessorPil.from_pretrained(clip_folder), 16
    return LazySupervisedDataset(str(folder / file), tokenizer, arguments, conv_templates[version])


def refusals(data) -> dict[int, str]:
    refused = {}
    for index in range(len(data)):
        try:
            data.prepare(index)
        except BadSample as error:
            refused[index] = error.kind
    return refused


def test_the_data_set_refuses_what_the_report_calls_unusable(folder, tokenizer_folder, clip_folder, run):
    refused = refusals(data_set(folder, tokenizer_folder, clip_folder, "data.json"))
    _, report, _ = run("data.json", "--examples", len(SAMPLES))
    stopping = [problem for problem in report["problems"] if problem["stops_training"]]
    assert {e["index"]: problem["kind"] for problem in stopping for e in problem["examples"]} == refused
    assert report["unusable"] == len(refused)


def random_sample(draw: random.Random) -> dict:
    """A sample in which a few things may be odd."""
    odd = (None, "", [], {}, 7, 1.5, True, "/", "..", "\x00", "x" * 300, "\ud800", ["red.png", ""], [None], "a\nb.png")
    files = ("red.png", "red.gif", "broken.png", "half.jpg", "float.tiff", "strip.png", "deep.png", "absent.png")
    texts = ("hello", "<image> how many cats?", "<image> <image>", "", " ", "</s>", "\ud800 cats", "cats " * 300)
    roles = ("human", "gpt", "gpt", "system", "user", None, [])
    made: dict = {"id": draw.choice([1, "a", None, {}])}
    alternating = [{"from": ("human", "gpt")[number % 2], "value": draw.choice(texts)} for number in range(6)]
    turns: Any = alternating[: draw.choice([1, 2, 2, 2, 4, 6])]
    for turn in turns:
        if draw.random() < 0.08:
            turn["from"] = draw.choice(roles)
        if draw.random() < 0.05:
            turn["value"] = draw.choice(odd)
    if draw.random() < 0.2:
        turns.insert(draw.choice([0, 0, 1]), {"from": draw.choice(["system", "gpt"]), "value": draw.choice(texts)})
    if draw.random() < 0.05:
        turns = draw.choice([*odd, [None], [[]], "text"])
    made["conversations"] = turns
    if draw.random() < 0.6:
        made["image"] = draw.choice([*odd, *files, *files, [draw.choice(files)], list(draw.choices(files, k=2))])
    if draw.random() < 0.1:
        made[draw.choice(["images", "video", "audio"])] = draw.choice([None, [], "red.png", ["red.png"]])
    return made


@pytest.mark.parametrize("version", ["v1", "plain", "v0", "mpt", "llava_llama_2"])
def test_200_random_samples_are_refused_by_both_or_by_none(folder, tokenizer_folder, clip_folder, version):
    draw = random.Random(version)
    samples = [random_sample(draw) for _ in range(200)]
    (folder / "random.json").write_text(json.dumps(samples))
    data = data_set(folder, tokenizer_folder, clip_folder, "random.json", version)
    refused = refusals(data)
    assert 20 < len(refused) < 195
    assert len(data.lengths) == len(data.modality_lengths) == 200
    checker = Checker(data.samples, dataclasses.replace(rules(folder), model_max_length=LIMIT), data.tokenizer)
    checker.rules = dataclasses.replace(checker.rules, conversation=conv_templates[version])
    for index in range(200):
        checked = checker[index]
        assert checked.usable == (index not in refused), (samples[index], checked.problems, refused.get(index))
        assert checked.usable or refused[index] in {problem.kind for problem in checked.problems}


def test_lengths_are_those_of_training(run, folder, tokenizer_folder):
    status, report, lines = run("fine.json")
    assert (status, report["problems"], report["unusable"]) == (0, [], 0)
    tokenizer = load_llama_tokenizer(tokenizer_folder)
    data = LazySupervisedDataset(str(folder / "fine.json"), tokenizer, DataArguments(), conv_templates["v1"])
    ids = [check_data.Checker(data.samples, rules(folder), tokenizer).encode(index) for index in range(3)]
    tokens = [len(one.input_ids) + 15 * len(one.images) for one in ids]
    learned = [int((one.labels != -100).sum()) for one in ids]
    assert report["lengths"]["tokens"]["total"] == sum(tokens)
    assert (report["lengths"]["tokens"]["min"], report["lengths"]["tokens"]["max"]) == (min(tokens), max(tokens))
    assert report["lengths"]["tokens"]["p50"] == float(torch.tensor(tokens).median())
    assert report["lengths"]["learned"]["total"] == sum(learned) == 9
    shown = [line for line in lines if line.startswith(("  read ", "  learn"))]
    assert shown[-1] == "  learn 'two cats</s>'"
    assert "USER: <image>\\nhow many cats? ASSISTANT:" in shown[0]


def rules(folder):
    arguments = ["--data_path", "x", "--image_folder", str(folder), "--image_tokens", "16"]
    return check_data.rules_of(check_data.build_parser().parse_args(arguments))


def test_anyres_and_pruners_change_the_length(run, folder):
    def total(*more):
        return run("fine.json", "--model_max_length", 999, *more)[1]["lengths"]["tokens"]["total"]

    plain = total()
    assert total("--pruner", "flowcut:budget=5") == plain - 3 * 11
    anyres = ("--image_aspect_ratio", "anyres", "--image_grid_pinpoints", "[(112, 112)]", "--tile_size", 56)
    # 80 x 60 fills 8 x 6 patches of a 112 x 112 canvas; a newline after each row
    assert total(*anyres) == plain + 3 * 6 * 9
    assert total(*anyres, "--mm_patch_merge_type", "flat") == plain + 3 * 4 * 16
    assert total(*anyres, "--pruner", "fastervlm:budget=10") == plain - 3 * 6


def test_without_a_tokenizer_structure_and_pictures_are_checked(run):
    status, report, lines = run("data.json", tokenizer=False)
    assert status == 1
    assert set(report["lengths"]) == {"words"}
    kinds = {problem["kind"] for problem in report["problems"]}
    every = set.union(*(kinds for _, kinds in SAMPLES))
    assert kinds == every - {"nothing to learn: too long", "cut at the longest length"}
    assert not any(line.startswith("  learn") for line in lines)


def test_status_under_the_one_command_name(folder):
    flags = ["check-data", "--image_folder", str(folder), "--workers", "0", "--data_path"]
    assert llava.__main__.main([*flags, str(folder / "fine.json")]) == 0
    assert llava.__main__.main(["train", "check_data", *flags[1:], str(folder / "data.json")]) == 1


def test_examples_limit_and_json_file(run, folder, tmp_path):
    _, report, _ = run("data.json", "--examples", 1, "--limit", 8, "--json", tmp_path / "report.json")
    assert report["checked"] == 8
    assert all(len(problem["examples"]) == 1 for problem in report["problems"])
    assert json.loads((tmp_path / "report.json").read_text()) == report


@pytest.mark.parametrize(("good", "status"), [(True, 130), (False, 1)])
def test_interrupted_it_reports_what_it_has(run, folder, monkeypatch, good, status):
    many = [sample("x" * n, "hello" if good else "<image> hello", **{} if good else {"image": "no"}) for n in range(99)]
    (folder / "many.json").write_text(json.dumps(many))
    look = Checker.__getitem__

    def until(self, index):
        if index == 70:
            raise KeyboardInterrupt
        return look(self, index)

    monkeypatch.setattr(Checker, "__getitem__", until)
    code, report, lines = run("many.json")
    assert (code, report["interrupted"], report["checked"]) == (status, True, 64)
    assert "interrupted" in lines[0]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--version", "v7"), "--version v7 is not a template"),
        (("--image_folder", "absent"), "absent: no such folder"),
        (("--data_path", "absent.json"), "no such file"),
        (("--model_name_or_path", "/absent"), "/absent is not a folder"),
        (("--image_aspect_ratio", "anyres", "--tile_size", "224"), "not made of whole tiles of 224 x 224"),
        (("--pruner", "flowcat:budget=3"), "unknown pruner"),
    ],
)
def test_unusable_flags_are_one_line_and_status_2(run, capsys, more, reason):
    with pytest.raises(SystemExit) as exit:
        run("fine.json", *more)
    message = capsys.readouterr().err
    assert exit.value.code == 2
    assert message.startswith("error: ")
    assert reason in message
    assert message.count("\n") == 1
