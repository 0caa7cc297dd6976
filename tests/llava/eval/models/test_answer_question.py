"""Pruners that choose by the question are told each picture's own."""

import shutil

import numpy as np
import pytest
from PIL import Image

from flowcut import CDPruner, TextTower, asked, attach
from llava.eval.models.hf_answerer import HFAnswerer
from llava.eval.models.hf_checkpoint import load_hf_checkpoint
from llava.eval.models.llava_answerer import LlavaAnswerer
from llava.eval.models.llava_checkpoint import load_checkpoint
from llava.eval.models.reply import Generation
from tests.flowcut.seen import write_clip
from tests.llava.eval.models.tiny import write_tiny_checkpoint

TEXTS = ["red", "how many cats", "zzz"]


@pytest.fixture(scope="module")
def whole_clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("whole-clip"))


def pictures(count):
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 255, (56, 40 + 25 * n, 3), dtype=np.uint8)) for n in range(count)]


@pytest.fixture
def kept(monkeypatch):
    """For each forward what was asked and what was kept, as the pruner itself saw it."""
    traces = []
    original = CDPruner.vision

    def watched(self, view):
        cut = original(self, view)
        if cut is not None:
            traces.append((view.question.texts, [row.tolist() for row in cut.keep]))
        return cut

    monkeypatch.setattr(CDPruner, "vision", watched)
    return traces


def test_each_picture_has_its_questions_text(checkpoint, whole_clip, kept):
    answerer = LlavaAnswerer(checkpoint, f"cdpruner:budget=5,text_tower={whole_clip}", Generation(max_new_tokens=3))
    shown = pictures(4)
    own = [shown[:1], shown[1:3], shown[3:]]
    together = answerer(TEXTS, own)
    assert kept[0][0] == ("red", "how many cats", "how many cats", "zzz")
    rows = []
    for text, images, reply in zip(TEXTS, own, together, strict=True):
        [alone] = answerer([text], [images])
        assert alone.text == reply.text
        assert reply.visual_tokens == 5 * len(images)
        rows += kept[-1][1]
    assert rows == kept[0][1]
    [reply] = answerer(["how many <image-placeholder>?"], [[shown[0]]])
    assert kept[-1][0] == ("how many  ?",)
    [text_alone] = answerer(["how many?"], [[]])
    assert text_alone.visual_tokens == 0


def test_it_is_what_asking_by_hand_gives(checkpoint, whole_clip, kept):
    pruner = CDPruner(5, text_tower=str(whole_clip))
    LlavaAnswerer(checkpoint, f"cdpruner:budget=5,text_tower={whole_clip}", Generation(max_new_tokens=1))(
        ["red"], [pictures(1)]
    )
    tower = TextTower.find(checkpoint.model, str(whole_clip))
    with attach(checkpoint.model, pruner) as handle, asked(handle, "red", tower):
        checkpoint.model.get_vision_tower()(checkpoint.pixels(pictures(1)))
    assert kept[0][1] == kept[1][1]


def test_transformers_own_classes(whole_clip, tmp_path, kept):
    loaded = load_hf_checkpoint(str(write_tiny_checkpoint(tmp_path / "host", "llava_hf")), device="cpu")
    pruner = f"cdpruner:budget=5,text_tower={whole_clip}"
    replies = HFAnswerer(loaded, pruner, Generation(max_new_tokens=2))(TEXTS, [[one] for one in pictures(3)])
    assert kept[0][0] == tuple(TEXTS)
    assert [reply.visual_tokens for reply in replies] == [5, 5, 5]


def test_a_text_tower_in_the_checkpoint_is_found(llava_folder, tmp_path):
    """Where the checkpoint brings its own vision tower, too."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(llava_folder, folder)
    write_clip(folder / "text_tower")
    answerer = LlavaAnswerer(
        load_checkpoint(str(folder), device="cpu"), "cdpruner:budget=5", Generation(max_new_tokens=1)
    )
    [reply] = answerer(["red"], [pictures(1)])
    assert reply.visual_tokens == 5


def test_a_missing_text_tower_is_told_at_once(checkpoint):
    with pytest.raises(ValueError, match=r"text_tower=") as error:
        LlavaAnswerer(checkpoint, "cdpruner:budget=5")
    assert "\n" not in str(error.value)
    assert LlavaAnswerer(checkpoint, "cdpruner:budget=5,condition=false").text_tower is None
    assert LlavaAnswerer(checkpoint, "flowcut:budget=5,last_layer=-2").text_tower is None
