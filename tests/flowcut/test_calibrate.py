"""Schedules that are fixed beforehand."""

import json

import numpy as np
import pytest
import torch
from hosts import DEPTH, PATCHES, Clip, pixels
from PIL import Image

from flowcut import FlowCut, attach, calibrate, parse_pruner
from flowcut.bench.counting import count
from flowcut.calibrate import main, pictures_in
from flowcut.checkpoints import picture_calls
from tests.ending import ending

BUDGET = 10
SELECTIONS = [1, 3, 5]


@pytest.fixture(scope="module")
def model():
    return Clip().build()


def leaving(model, pruner, images):
    with torch.no_grad(), attach(model, pruner) as handle:
        model(images)
    return handle.trace.leaving


def test_numbers_are_means_of_the_adaptive_ones(model):
    batches = [pixels([0, 1, 2]), pixels([3])]
    found = calibrate.calibrate(model, [lambda batch=batch: model(batch) for batch in batches], FlowCut(BUDGET))
    adaptive = leaving(model, FlowCut(BUDGET), pixels([0, 1, 2, 3]))
    for number, layer in enumerate(SELECTIONS[:-1]):
        assert found.pruner.counts[number] == round(sum(adaptive[layer]) / 4)
        assert (found.lowest[number], found.highest[number]) == (min(adaptive[layer]), max(adaptive[layer]))
    assert found.images == 4
    assert found.pruner == FlowCut.calibrated(BUDGET, counts=found.pruner.counts)


def test_every_row_keeps_the_numbers_and_the_host_never_waits(model):
    pruner = FlowCut.calibrated(BUDGET, counts=(PATCHES - 3, PATCHES - 9))
    told = leaving(model, pruner, pixels([0, 1, 2, 3]))
    assert [told[layer] for layer in SELECTIONS] == [(PATCHES - 3,) * 4, (PATCHES - 9,) * 4, (BUDGET,) * 4]
    with attach(model, pruner):
        assert not count(lambda: model(pixels([0, 1]))).waits


def test_the_numbers_of_one_image_give_what_the_adaptive_rule_gives(model):
    image = pixels([2])
    adaptive = leaving(model, FlowCut(BUDGET), image)
    fixed = FlowCut.calibrated(BUDGET, counts=tuple(adaptive[layer][0] for layer in SELECTIONS[:-1]))
    kept = []
    for pruner in (FlowCut(BUDGET), fixed):
        with torch.no_grad(), attach(model, pruner) as handle:
            model(image)
        kept.append(handle.trace.kept)
    assert list(kept[0]) == list(kept[1]) == SELECTIONS
    assert all(torch.equal(kept[0][layer][0], kept[1][layer][0]) for layer in SELECTIONS)


def test_a_budget_above_the_numbers_wins(model):
    assert leaving(model, FlowCut.calibrated(12, counts=(5, 4)), pixels([0]))[1:] == [(12,)] * (DEPTH - 1)


def test_selections():
    shape = Clip().build(), FlowCut(1)
    with attach(*shape) as handle:
        [encoder] = handle.shape.encoders
    assert FlowCut(1).selections(encoder) == SELECTIONS
    assert FlowCut(1, interval=3).selections(encoder) == [2, 5]
    assert FlowCut(1, interval=99).selections(encoder) == [5]
    assert FlowCut(1, last_layer=-1, interval=1).selections(encoder) == list(range(DEPTH))


@pytest.mark.parametrize(
    ("pruner", "message"),
    [
        ("flowcut:budget=4,counts=9", "counts=9 are 1 numbers, and before the last one this encoder has 2 selections"),
        ("flowcut:budget=4,counts=9/0", "not all numbers of patches >= 1"),
        ("flowcut:budget=4,counts=nine", "counts=2/8/16"),
    ],
)
def test_numbers_that_cannot_be(model, pruner, message):
    with pytest.raises(ValueError, match=message):
        attach(model, parse_pruner(pruner))


@pytest.mark.parametrize(
    ("pruner", "sides", "message"),
    [
        (FlowCut(4, counts=(9, 8)), [56], "numbers already"),
        (FlowCut(4, adaptive=False), [56], "numbers already"),
        (FlowCut(4, interval=99), [56], "selects only once"),
        (FlowCut(4), [], "no image to calibrate on"),
    ],
)
def test_what_cannot_be_calibrated(model, pruner, sides, message):
    with pytest.raises(ValueError, match=message):
        calibrate.calibrate(model, [lambda: model(pixels([0])) for _ in sides], pruner)


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 40, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_program(model, folder, monkeypatch, capsys):
    def calls(path, files):
        assert files == [str(folder / "a.png"), str(folder / "b.png")]
        return model, (lambda number=number: model(pixels([number])) for number in range(len(files)))

    monkeypatch.setattr(calibrate, "picture_calls", calls)
    assert main(["any", str(folder), "--pruner", f"flowcut:budget={BUDGET}"]) == 0
    text, last = capsys.readouterr().out.splitlines()
    told = json.loads(last)
    assert parse_pruner(text) == FlowCut.calibrated(BUDGET, counts=tuple(told["counts"]))
    assert told["images"] == 2


def test_pictures_of_a_checkpoint_go_through_its_tower(llava_folder, folder):
    model, calls = picture_calls(str(llava_folder), pictures_in([str(folder)]))
    with torch.no_grad(), attach(model, FlowCut(5, last_layer=-2)) as handle:
        assert [call().shape[:2] for call in calls] == [(1, 5)] * 2
    assert handle.trace.leaving[-1] == (5,)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "nothing.png"], "nowhere"),
        (["nowhere", "x.png", "--pruner", "fastv:budget=3"], "is not FlowCut"),
        (["nowhere", "x.png", "--limit", "0"], "--limit 0"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys):
    assert ending(main, words) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_numbers_are_part_of_a_pruners_name_where_there_are_some():
    assert "counts" not in repr(FlowCut(4))
    assert "counts=(9, 8), " in repr(FlowCut.calibrated(4, counts=(9, 8)))
