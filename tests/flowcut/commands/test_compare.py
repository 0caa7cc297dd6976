"""One question with several budgets: the rows, the picture, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from flowcut.commands.compare import main
from flowcut.plots import CAPTION, PANEL
from tests.ending import ending


@pytest.fixture
def image(tmp_path):
    file = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 40, 3), dtype=np.uint8)).save(file)
    return str(file)


def test_the_whole_model_and_two_budgets(llava_folder, image, tmp_path, capsys):
    """The tiny LLaVA has 16 tokens, so a budget of 16 is the model without pruning, which comes first anyway."""
    out = tmp_path / "new" / "kept.png"
    flags = ["--image", image, "--query", "What?", "--model-path", str(llava_folder), "--rounds", "1"]
    assert main([*flags, "--method", "fastervlm", "--budget", "16", "5", "3", "--out", str(out)]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    rows = json.loads(last)["rows"]
    assert [(row["pruner"], row["visual_tokens"]) for row in rows] == [
        ("none", 16),
        ("fastervlm:budget=5", 5),
        ("fastervlm:budget=3", 3),
    ]
    assert rows[0]["speedup"] == 1
    assert all(row["ms"] > 0 for row in rows)
    assert all(any(line.startswith(row["pruner"]) for line in table) for row in rows)
    assert Image.open(out).size == (3 * PANEL, PANEL + CAPTION)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--pruner", "flowcat:budget=3"], "unknown pruner"),
        (["--rounds", "0"], "--rounds 0"),
        (["--image", "missing.png"], "missing.png does not exist"),
        (["--model-path", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(llava_folder, image, capsys, change, message):
    flags = ["--image", image, "--query", "What?", "--model-path", str(llava_folder), *change]
    assert ending(main, flags) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
