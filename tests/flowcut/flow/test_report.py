"""The command line: a page that needs nothing else, its numbers, and one line for bad input."""

import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from flowcut.flow import Study, load_subject
from flowcut.flow.__main__ import main
from flowcut.flow.figures import trends
from flowcut.flow.numbers import criteria, numbers_of
from flowcut.flow.report import table
from flowcut.flow.study import compared_with, make_study
from tests.ending import ending

FIGURES = ("fig2_flows", "fig2_maps", "fig3_trends", "fig3_relay", "fig4_criteria", "fig6_strength", "fig7_boxes")
FIGURES += ("fig8_kept", "fig9_10_streams", "fig11_steps")


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str]] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.addresses += [found[name] for name in ("src", "href") if name in found]
        if tag == "img":
            self.images.append(found)


@pytest.fixture(scope="module")
def report(encoder_folders, picture_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "deep" / "report"
    arguments = [
        str(picture_folder),
        "--model",
        str(encoder_folders["CLIPVisionModel"]),
        "--pruner",
        "flowcut:budget=5",
    ]
    assert main([*arguments, "--out", str(out)]) == 0
    return out


@pytest.fixture
def one_figure(monkeypatch):
    """All figures are drawn in `report`; elsewhere one is enough."""
    monkeypatch.setattr("flowcut.flow.report.draw_all", lambda study: [trends(study)])


def test_the_page_stands_alone_and_describes_its_images(report):
    text = (report / "index.html").read_text("utf-8")
    page = Page(text)
    assert len(page.images) == len(FIGURES)
    assert all(address.startswith("data:") for address in page.addresses)
    assert "<script" not in text
    assert all(len(image["alt"]) > 40 for image in page.images)
    assert all((report / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in FIGURES)
    assert all(Image.open(report / f"{name}.png").mode == "RGB" for name in FIGURES)  # no palette that loses colours
    assert all("</text>" in (report / f"{name}.svg").read_text("utf-8") for name in FIGURES)
    assert text.count("<h2>") == len(FIGURES) + 1
    assert "a.png, b.jpg" in text


def test_csv_of_flows_is_the_study(report):
    study = Study.load(report)
    for image in range(2):
        with (report / f"flow_{image}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 5 * 17
        assert list(rows[0]) == ["layer", "token", "inflow", "outflow"]
        for row in rows[::7]:
            layer, token = int(row["layer"]), int(row["token"])
            assert int(row["inflow"]) == study.flow.inflow[image, layer, token]
            assert int(row["outflow"]) == study.flow.outflow[image, layer, token]


def test_numbers(report):
    numbers, study = json.loads((report / "numbers.json").read_text()), Study.load(report)
    assert [row["layer"] for row in numbers["layers"]] == [0, 1, 2, 3, 4]
    source, places = study.flow.source[:, 3], study.places
    steps = [places[image[patch]] - places[patch] for image in source for patch in range(16)]
    assert numbers["layers"][3]["distance"] == pytest.approx(np.mean([np.hypot(*step) for step in steps]))
    assert numbers["layers"][3]["source_is_special"] == pytest.approx((study.flow.inflow[:, 3, 1:] == 0).mean())
    counted = [len(set(image.tolist())) for image in source]
    assert numbers["layers"][3]["distinct_sources"] == pytest.approx(np.mean(counted))
    assert numbers["criteria"]["layer"] == 3
    assert numbers["criteria"]["top"] == 5
    assert set(numbers["spread"]) == {"all patches", "flowcut", "one cut after layer 2", "fastervlm", "visionzip"}
    assert numbers["patches_entering"]["flowcut"][0] == 16
    assert numbers["patches_entering"]["flowcut"][-1] == 5
    assert numbers["patches_entering"]["one cut after layer 2"] == [16, 16, 16, 5, 5]
    for image, (back, onward) in enumerate(zip(*numbers["main_streams"].values(), strict=True)):
        for layer in range(1, 5):
            assert study.flow.inflow[image, layer - 1, back[layer]] == back[layer - 1]
            assert study.flow.outflow[image, layer, onward[layer - 1]] == onward[layer]


def test_steps_are_what_was_left_after_each_selection(report):
    run = Study.load(report).runs[0]
    for image in range(2):
        steps = run.steps(image)
        assert [layer for layer, _ in steps] == sorted({layer for layer, _ in steps} & {0, 2})
        assert steps[-1][0] == 2
        assert steps[-1][1].tolist() == np.flatnonzero(run.kept[image]).tolist()


def test_drawn_again_from_what_was_saved(report, tmp_path, one_figure):
    assert main(["--from", str(report), "--out", str(tmp_path)]) == 0
    for name in ("numbers.json", "layers.csv", "boxes.csv", "study.json", "flow_1.csv", "fig3_trends.png"):
        assert (tmp_path / name).read_bytes() == (report / name).read_bytes(), name
    assert len(Page((tmp_path / "index.html").read_text("utf-8")).images) == 1


def test_an_encoder_without_cls_says_what_takes_its_place(encoder_folders, picture_folder, tmp_path, one_figure):
    arguments = ["--model", str(encoder_folders["SiglipVisionModel"]), "--pruner", "flowcut:budget=5"]
    picture = str(picture_folder / "a.png")
    assert main([picture, *arguments, "--against", "fastervlm:budget=5", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "this page shows the mean of all tokens (this encoder has no CLS)" in page
    study = Study.load(tmp_path)
    assert study.flow.inflow.shape == (1, 5, 16)
    assert [run.label for run in study.runs] == ["flowcut", "fastervlm"]
    assert criteria(study)["layer"] == 3


def test_registers_are_special_tokens_too(encoder_folders, picture_folder):
    from llava.eval.media.images import load_image

    subject = load_subject(str(encoder_folders["Dinov2WithRegistersModel"]))
    study = make_study(subject, [("a", load_image(picture_folder / "a.png"))], ["flowcut:budget=5"])
    assert study.special == 3
    assert study.flow.inflow.shape == (1, 5, 19)
    assert study.flow.attention.shape == (1, 5, 16)
    assert len(numbers_of(study)["layers"]) == 5


def test_a_llava_answers_with_each_pruner(llava_folder, picture_folder, tmp_path, capsys, one_figure):
    arguments = ["--model", str(llava_folder), "--pruner", "fastervlm:budget=5", "--against", "fastervlm:budget=3"]
    question = "what is in <this> image"
    assert main([str(picture_folder), *arguments, "--question", question, "--out", str(tmp_path)]) == 0
    said = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert said["page"] == str(tmp_path / "index.html")
    answers = json.loads((tmp_path / "numbers.json").read_text())["answers"]
    assert set(answers) == {"no pruning", "fastervlm:budget=5", "fastervlm:budget=3"}

    from llava.eval.media.images import load_image
    from llava.eval.models.llava_answerer import LlavaAnswerer
    from llava.eval.models.llava_checkpoint import load_checkpoint
    from llava.eval.models.reply import Generation

    checkpoint = load_checkpoint(str(llava_folder), device="cpu")
    for label, found in answers.items():
        answerer = LlavaAnswerer(checkpoint, label if ":" in label else "none", Generation(max_new_tokens=64))
        images = [load_image(picture_folder / name) for name in ("a.png", "b.jpg")]
        assert found == [answerer([question], [[image]])[0].text for image in images]
    assert re.search("what is in &lt;this&gt; image", (tmp_path / "index.html").read_text("utf-8"))


def test_by_default_it_is_compared_with_the_same_budget():
    assert compared_with(64, 24) == [
        "flowcut:budget=64,interval=25,last_layer=-13",
        "fastervlm:budget=64",
        "visionzip:budget=64",
    ]


def test_what_is_missing_is_a_dash():
    text = table(["a<b"], [[float("nan")], [None], [0.5], ["<"]])
    assert re.findall("<td>(.*?)</td>", text) == ["-", "-", "0.500", "&lt;"]
    assert "a&lt;b" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, "no picture is given"),
        ({"images": ["missing.png"]}, "image missing.png does not exist"),
        ({"images": ["EMPTY"]}, "contains no picture"),
        ({"--model": "nowhere"}, "nowhere is not a folder"),
        ({"--pruner": "none"}, "cuts nothing in the encoder"),
        ({"--pruner": "vtw:budget=5"}, "cuts nothing in the encoder"),
        ({"--pruner": "cat:budget=5"}, "unknown pruner"),
        ({"--pruner": "cdpruner:budget=5"}, "needs the question"),
        ({"--against": "none"}, "cuts nothing in the encoder"),
        ({"--question": "what"}, "cannot answer"),
        ({"--patches": "99"}, "patches 0 ... 15"),
        ({"--from": "nowhere"}, "leave out"),
        ({"--from": "EMPTY", "images": []}, "has no study.json"),
    ],
)
def test_bad_input_is_one_line(encoder_folders, picture_folder, tmp_path, capsys, change, message):
    (tmp_path / "empty").mkdir()
    arguments = {"--model": str(encoder_folders["CLIPVisionModel"]), "--pruner": "flowcut:budget=5"}
    arguments |= {"--out": str(tmp_path / "out"), **change}
    images = arguments.pop("images", [str(picture_folder / "a.png")])
    given = [*images, *(part for pair in arguments.items() for part in pair)]
    assert ending(main, [str(tmp_path / "empty") if part == "EMPTY" else part for part in given]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert not (tmp_path / "out").exists()
