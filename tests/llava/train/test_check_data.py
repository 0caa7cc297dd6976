"""check_data on a file in which every kind of problem occurs once; it and the data set must agree on every sample."""

import json

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
    assert (report["one_image"], report["several_images"], report["images"]) == (5, 2, 9)
    assert report["text_only"] == len(SAMPLES) - 7


def test_the_data_set_refuses_what_the_report_calls_unusable(folder, tokenizer_folder, clip_folder, run):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = load_llama_tokenizer(tokenizer_folder)
    tokenizer.model_max_length = LIMIT
    arguments = DataArguments(image_folder=str(folder))
    arguments.image_processor, arguments.image_tokens = CLIPImageProcessorPil.from_pretrained(clip_folder), 16
    data = LazySupervisedDataset(str(folder / "data.json"), tokenizer, arguments, conv_templates["v1"])
    refused = {}
    for index in range(len(data)):
        try:
            data.prepare(index)
        except BadSample as error:
            refused[index] = error.kind
    _, report, _ = run("data.json", "--examples", len(SAMPLES))
    stopping = [problem for problem in report["problems"] if problem["stops_training"]]
    assert {e["index"]: problem["kind"] for problem in stopping for e in problem["examples"]} == refused
    assert report["unusable"] == len(refused)


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
    return check_data.rules_of(check_data.parser().parse_args(arguments))


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
    llava.__main__.main([*flags, str(folder / "fine.json")])
    with pytest.raises(SystemExit) as exit:
        llava.__main__.main([*flags, str(folder / "data.json")])
    assert exit.value.code == 1


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
        (("--version", "v7"), "--version v7 is no template"),
        (("--image_folder", "absent"), "absent: no such folder"),
        (("--data_path", "absent.json"), "no such file"),
        (("--model_name_or_path", "/absent"), "/absent is no folder"),
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
