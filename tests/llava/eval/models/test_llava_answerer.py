"""Prompting, generating, decoding: batches against single questions and against the model driven by hand."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from flowcut import FlowCut, attach, parse_pruner
from llava.conversation import conv_templates
from llava.eval.models.llava_answerer import LlavaAnswerer
from llava.eval.models.llava_checkpoint import load_checkpoint
from llava.eval.models.reply import Generation
from llava.mm_utils import process_images, tokenizer_image_token

TEXTS = ["what is in this image", "how many cats", "two", "hello world two cats in this image?"]
PRUNERS = ("none", "fastervlm:budget=5", "random:budget=3", "flowcut:budget=5,last_layer=-2")


def pictures(count: int = 4) -> list[Image.Image]:
    rng = np.random.default_rng(1)
    sizes = [(56, 30 + 25 * number, 3) for number in range(count)]
    return [Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)) for size in sizes]


@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_question_in_a_batch_is_answered_as_alone(checkpoint, pruner):
    answerer = LlavaAnswerer(checkpoint, pruner, Generation(max_new_tokens=6))
    together = answerer(TEXTS, [[picture] for picture in pictures()])
    for text, picture, reply in zip(TEXTS, pictures(), together, strict=True):
        [alone] = answerer([text], [[picture]])
        assert reply.text == alone.text
        assert (reply.tokens, reply.visual_tokens, reply.text_tokens) == (
            alone.tokens,
            alone.visual_tokens,
            alone.text_tokens,
        )
    assert len({reply.text for reply in together}) > 1, "answers that never differ would prove nothing"


def test_the_answer_is_the_greedy_continuation(checkpoint):
    """Against full forward passes without cache, one token at a time."""
    model, tokenizer, [picture] = checkpoint.model, checkpoint.tokenizer, pictures(1)
    [reply] = LlavaAnswerer(checkpoint, generation=Generation(max_new_tokens=4))([TEXTS[0]], [[picture]])
    conversation = conv_templates[checkpoint.mode].copy()
    conversation.append_message(conversation.roles[0], "<image>\n" + TEXTS[0])
    conversation.append_message(conversation.roles[1], None)
    ids = tokenizer_image_token(conversation.get_prompt(), tokenizer)
    pixels = process_images([picture], checkpoint.image_processor, model.config)
    said: list[int] = []
    with torch.no_grad():
        while len(said) < 4 and tokenizer.eos_token_id not in said:
            said.append(int(model(torch.tensor([ids + said]), images=pixels).logits[0, -1].argmax()))
    assert reply.text == tokenizer.decode(said, skip_special_tokens=True).strip()
    assert reply.text_tokens == len(ids) - 1


@pytest.mark.parametrize(
    ("pruner", "tokens"),
    [("none", [16, 16]), ("fastervlm:budget=5", [16, 5]), ("flowcut:budget=5,last_layer=-2", [16, 5])],
)
def test_tokens_are_counted_and_the_model_is_given_back(checkpoint, pruner, tokens):
    encoder = checkpoint.model.get_vision_tower().vision_tower
    before = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in checkpoint.model.modules()]
    implementation = encoder.config._attn_implementation
    [reply] = LlavaAnswerer(checkpoint, pruner, Generation(max_new_tokens=2))(TEXTS[:1], [pictures(1)])
    assert (reply.tokens, reply.visual_tokens) == (tokens, tokens[-1])
    assert reply.ms > reply.encode_ms + reply.prefill_ms > 0
    assert encoder.config._attn_implementation == implementation
    assert before == [
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in checkpoint.model.modules()
    ]


def test_beams_count_as_one_question(checkpoint):
    answerer = LlavaAnswerer(checkpoint, "fastervlm:budget=5", Generation(num_beams=2, max_new_tokens=3))
    replies = answerer(TEXTS[:2], [[picture] for picture in pictures(2)])
    assert [reply.visual_tokens for reply in replies] == [5, 5]


def test_several_pictures_in_one_question(checkpoint):
    answerer = LlavaAnswerer(checkpoint, "fastervlm:budget=5", Generation(max_new_tokens=3))
    both, one = answerer([TEXTS[0], TEXTS[1]], [pictures(2), pictures(1)])
    assert (both.tokens, both.visual_tokens) == ([32, 10], 10)
    assert (one.tokens, one.visual_tokens) == ([16, 5], 5)


def test_prompts(checkpoint, monkeypatch):
    answerer = LlavaAnswerer(checkpoint._replace(mode="vicuna_v1"))
    assert answerer.prompt("why?").endswith("questions. USER: <image>\nwhy? ASSISTANT:")
    assert answerer.prompt("a <image-placeholder> b").endswith("USER: a <image> b ASSISTANT:")
    assert answerer.prompt("why?", images=2).endswith("USER: <image>\n<image>\nwhy? ASSISTANT:")
    monkeypatch.setattr(checkpoint.model.config, "mm_use_im_start_end", True, raising=False)
    assert answerer.prompt("why?").endswith("USER: <im_start><image><im_end>\nwhy? ASSISTANT:")


def test_template_comes_from_flag_then_checkpoint_then_default(llava_folder, tmp_path):
    folder = str(llava_folder)  # named tiny-llava-v1.5, so "llava_v1" by name
    assert load_checkpoint(folder, device="cpu").mode == "llava_v1"
    assert load_checkpoint(folder, device="cpu", default_mode="plain").mode == "plain"
    own = shutil.copytree(llava_folder, tmp_path / "own")
    fields = json.loads((own / "config.json").read_text()) | {"conv_version": "v1"}
    (own / "config.json").write_text(json.dumps(fields))
    assert load_checkpoint(str(own), device="cpu", default_mode="plain").mode == "v1"
    assert load_checkpoint(str(own), device="cpu", conv_mode="mpt").mode == "mpt"


def test_a_pruner_that_does_not_fit_is_refused_at_once(checkpoint):
    with pytest.raises(ValueError, match="unknown pruner"):
        LlavaAnswerer(checkpoint, "flowcat:budget=5")
    with pytest.raises(ValueError, match="last_layer=-3 is not in this encoder"):
        LlavaAnswerer(checkpoint, "flowcut:budget=5")
    with (
        attach(checkpoint.model, FlowCut(budget=5, last_layer=-2)),
        pytest.raises(ValueError, match="already has a pruner"),
    ):
        LlavaAnswerer(checkpoint, "flowcut:budget=5")


@pytest.fixture
def trained(checkpoint, monkeypatch):
    """The checkpoint, as if it had been trained with five tokens."""
    field = {"method": "flowcut", "budget": 5, "last_layer": -2}
    monkeypatch.setattr(checkpoint.model.config, "flowcut", field, raising=False)
    return checkpoint


@pytest.mark.parametrize(
    ("asked", "used", "visual", "warning"),
    [
        (None, "flowcut:budget=5,last_layer=-2", 5, "runs with it; --pruner none turns that off"),
        ("none", "none", 16, "but runs with all visual tokens (none)"),
        ("flowcut:budget=5,last_layer=-2", "flowcut:budget=5,last_layer=-2", 5, None),
        ("flowcut:budget=3,last_layer=-2", "flowcut:budget=3,last_layer=-2", 3, "but runs with flowcut:budget=3"),
        ("fastervlm:budget=5", "fastervlm:budget=5", 5, "but runs with fastervlm:budget=5"),
    ],
)
def test_the_checkpoints_own_pruner_unless_told_otherwise(trained, caplog, asked, used, visual, warning):
    answerer = LlavaAnswerer(trained, asked, Generation(max_new_tokens=1))
    [reply] = answerer(TEXTS[:1], [pictures(1)])
    assert (answerer.pruner_text, reply.visual_tokens) == (used, visual)
    assert answerer.settings()["pruner"] == (repr(parse_pruner(used)) if used != "none" else "none")
    said = [record.getMessage() for record in caplog.records if record.name == "llava.model.remembered_pruner"]
    assert len(said) == (warning is not None)
    if warning:
        assert said[0].startswith(f"{trained.name} was trained with flowcut:budget=5,last_layer=-2 ")
        assert warning in said[0]


def test_a_checkpoint_is_loaded_without_its_pruner(llava_folder, tmp_path, caplog):
    folder = shutil.copytree(llava_folder, tmp_path / "own")
    fields = json.loads((folder / "config.json").read_text()) | {"flowcut": {"budget": 5, "last_layer": -2}}
    (folder / "config.json").write_text(json.dumps(fields))
    loaded = load_checkpoint(str(folder), device="cpu")
    assert not [record for record in caplog.records if record.name == "llava.model.remembered_pruner"]
    assert LlavaAnswerer(loaded).pruner == FlowCut(budget=5, last_layer=-2)
    attach(loaded.model, FlowCut(budget=3, last_layer=-2)).remove()


def test_a_model_without_eyes_is_refused(llama_folder):
    with pytest.raises(ValueError, match="without vision tower"):
        load_checkpoint(str(llama_folder), device="cpu")


def test_tokens_inside_the_language_model_are_counted(checkpoint):
    """Two pictures, then one: FastV's first layer reads all their tokens, the second what was kept."""
    answerer = LlavaAnswerer(checkpoint, "fastv:budget=10,layer=1", Generation(max_new_tokens=2))
    both, one = answerer([TEXTS[0], TEXTS[1]], [pictures(2), pictures(1)])
    assert (both.language_tokens, one.language_tokens) == ([32, 8], [16, 4])
    assert one.metadata()["language_tokens"] == [16, 4]
    [plain] = LlavaAnswerer(checkpoint, "none", Generation(max_new_tokens=2))(TEXTS[:1], [pictures(1)])
    assert "language_tokens" not in plain.metadata()
