"""transformers' own models answer: batches as single questions, inputs as made by other code, costs as counted."""

import shutil
from threading import Thread

import pytest
import torch
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, TextIteratorStreamer, pipeline

from flowcut import attach, parse_pruner
from llava.eval.models.hf_answerer import HFAnswerer
from llava.eval.models.hf_checkpoint import load_hf_checkpoint
from llava.eval.models.reply import Generation
from tests.llava.eval.models.tiny import FAMILIES, QWEN, VIDEO_FAMILIES, pictures

pytest.importorskip("av", reason="videos need PyAV: pip install av")

TEXTS = ["what is in this image", "how many cats", "two", "hello red star"]


def shown(family, video):
    """A picture, a video, both, nothing; pictures where the family takes no videos."""
    one, two, three, four = pictures(4)
    return [[one], [video], [video, two], []] if family in VIDEO_FAMILIES else [[one], [two], [three, four], []]


def costs(reply):
    return reply.tokens, reply.visual_tokens, reply.text_tokens, reply.language_tokens


@pytest.mark.parametrize("pruner", ["none", "flowcut:budget=6", "random:budget=3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_question_in_a_batch_is_answered_as_alone(answerer, video, family, pruner):
    answer = answerer(family, pruner)
    together = answer(TEXTS, shown(family, video))
    for text, own, reply in zip(TEXTS, shown(family, video), together, strict=True):
        [alone] = answer([text], [own])
        assert (reply.text, costs(reply)) == (alone.text, costs(alone))
    assert len({reply.text for reply in together}) > 1, "answers that never differ would prove nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_without_a_pruner_are_those_of_one_that_drops_nothing(answerer, video, family):
    """Without one they are counted from what goes in, with one the trace tells."""
    plain, watched = (answerer(family, pruner)(TEXTS, shown(family, video)) for pruner in ("none", "random:budget=999"))
    for bare, seen in zip(plain, watched, strict=True):
        assert (bare.text, costs(bare)[:3]) == (seen.text, costs(seen)[:3])


@pytest.mark.parametrize(
    ("family", "size", "tiles"),
    [("internvl", (24, 24), 1), ("internvl", (48, 24), 3), ("idefics3", (48, 24), 3), ("idefics3", (48, 48), 5)],
)
def test_tiles_of_a_picture_share_a_budget(answerer, family, size, tiles):
    """36 tokens a tile, of 4 patches each."""
    [picture] = pictures(1)
    shown = [[picture.resize(size)]]
    [bare] = answerer(family)(["two"], shown)
    [reply] = answerer(family, "vispruner:budget=6")(["two"], shown)
    assert (bare.tokens[0], bare.visual_tokens, reply.visual_tokens) == (144 * tiles, 36 * tiles, 6)


def test_video_llava_keeps_a_cls_token_for_each_frame(answerer, video):
    """3 frames x (36 + 1); of pruned ones the CLS token counts in the budget."""
    [reply] = answerer("video_llava")(["two"], [[video]])
    assert (reply.tokens[0], reply.visual_tokens) == (3 * 36, 3 * 37)
    [reply] = answerer("video_llava", "flowcut:budget=6")(["two"], [[video]])
    assert (reply.tokens[-1], reply.visual_tokens) == (3 * 5, 3 * 6)


@pytest.mark.parametrize("family", ["llava_hf", "llava_next_hf", "idefics3", "gemma3"])
def test_answers_are_those_of_transformers_own_processor(hf_checkpoint, hf_folder, answerer, family):
    """Plain AutoProcessor and generate; not so with the checkpoint's repetition penalty, which does not count."""
    model, [_, picture] = hf_checkpoint(family).model, pictures(2)
    processor = AutoProcessor.from_pretrained(hf_folder(family), backend="pil")
    content = [{"type": "image"}, {"type": "text", "text": TEXTS[0]}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[picture], text=[prompt], return_tensors="pt")
    greedy = {"do_sample": False, "max_new_tokens": 6, "suppress_tokens": [98, 99]}
    said, penalised = (
        processor.decode(
            model.generate(**inputs, repetition_penalty=penalty, **greedy)[0, inputs["input_ids"].shape[1] :],
            skip_special_tokens=True,
        )
        for penalty in (1.0, 1.7)
    )
    [reply] = answerer(family)([TEXTS[0]], [[picture]])
    assert reply.text == said.strip()
    assert family != "llava_hf" or said != penalised


@pytest.mark.parametrize("family", QWEN)
def test_qwen_answers_are_those_of_inputs_made_by_hand(hf_checkpoint, hf_folder, answerer, family):
    model, [_, _, picture] = hf_checkpoint(family).model, pictures(3)
    images = AutoImageProcessor.from_pretrained(hf_folder(family), backend="pil")([picture], return_tensors="pt")
    tokenizer = AutoTokenizer.from_pretrained(hf_folder(family))
    tokens = int(images["image_grid_thw"].prod()) // 4
    pads = "<|image_pad|>" * tokens
    prompt = f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>{TEXTS[1]}<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == 99).long(),
        pixel_values=images["pixel_values"],
        image_grid_thw=images["image_grid_thw"],
        do_sample=False,
        max_new_tokens=6,
        suppress_tokens=[98, 99],
        repetition_penalty=1.0,
    )
    [reply] = answerer(family)([TEXTS[1]], [[picture]])
    assert reply.text == tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert (reply.visual_tokens, reply.text_tokens) == (tokens, ids.shape[1] - tokens)


