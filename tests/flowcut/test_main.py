"""The command line: pictures, the list, and one line for bad input."""

import json

import numpy as np
import pytest
from PIL import Image

from flowcut.__main__ import main
from flowcut.plots import CAPTION, PANEL, kept_patches
from flowcut.registry import METHODS
from tests.ending import ending


@pytest.fixture
def image(tmp_path):
    file = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 40, 3), dtype=np.uint8)).save(file)
    return str(file)


def test_kept_patches_are_clear_and_the_others_veiled():
    sheet = np.asarray(kept_patches(np.zeros((8, 8, 3), np.uint8), [("after", np.array([0, 3]))], (2, 2)))
    panel = sheet[CAPTION:, PANEL:]
    half = PANEL // 2
    assert panel[:half, :half].max() == panel[half:, half:].max() == 0
    assert panel[:half, half:].min() == panel[half:, :half].min() > 150


def test_show(llava_folder, image, tmp_path, capsys):
    out = tmp_path / "kept.png"
    arguments = ["--image", image, "--model-path", str(llava_folder), "--out", str(out)]
    assert main(["show", *arguments, "--pruner", "fastervlm:budget=5"]) == 0
    *_, path, told = capsys.readouterr().out.splitlines()
    assert path == json.loads(told)["picture"] == str(out)
    assert list(json.loads(told)["kept"].values()) == [5]
    assert Image.open(out).size == (2 * PANEL, PANEL + CAPTION)


def test_list(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}: {method.paper}\n" in printed for name, method in METHODS.items())
    own = printed.split("flowcut: ")[1].split("flowcut-paper: ")[0]
    assert "    semantic_scale=none (none or head): divide value products by" in own
    assert "    budget (a whole number, or a share between 0 and 1): visual tokens that reach the language model" in own
    literal = printed.split("flowcut-paper: ")[1].splitlines()[1]
    assert literal == "    as flowcut, with semantic_scale=head, entropy_over=all, steps_left=selections"
    assert "    text_tower=None (text, or None): folder or Hub name of the CLIP" in printed
    assert max(map(len, printed.splitlines())) <= 120


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--pruner": "flowcat:budget=3"}, "unknown pruner"),
        ({"--pruner": "flowcut:budget=-3"}, "budget=-3"),
        ({"--pruner": "none"}, "keeps every patch"),
        ({"--pruner": "flowcut:budget=3"}, "has only 2 layers"),
        ({"--image": "missing.png"}, "image missing.png does not exist"),
        ({"--image": __file__}, "it is none of"),
        ({"--model-path": "nowhere"}, "nowhere"),
        ({"--out": "no/such/folder/kept.png"}, "no/such/folder"),
    ],
)
def test_bad_input_is_one_line(llava_folder, image, tmp_path, capsys, change, message):
    arguments = {"--image": image, "--model-path": str(llava_folder), "--out": str(tmp_path / "kept.png")}
    arguments |= {"--pruner": "fastervlm:budget=5", **change}
    assert ending(main, ["show", *(part for pair in arguments.items() for part in pair)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert lines[-1].startswith("error: ")
