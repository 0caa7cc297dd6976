"""VTW against a loop, its budgets, and the search for its layer."""

import json
import math

import pytest
import torch

from flowcut import VTW, attach, parse_pruner
from flowcut.compat import CACHE
from flowcut.vtw_search import divergence, main, search
from tests.ending import ending
from tests.flowcut.hosts import Clip, HFLlava, Sample
from tests.flowcut.naive_llama import batch, prompt, run, tiny_llava
from tests.flowcut.recorded_llama import near

PROMPTS = [prompt(0, 30, 6), prompt(1, 22, 1), prompt(2, 9, 4)]


def loop(model, given, layer, renumber):
    def before(number, sequence, _):
        if number == layer:
            text = [column for column in range(len(sequence.tokens)) if sequence.tokens[column] < 0]
            sequence.keep(text, renumber)

    return run(model, given, before=before)


@pytest.mark.parametrize("positions", ["original", "renumbered"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_each_sample_of_a_padded_batch_equals_the_loop(side, positions, tmp_path):
    """The third image has no more tokens than the budget, and stays."""
    model = tiny_llava(tmp_path)
    logits, handle = batch(model, VTW(9, layer=2, positions=positions), PROMPTS, side)
    assert [len(left) for left in handle.trace.language.final] == [0, 0, 9]
    for row, given in enumerate(PROMPTS):
        expected, _ = loop(model, given, 2 if row < 2 else 99, positions == "renumbered")
        near(logits[row], expected, 1e-4)


def test_the_cache_of_the_layers_in_front_keeps_the_image(tmp_path):
    model, given = tiny_llava(tmp_path), PROMPTS[0]
    with torch.no_grad(), attach(model, VTW(9, layer=3)) as handle:
        cache = model(inputs_embeds=given.embeds[None], image_index=given.index[None], use_cache=True)[CACHE]
    text = len(given.embeds) - given.image
    assert [cache.get_seq_length(layer) for layer in range(4)] == [text + given.image] * 3 + [text]
    assert handle.trace.language.path() == [given.image] * 3 + [0]


@pytest.mark.parametrize(("budget", "layer"), [(192, 11), (128, 7), (64, 4), (90, 5), (270, 15), (1, 1)])
def test_budgets_of_llava_7b(budget, layer):
    schedule = VTW(budget).schedule(576, 32)
    assert schedule.entering == [576] * layer + [0] * (32 - layer)
    assert budget == 1 or abs(schedule.inputs - budget) <= 9


def test_budgets_that_withdraw_nothing():
    for budget in (570, 576, 900):
        assert VTW(budget).schedule(576, 32).entering == [576] * 32
    assert VTW(270, layer=15).schedule(576, 32) == VTW(270).schedule(576, 32)


def test_a_prompt_without_text_is_refused(tmp_path):
    model = tiny_llava(tmp_path)
    embeds, index = torch.randn(1, 12, 32), torch.zeros(1, 12, dtype=torch.long)
    with pytest.raises(ValueError, match="this prompt has no others; add text"), attach(model, VTW(5, layer=1)):
        model(inputs_embeds=embeds, image_index=index)


def test_text_and_bad_fields():
    assert parse_pruner("vtw:budget=270,layer=15") == VTW(270, layer=15)
    with pytest.raises(ValueError, match="layer=0 is not a layer's number >= 1; the paper's is 15 of 32"):
        VTW(64, layer=0)
    with pytest.raises(ValueError, match="positions='kept' is not allowed; choose original or renumbered"):
        VTW(64, positions="kept")
    with pytest.raises(ValueError, match="VTW cuts inside a language model"):
        attach(Clip().build(), VTW(64))
    with pytest.raises(ValueError, match="layer=15 is not in this decoder of only 4 layers; use at most 3"):
        attach(HFLlava().build(), VTW(270, layer=15))


def test_divergence_by_hand():
    whole, other = torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.25, 0.25, 0.5]).log()
    assert divergence(whole, other) == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2), abs=1e-6)
    assert divergence(whole, whole + 3) == pytest.approx(0, abs=1e-7)


HOST = HFLlava()


def calls():
    return [HOST.inputs([sample], "left") for sample in HOST.samples()[:2]]


@pytest.fixture(scope="module")
def model():
    return HOST.build()


def test_search_tries_layers_in_turn(model):
    """Each number as worked out alone; the threshold decides which layer is the first."""
    expected = {}
    with torch.no_grad():
        whole = [model(**call).logits[0, -1] for call in calls()]
        for layer in (1, 2, 3):
            with attach(model, VTW(1, layer=layer)):
                each = [model(**call).logits[0, -1] for call in calls()]
            pairs = [(one.softmax(0), other.softmax(0)) for one, other in zip(whole, each, strict=True)]
            expected[layer] = sum(float((p * (p / q).log()).sum()) for p, q in pairs) / 2
    found = search(model, calls(), threshold=0.0, first=1)
    assert found.layer is None
    assert found.divergence == pytest.approx(expected, rel=1e-3)
    between = (min(expected[1], expected[2]) + max(expected[1], expected[2])) / 2
    first = 1 if expected[1] < expected[2] else 2
    found = search(model, calls(), threshold=between, first=1)
    assert (found.layer, found.prompts, list(found.divergence)) == (first, 2, [*range(1, first + 1)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "no prompts to compare on"),
        ({"first": 4}, "first=4 is not a layer from 1 to 3"),
        ({"threshold": -1.0}, r"threshold=-1\.0 is not a divergence"),
        ({"prompts": [HOST.inputs([Sample([1, 5, 6], [])], "left")]}, "a prompt has no image"),
    ],
)
def test_searches_that_cannot_be(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        search(model, **{"prompts": calls(), "first": 1, **arguments})
    with pytest.raises(ValueError, match="this is a vision encoder alone"):
        search(Clip().build(), calls())


def test_program(llava_folder, question_folder, capsys):
    arguments = ["--model-path", str(llava_folder), "--question-file", str(question_folder / "questions.jsonl")]
    arguments += ["--image-folder", str(question_folder / "images"), "--samples", "3"]
    assert main([*arguments, "--first", "1", "--threshold", "1000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert (result["layer"], result["prompts"], result["threshold"]) == (1, 3, 1000)
    assert lines[-2].startswith("layer 1: ")
    for wrong in (["--first", "9"], ["--samples", "0"], ["--question-file", "nowhere.jsonl"]):
        assert ending(main, [*arguments, *wrong]) == 2
        [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert error.startswith("error: ")
