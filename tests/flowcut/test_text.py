"""What is asked about an image: the text tower, who hears the question, and one line where something is missing."""

import threading

import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from flowcut import CDPruner, TextTower, asked, attach
from flowcut.hooks.call_context import question_about
from flowcut.pruner import Question
from tests.flowcut.hosts import Clip, HFLlava, HFLlavaNext, Siglip
from tests.flowcut.seen import watch, write_clip

pytestmark = pytest.mark.usefixtures("no_gradients")


def test_one_piece_is_what_clip_says(whole_clip, tower):
    whole, tokenizer = CLIPModel.from_pretrained(whole_clip), AutoTokenizer.from_pretrained(whole_clip)
    for text in ("", "a", "a cat?"):
        expected = whole.get_text_features(**tokenizer(text, return_tensors="pt")).pooler_output
        assert torch.allclose(tower.embed(text), expected, atol=1e-5)


def test_long_texts_are_read_in_pieces(tower):
    text = "abcdefghij klmno"  # 15 letters; ten fit beside the two special tokens
    pieces = tower.embed(text)
    assert pieces.shape == (2, 16)
    assert torch.equal(pieces[:1], tower.embed("abcdefghij"))
    assert torch.equal(pieces[1:], tower.embed("klmno"))


def test_patches_are_projected_as_clip_projects_its_image(whole_clip, tower):
    whole = CLIPModel.from_pretrained(whole_clip)
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    end = whole.vision_model(images).last_hidden_state[:, 0]
    assert torch.allclose(tower.patches(end), whole.get_image_features(images).pooler_output, atol=1e-5)
    assert torch.equal(tower.patches(end, layer_norm=False), whole.visual_projection(end))


def test_cosines_of_every_image_with_its_own_text(tower):
    host = Clip()
    view = watch(host, host.build(), host.samples()[:3]).views[6]
    texts = ("a cat", "abcdefghij klmno", "")
    found = Question(texts, tower).cosines(view.visual(view.hidden), view.rows.groups)
    assert [len(row) for row in found] == [1, 2, 1]
    for row, text in enumerate(texts):
        for piece, words in enumerate(tower.embed(text)):
            for patch in (0, 17, 35):
                own = tower.patches(view.hidden[row, 1 + patch])
                expected = torch.nn.functional.cosine_similarity(own, words, dim=0)
                assert float(found[row][piece, patch]) == pytest.approx(float(expected), abs=1e-5)
    alike = Question(("a cat",), tower).cosines(view.visual(view.hidden), view.rows.groups)
    assert torch.equal(alike[0], found[0])
    assert len(alike) == 3


def test_tiles_of_an_image_hear_the_same_question(tower):
    host = HFLlavaNext()
    model, samples = host.build(), host.samples()[:2]  # images of 5, 3 and 3 tiles
    view = watch(host, model, samples).views[6]
    assert view.rows.groups == (0,) * 5 + (1,) * 3 + (2,) * 3
    apart = Question(("a", "b", "c"), tower).cosines(view.visual(view.hidden), view.rows.groups)
    for text, rows in (("a", range(5)), ("b", range(5, 8)), ("c", range(8, 11))):
        alike = Question((text,), tower).cosines(view.visual(view.hidden), view.rows.groups)
        assert all(torch.equal(apart[row], alike[row]) for row in rows)


def test_who_hears_the_question(tower):
    host = Clip()
    one, other = host.build(), host.build()
    heard = []
    with attach(one, CDPruner(10)) as handle, attach(other, CDPruner(10)) as stranger:
        assert question_about(handle) is None
        with asked(handle, "a", tower) as outer:
            thread = threading.Thread(target=lambda: heard.append(question_about(handle)))
            thread.start()
            thread.join()
            assert question_about(handle) is outer
            assert question_about(stranger) is None
            with asked(handle, ["b", "c"], tower):
                assert question_about(handle).texts == ("b", "c")
            assert question_about(handle) is outer
            with pytest.raises(RuntimeError), asked(handle, "d", tower):
                raise RuntimeError
            assert question_about(handle) is outer
        assert question_about(handle) is None
    assert heard == [None]


def test_first_lines(tower):
    question = Question(("\nWhat color?\nAnswer in a word.", "Which?"), tower).first_lines()
    assert question.texts == ("What color?", "Which?")
    assert question.tower is tower


def test_found_where_the_vision_tower_came_from(whole_clip, tmp_path):
    model = Clip().build()
    with pytest.raises(ValueError, match=r"no CLIP text tower is known .* name one with text_tower="):
        TextTower.find(model)
    model.config._name_or_path = str(whole_clip)
    expected = TextTower.load(str(whole_clip)).embed("a")
    assert torch.equal(TextTower.find(model).embed("a"), expected)
    for place in (tmp_path / "tower", tmp_path):  # in the vision tower's whole_clip, and next to it
        model.config._name_or_path = str(tmp_path / "tower")
        other = write_clip(place / "text_tower", seed=5)
        assert not torch.equal(TextTower.find(model).embed("a"), expected)
        assert torch.equal(TextTower.find(model, str(whole_clip)).embed("a"), expected)
        for file in other.iterdir():
            file.unlink()
        other.rmdir()


def test_what_is_no_text_tower(whole_clip, tmp_path, clip_folder):
    model = Clip().build()
    model.config._name_or_path = str(clip_folder)  # the vision half alone
    with pytest.raises(
        ValueError, match=r"has a clip_vision_model, not a complete CLIP; .*; name a complete CLIP with"
    ):
        TextTower.find(model)
    with pytest.raises(ValueError, match=r"no CLIP text tower at \S*nowhere") as error:
        TextTower.load(str(tmp_path / "nowhere"))
    assert "\n" not in str(error.value)
    half = tmp_path / "half"
    CLIPModel.from_pretrained(whole_clip).vision_model.save_pretrained(half)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (half / name).write_text((whole_clip / name).read_text())
    with pytest.raises(ValueError, match="lacks weights, such as logit_scale"):
        TextTower.load(str(half))


def test_mistakes_are_told_in_one_line(tower, tmp_path):
    host, siglip = Clip(), Siglip()
    model = host.build()
    with attach(model, CDPruner(10)) as handle:
        with pytest.raises(ValueError, match=r"CDPruner needs the question: .* or set condition=False"):
            host.outputs(model, host.samples())
        with asked(handle, ["a", "b"], tower), pytest.raises(ValueError, match="2 texts for 4 images; give one for"):
            host.outputs(model, host.samples())
        with pytest.raises(ValueError, match="no text was given"), asked(handle, [], tower):
            pass
        narrow = TextTower.load(str(write_clip(tmp_path, hidden_size=16)))
        with asked(handle, "a", narrow), pytest.raises(ValueError, match="tokens have 32 entries, the text tower's 16"):
            host.outputs(model, host.samples())
        handle.budget = 36  # nothing to choose, so nothing has to be asked
        host.outputs(model, host.samples())
    with attach(siglip.build(), CDPruner(10, condition=False)) as handle:
        siglip.outputs(handle.anatomy.encoders[0].model, siglip.samples())
    assert handle.trace.final[0].shape == (10,)


def test_generation_with_a_question(tower):
    """Asked once around generate(); the images are encoded in its first forward."""
    host = HFLlava()
    model, kept = host.build(), {}
    for text in ("what color", "xyz"):
        with attach(model, CDPruner(10)) as handle, asked(handle, text, tower):
            host.generate(model, host.samples()[:1])
        kept[text] = handle.trace.final[0].tolist()
    assert kept["what color"] != kept["xyz"]