def test_times_and_the_model_given_back(hf_checkpoint, answerer, video):
    model = hf_checkpoint("video_llava").model
    answerer("video_llava")(["one"], [[video]])  # at its first forward transformers puts hooks of its own in
    before = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    [reply] = answerer("video_llava", "flowcut:budget=6")(["two"], [[video]])
    assert reply.ms > reply.encode_ms + reply.prefill_ms
    assert min(reply.encode_ms, reply.prefill_ms) > 0
    assert before == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def test_times_are_those_of_the_parts(hf_checkpoint, answerer, video, monkeypatch):
    """A clock that the parts themselves move: the tower by 100 ms, each pass of the decoder by 10."""
    model, clock = hf_checkpoint("video_llava").model, [0.0]
    monkeypatch.setattr("llava.eval.models.stopwatch.perf_counter", lambda: clock[0])

    def moves(seconds):
        return lambda *_: clock.__setitem__(0, clock[0] + seconds)

    hooks = [
        model.model.video_tower.register_forward_hook(moves(0.1)),
        model.model.language_model.layers[0].register_forward_hook(moves(0.01)),
    ]
    try:
        [reply] = answerer("video_llava", max_new_tokens=3)(["two"], [[video]])
    finally:
        for hook in hooks:
            hook.remove()
    assert reply.encode_ms == pytest.approx(100)
    assert reply.prefill_ms == pytest.approx(10)
    assert reply.ms == pytest.approx(130)


def test_beams_count_as_one_question(answerer, video):
    one, two, _ = pictures(3)
    questions = TEXTS[:3], [[one, video], [], [two]]
    beams = answerer("video_llava", "random:budget=5", num_beams=2)(*questions)
    greedy = answerer("video_llava", "random:budget=5")(*questions)
    assert [costs(reply)[:3] for reply in beams] == [costs(reply)[:3] for reply in greedy]


def test_prompts(hf_checkpoint, answerer):
    answer = answerer("video_llava")
    assert answer.prompt("why?") == "USER: <image>\nwhy? ASSISTANT:"
    assert answer.prompt("why?", videos=[True, False]) == "USER: <video>\n<image>\nwhy? ASSISTANT:"
    assert answer.prompt("a<image-placeholder>b") == "USER: a<image>\nb ASSISTANT:"
    old = HFAnswerer(hf_checkpoint("video_llava")._replace(mode="llava_v1"))
    assert old.prompt("why?", videos=[True]).endswith("questions. USER: <video>\nwhy? ASSISTANT:")
    assert old.prompt("a <image-placeholder> b").endswith("USER: a <image> b ASSISTANT:")
    with pytest.raises(ValueError, match="<image-placeholder> 2 times for 1 pictures"):
        answer.prompt("<image-placeholder><image-placeholder>")


