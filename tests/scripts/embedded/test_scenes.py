"""Scenes, labels and questions: what is asked must be true of what is drawn."""

import json
import re
from collections import Counter

import numpy as np
import pytest

from scripts.embedded import data
from scripts.embedded.questions import MAKERS, NUMBERS, PLURAL, ask, caption
from scripts.embedded.scenes import COLOUR_NAMES, COLOURS, PATCH, SHAPES, compose, draw, label_patches
from scripts.embedded.symbols import FACTS, facts_of


@pytest.fixture(scope="module")
def scenes():
    return [compose(np.random.default_rng((99, n))) for n in range(60)]


def test_a_seed_is_a_picture(scenes):
    again = compose(np.random.default_rng((99, 0)))
    assert again == scenes[0]
    picture = draw(scenes[0])
    assert picture.shape == (336, 336, 3)
    assert np.array_equal(picture, draw(again))
    assert not np.array_equal(picture, draw(scenes[1]))


def test_things_do_not_overlap_and_stay_inside(scenes):
    for scene in scenes:
        for number, thing in enumerate(scene.things):
            assert thing.radius < thing.x < 336 - thing.radius
            for other in scene.things[:number]:
                assert np.hypot(thing.x - other.x, thing.y - other.y) > thing.radius + other.radius


def test_labels_name_the_colour_that_is_there(scenes):
    """Patches wholly inside a thing show its paint: the nearest of the named colours is the labelled one."""
    palette = np.array(list(COLOURS.values()), np.float32)
    checked = 0
    for scene in scenes[:12]:
        patches = draw(scene).reshape(24, PATCH, 24, PATCH, 3).swapaxes(1, 2).reshape(576, -1, 3).mean(1)
        labels = label_patches(scene)
        for patch in np.flatnonzero((labels.covered == 1) & (labels.colour > 0)):
            nearest = ((palette - patches[patch]) ** 2).sum(1).argmin()
            assert nearest == labels.colour[patch] - 1
            checked += 1
    assert checked > 100


def test_coarse_labels_agree_with_fine_ones(scenes):
    for scene in scenes[:10]:
        coarse, fine = label_patches(scene, 4), label_patches(scene, 28)
        assert np.abs(coarse.covered - fine.covered).max() < 0.2
        sure = fine.covered > 0.5
        assert np.array_equal(coarse.shape[sure], fine.shape[sure])


def test_objects_cover_a_minority_of_the_patches(scenes):
    """Tokens must matter: a random eighth of 576 has to miss things, and 64 tokens must not hold every object."""
    touched = np.mean([(label_patches(scene).covered > 0).sum() for scene in scenes])
    assert 80 <= touched <= 150


def _truth(scene, text):
    """The answer to a question, worked out from its words alone."""
    objects = scene.objects

    def refer(phrase):
        words = phrase.removeprefix("the ").split()
        colour = next((w for w in words if w in COLOUR_NAMES), None)
        shape = next((w for w in words if w in SHAPES), None)
        (found,) = [o for o in objects if colour in (None, o.colour) and shape in (None, o.shape)]
        return found

    if match := re.fullmatch(r"Is there an? (\w+) (\w+) in the image\?", text):
        return "yes" if any((o.colour, o.shape) == match.groups() for o in objects) else "no"
    if match := re.fullmatch(r"What color is (the \w+)\?", text):
        return refer(match[1]).colour
    if match := re.fullmatch(r"What shape is (the \w+ object)\?", text):
        return refer(match[1]).shape
    if match := re.fullmatch(r"Where is (.+)\?", text):
        thing = refer(match[1])
        return f"{'top' if thing.y < 168 else 'bottom'} {'left' if thing.x < 168 else 'right'}"
    if match := re.fullmatch(r"Is (.+) (above|to the left of) (.+)\?", text):
        one, other = refer(match[1]), refer(match[3])
        return "yes" if (one.y < other.y if match[2] == "above" else one.x < other.x) else "no"
    if match := re.fullmatch(r"How many (\w+) objects are there\?", text):
        return NUMBERS[Counter(o.colour for o in objects)[match[1]]]
    if match := re.fullmatch(r"How many (\w+) are there\?", text):
        singular = {plural: shape for shape, plural in PLURAL.items()}
        return NUMBERS[Counter(o.shape for o in objects)[singular[match[1]]]]
    if text == "Which letter is shown?":
        return scene.letter.letter
    assert text == "What is the pattern of the background?"
    return scene.pattern


def test_every_answer_is_true(scenes):
    kinds = Counter()
    for number, scene in enumerate(scenes):
        for question in ask(scene, np.random.default_rng(number), 8):
            assert question.answer == _truth(scene, question.text)
            kinds[question.kind] += 1
    assert set(kinds) == set(MAKERS)


def test_yes_and_no_are_even(scenes):
    rng = np.random.default_rng(0)
    for kind in ("exist", "relation"):
        answers = [q.answer for scene in scenes for q in ask(scene, rng, 6, (kind,))]
        assert 0.4 < np.mean([a == "yes" for a in answers]) < 0.6


def test_caption_names_everything(scenes):
    for scene in scenes:
        text = caption(scene)
        for thing in scene.objects:
            assert f"{thing.colour} {thing.shape}" in text
        assert scene.pattern in text


def test_facts_are_those_of_the_labels(scenes):
    labels = label_patches(scenes[0])
    facts = facts_of(labels, scenes[0].pattern)
    assert facts.shape == (576, FACTS)
    named = labels.covered >= 0.2
    assert np.array_equal(facts[:, :8].argmax(1).numpy(), labels.colour * named)
    assert np.array_equal(facts[:, 8 + 19 : 8 + 19 + 4].sum(1).numpy(), (~named).astype(np.float32))


def test_data_files(tmp_path):
    data.main(["--out", str(tmp_path / "test"), "--split", "test", "--scenes", "3", "--questions", "4"])
    questions, blind, answers = (
        [json.loads(line) for line in (tmp_path / "test" / f"{name}.jsonl").open()]
        for name in ("questions", "blind", "answers")
    )
    assert len(questions) == 12
    assert (
        [q["question_id"] for q in questions]
        == [a["question_id"] for a in answers]
        == [b["question_id"] for b in blind]
    )
    assert all(q["text"] == b["text"] and q["image"] != b["image"] for q, b in zip(questions, blind, strict=True))
    assert len(list((tmp_path / "test" / "images").glob("*.png"))) == 3

    data.main(["--out", str(tmp_path / "train"), "--split", "train", "--scenes", "2", "--questions", "5"])
    dialogues = json.loads((tmp_path / "train" / "finetune.json").read_text())
    assert [turn["from"] for turn in dialogues[0]["conversations"]] == ["human", "gpt"] * 5
    assert dialogues[0]["conversations"][0]["value"].startswith("<image>\n")
    captions = json.loads((tmp_path / "train" / "pretrain.json").read_text())
    assert captions[1]["image"] == dialogues[1]["image"]


def test_splits_differ():
    scenes = [data.scene_at(split, 0)[0] for split in data.SPLIT_SEEDS]
    assert len(set(scenes)) == len(scenes)


def test_unknown_kind_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        data.main(["--out", str(tmp_path), "--kinds", "exist,smell"])
    assert stop.value.code == 2
    assert "smell" in capsys.readouterr().err
