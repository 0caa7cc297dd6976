"""Pre-training of the embedded model: the two stages learn, resume, and speak LLaVA's format."""

import json

import numpy as np
import pytest
import torch
from transformers import CLIPVisionModel

from llava.constants import IGNORE_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import tokenizer_image_token
from scripts.embedded import align_projector, pretrain_language, pretrain_vision
from scripts.embedded.questions import ask
from scripts.embedded.scenes import compose
from scripts.embedded.tokenizer import build


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build(tmp_path_factory.mktemp("tokenizer"))


def test_every_word_is_one_piece(tokenizer):
    text = (
        "Is the red star to the left of the cyan diamond? USER: ASSISTANT: checkered Answer the question using a single"
    )
    pieces = tokenizer.tokenize(text)
    assert [p for p in pieces if p.startswith("▁")] == ["▁" + w.rstrip("?:") for w in text.split()]
    assert tokenizer("red")["input_ids"][0] == tokenizer.bos_token_id == 1


def test_a_pretraining_sequence_is_llavas_prompt(tokenizer):
    """The ids around the visual tokens are exactly what LLaVA's own prompt code makes of the same dialogue."""
    rng = np.random.default_rng(3)
    head, facts, tail, labels, kinds = pretrain_language.make_sequence(tokenizer, rng, 3, 1.0)
    rng = np.random.default_rng(3)
    scene = compose(rng)
    pretrain_language.some_patches(scene, rng, 1.0)
    rng.random()
    questions = ask(scene, rng, 3, pretrain_language.LESSONS)
    conversation = conv_templates["v1"].copy()
    for number, question in enumerate(questions):
        conversation.append_message("USER", ("<image>\n" if number == 0 else "") + question.text)
        conversation.append_message("ASSISTANT", question.answer)
    ids = tokenizer_image_token(conversation.get_prompt(), tokenizer)
    cut = ids.index(-200)
    assert head == ids[:cut]
    assert tail == ids[cut + 1 :]
    assert [q.kind for q in questions] == kinds
    answers = [t for t in labels if t != IGNORE_INDEX]
    expected = [t for q in questions for t in [*tokenizer(q.answer, add_special_tokens=False)["input_ids"], 2]]
    assert answers == expected
    assert 20 < len(facts) < 576


def test_window_forward_is_the_models_own_forward():
    """On a full picture, the pre-training forward gives the features and pooled output of CLIPVisionModel."""
    torch.manual_seed(0)
    model = pretrain_vision.Pretrainer().eval()
    batch = pretrain_vision.make_batch(np.random.default_rng(0), 2, 24)
    with torch.inference_mode():
        pooled, patches = model(batch["pixels"], batch["positions"])
        output = model.tower(batch["pixels"], output_hidden_states=True)
    assert torch.allclose(patches, output.hidden_states[-2][:, 1:], atol=1e-5)
    assert torch.allclose(pooled, output.pooler_output, atol=1e-5)


def test_a_perfect_model_has_no_loss_on_its_labels():
    """Heads that say the truth leave only the regularising floor: labels and loss speak of the same classes."""
    batch = pretrain_vision.make_batch(np.random.default_rng(1), 2, 12)
    assert batch["pixels"].shape == (2, 3, 168, 168)
    assert batch["positions"].shape == (2, 144)
    assert (batch["positions"].diff(dim=1) > 0).all()

    class Oracle(pretrain_vision.Pretrainer):
        def forward(self, pixels, positions):
            return batch["words"], batch["shape"][..., None].float()

    oracle = Oracle()
    oracle.words = torch.nn.Module()
    oracle.words.forward = lambda cls: (cls * 2 - 1) * 50
    one_hot = torch.nn.functional.one_hot
    for name, classes in (("colour", 8), ("shape", 19)):
        head = torch.nn.Module()
        head.forward = lambda _, name=name, classes=classes: one_hot(batch[name], classes).float() * 50
        setattr(oracle, name, head)
    oracle.pattern = torch.nn.Module()
    oracle.pattern.forward = lambda p: one_hot(batch["pattern"], 4)[:, None].expand(-1, p.shape[1], -1).float() * 50
    oracle.place = torch.nn.Module()
    oracle.place.forward = lambda _: batch["place"]
    total, figures = pretrain_vision.losses(oracle, batch)
    assert total.item() < 1e-6
    assert figures["shape"] == figures["colour"] == figures["pair_recall"] == 1.0


def test_vision_pretraining_resumes_to_the_same_weights(tmp_path):
    flags = ["--window-steps", "3", "--full-steps", "1", "--batch", "2", "--full-batch", "1"]
    pretrain_vision.main(["--out", str(tmp_path / "whole"), *flags])
    broken = tmp_path / "broken"
    original = torch.optim.AdamW.step
    calls = []

    def step_and_stop(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    torch.optim.AdamW.step = step_and_stop
    try:
        with pytest.raises(SystemExit, match="130"):
            pretrain_vision.main(["--out", str(broken), *flags, "--save-every", "1"])
    finally:
        torch.optim.AdamW.step = original
    pretrain_vision.main(["--out", str(broken), *flags])
    one, other = (CLIPVisionModel.from_pretrained(tmp_path / name / "tower") for name in ("whole", "broken"))
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name
    assert json.loads((broken / "log.jsonl").read_text().splitlines()[-1])["step"] == 3


def test_language_pretraining_and_alignment(tmp_path):
    language, vision = tmp_path / "language", tmp_path / "vision"
    pretrain_language.main(
        ["--out", str(language), "--lesson-steps", "1", "--steps", "2", "--batch", "2", "--questions", "2"]
    )
    assert (language / "language" / "tokenizer.model").exists()
    pretrain_vision.Pretrainer().tower.save_pretrained(vision)
    out = tmp_path / "aligned" / "mm_projector.bin"
    argv = ["--tower", str(vision), "--facts", str(language / "embed_facts.pt"), "--out", str(out)]
    align_projector.main([*argv, "--scenes", "2", "--steps", "3", "--batch", "16"])
    weights = torch.load(out, weights_only=True)
    assert {k: tuple(v.shape) for k, v in weights.items()} == {
        "model.mm_projector.0.weight": (192, 160),
        "model.mm_projector.0.bias": (192,),
        "model.mm_projector.2.weight": (192, 192),
        "model.mm_projector.2.bias": (192,),
    }