def test_a_placeholder_in_the_text_is_refused(answerer):
    with pytest.raises(ValueError, match="has <image> 2 times for 1 pictures; leave <image> out"):
        answerer("llava_hf")(["what <image>"], [pictures(1)])


def test_a_checkpoints_own_pruner_is_followed(hf_folder, tmp_path, answerer, video):
    folder = shutil.copytree(hf_folder("video_llava"), tmp_path / "trained")
    model = load_hf_checkpoint(str(folder), device="cpu").model
    model.config.flowcut = {"method": "flowcut", "budget": 6}
    model.config.save_pretrained(folder)
    checkpoint = load_hf_checkpoint(str(folder), device="cpu", frames=3)
    trained = HFAnswerer(checkpoint, None, Generation(max_new_tokens=6))
    assert trained.pruner_text == "flowcut:budget=6"
    assert trained.pruner == parse_pruner("flowcut:budget=6")
    [reply] = trained(["two"], [[video]])
    assert costs(reply) == costs(answerer("video_llava", "flowcut:budget=6")(["two"], [[video]])[0])


def test_a_pruner_that_does_not_fit_is_refused_at_once(hf_checkpoint):
    with pytest.raises(ValueError, match="unknown pruner"):
        HFAnswerer(hf_checkpoint("llava_hf"), "flowcat:budget=5")
    with (
        attach(hf_checkpoint("llava_hf").model, parse_pruner("random:budget=5")),
        pytest.raises(ValueError, match="already has a pruner"),
    ):
        HFAnswerer(hf_checkpoint("llava_hf"), "flowcut:budget=5")


@pytest.mark.parametrize("family", ["llava_hf", "llava_next_hf"])
def test_a_pipeline_with_a_pruner(hf_checkpoint, hf_folder, family):
    """transformers' image-text-to-text pipeline and a TextIteratorStreamer give what generate gives."""
    model, [picture] = hf_checkpoint(family).model, pictures(1)
    processor = AutoProcessor.from_pretrained(hf_folder(family), backend="pil")
    prompt = f"{processor.image_token} what is in this image"
    settings = {"max_new_tokens": 5, "do_sample": False}
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    inputs = processor(images=picture, text=prompt, return_tensors="pt")
    with attach(model, "flowcut:budget=6") as handle:
        [answer] = ask(images=picture, text=prompt, generate_kwargs=settings, return_full_text=False)
        assert handle.trace.kept
        ids = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
        streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        thread = Thread(target=model.generate, kwargs={**inputs, **settings, "streamer": streamer})
        thread.start()
        streamed = "".join(streamer)
        thread.join()
    expected = processor.batch_decode(ids, skip_special_tokens=True)[0]
    assert answer["generated_text"].strip() == expected.strip() == streamed.strip()


@pytest.mark.parametrize(
    ("family", "pruner"),
    [
        *((family, "flowcut:budget=6") for family in FAMILIES),
        ("qwen2_vl", "none"),
        ("llava_hf", "fastv:budget=20"),
    ],
)
def test_the_context_is_a_limit(answerer, family, pruner, monkeypatch):
    """An answer ends where the context does, on a row's own count; a prompt that fills it is refused in one line."""
    answer = answerer(family, pruner)
    text = answer.checkpoint.model.config.get_text_config()
    own = [pictures(2)[1]]
    replies = {question: answer([question], [own])[0] for question in ("how many cats two hello world", TEXTS[0])}
    question, reply = next(each for each in replies.items() if len(each[1].text.split()) >= 3)
    # What enters the language model; methods that cut inside of it cut later.
    entered = reply.text_tokens + (reply.language_tokens[0] if "fastv" in pruner else reply.visual_tokens)
    words = reply.text.split()
    for left, batch in ((2, [question]), (1, [question, "two"])):
        monkeypatch.setattr(text, "max_position_embeddings", entered + left)
        [short, *_] = answer(batch, [own, []][: len(batch)])
        said = short.text.split()
        assert said == words[: len(said)]
        assert len(said) <= left
    for fewer in (0, 2):
        monkeypatch.setattr(text, "max_position_embeddings", entered - fewer)
        with pytest.raises(
            ValueError, match=rf"^the prompt has at least {entered} tokens.*context is {entered - fewer}"
        ):
            answer([question], [own])
