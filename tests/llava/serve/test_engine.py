"""The engine against the evaluation's answers, and what may go wrong."""

import threading
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from flowcut import FlowCut, attach
from flowcut.attach import detach
from llava.eval.models.llava_answerer import LlavaAnswerer
from llava.eval.models.reply import Generation
from llava.serve import runs
from llava.serve.engine import EXCEEDS, ChatPrompt, Engine

TEXT = "what is in this image"
FLOWCUT, FASTV = "flowcut:budget=6,last_layer=-2,interval=1", "fastv:budget=9,layer=1"
PRUNERS = ["none", "fastervlm:budget=5", FLOWCUT, FASTV]


def replies(checkpoint, pruner, images, tokens=12):
    [reply] = LlavaAnswerer(checkpoint, pruner, Generation(max_new_tokens=tokens))([TEXT], [images])
    return reply


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("count", [1, 2])
def test_streamed_whole_and_evaluated_answers_are_one(engine, checkpoint, pictures, ask_about, pruner, count):
    question = ChatPrompt(ask_about(TEXT, count), pictures[:count], 0.0, None, 12, pruner=pruner)
    news = list(engine.ask(question))
    texts = [progress.text for progress in news]
    assert len(set(texts)) > 3
    assert all(after.startswith(before) for before, after in pairwise(texts))
    assert all(text.encode().decode() == text for text in texts)
    assert not any(text.endswith("�") for text in texts[:-1])
    reply = replies(checkpoint, pruner, pictures[:count])
    assert texts[-1] == engine.answer(question).text
    assert texts[-1].strip() == reply.text
    figures = news[-1].figures
    assert [progress.figures for progress in news[:-1]] == [None] * (len(news) - 1)
    assert (figures.visual_tokens, figures.text_tokens) == (reply.visual_tokens, reply.text_tokens)
    assert (figures.encoder, figures.language) == (reply.tokens, reply.language_tokens)
    assert (figures.patches, figures.new_tokens, figures.finish) == (16 * count, 12, "length")
    assert 0 < figures.encode_ms + figures.prefill_ms < figures.total_ms


@pytest.mark.parametrize("pruner", ["none", "fastervlm:budget=20"])
def test_tiles_are_counted_as_they_are(checkpoint, make_tiny_llava, pictures, ask_about, pruner):
    """A whole picture and its tiles, with row ends: neither 576 nor 16 a picture."""
    model = make_tiny_llava(
        image_aspect_ratio="anyres", image_grid_pinpoints=[[112, 56], [112, 112]], mm_patch_merge_type="spatial"
    )
    tiled = checkpoint._replace(model=model)
    answer = Engine(tiled).answer(
        ChatPrompt(ask_about(TEXT), pictures[:1], 0.0, max_new_tokens=3, pruner=pruner, trace=True)
    )
    reply = replies(tiled, pruner, pictures[:1], tokens=3)
    assert answer.text.strip() == reply.text
    assert (answer.figures.visual_tokens, answer.figures.encoder) == (reply.visual_tokens, reply.tokens)
    assert answer.figures.patches == 16 * len(answer.kept["views"]) > 32
    model.config.max_position_embeddings = answer.figures.text_tokens + answer.figures.visual_tokens
    full = Engine(tiled).answer(ChatPrompt(ask_about(TEXT), pictures[:1], 0.0, pruner=pruner))
    assert full.figures.finish == "context"


def test_a_chat_needs_no_picture(engine, ask_about):
    figures = engine.answer(ChatPrompt(ask_about(TEXT, 0), temperature=0.0, max_new_tokens=3)).figures
    assert (figures.patches, figures.visual_tokens, figures.encoder, figures.encode_ms) == (0, 0, [], 0.0)
    assert figures.new_tokens == 3


def test_a_question_s_pruner_is_its_own(engine, checkpoint, pictures, ask_about):
    """Eight at a time, with different pruners: everyone gets what it gets alone, and the model is left as it was."""
    questions = [ChatPrompt(ask_about(TEXT), pictures[:1], 0.0, None, 8, pruner=pruner) for pruner in PRUNERS] * 2
    alone = [engine.answer(question) for question in questions]
    together = [None] * len(questions)

    def ask(number):
        together[number] = engine.answer(questions[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(questions))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert [answer.figures.encoder for answer in together] == [answer.figures.encoder for answer in alone]
    with pytest.raises(ValueError, match="no pruner attached"):
        detach(checkpoint.model)


def test_the_engines_own_pruner_is_for_questions_without_one(checkpoint, pictures, ask_about):
    engine = Engine(checkpoint, "fastervlm:budget=5")
    seen = {}
    for pruner in (None, "none"):
        question = ChatPrompt(ask_about(TEXT), pictures[:1], max_new_tokens=1, pruner=pruner)
        seen[pruner] = engine.answer(question).figures.visual_tokens
    assert seen == {None: 5, "none": 16}


def test_kept_patches_are_those_of_the_trace(engine, checkpoint, pictures, ask_about):
    question = ChatPrompt(ask_about(TEXT), pictures[:1], max_new_tokens=1, pruner=FLOWCUT, trace=True)
    kept = engine.answer(question).kept
    with torch.inference_mode(), attach(checkpoint.model, FlowCut(budget=6, last_layer=-2, interval=1)) as handle:
        checkpoint.model.get_vision_tower()(checkpoint.pixels(pictures[:1]))
    expected = [("encoder", layer, [row.tolist() for row in rows]) for layer, rows in handle.trace.kept.items()]
    assert [(step["stage"], step["layer"], step["kept"]) for step in kept["steps"]] == expected
    assert kept["grid"] == [4, 4]
    assert len(kept["views"]) == 1


def test_a_cut_in_the_language_model_is_shown_too(engine, pictures, ask_about):
    question = ChatPrompt(ask_about(TEXT, 2), pictures, max_new_tokens=1, pruner=FASTV, trace=True)
    answer = engine.answer(question)
    [step] = answer.kept["steps"]
    assert step["stage"] == "language"
    assert sum(len(row) for row in step["kept"]) == answer.figures.language[-1] < 32


def test_seeds_repeat_an_answer(engine, pictures, ask_about):
    def answer(seed):
        return engine.answer(ChatPrompt(ask_about(TEXT), pictures[:1], 1.0, max_new_tokens=8, seed=seed)).text

    assert answer(1) == answer(1) != answer(2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": []}, "0 images for 1 <image> in the prompt"),
        ({"prompt": "no placeholder"}, "1 images for 0 <image>"),
        ({"temperature": -1.0}, "temperature=-1.0 is below 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 1.1}, "top_p=1.1 is not a probability"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1 is below 0"),
        ({"pruner": "flowcat:budget=64"}, "unknown pruner"),
        ({"pruner": "crossget:budget=6,cross_tokens=/etc/passwd"}, "crossget cannot name a file on the server"),
        ({"against": "crossget:budget=6,cross_tokens=/etc/passwd"}, "crossget cannot name a file on the server"),
        (
            {"pruner": "cdpruner:budget=6"},
            "cdpruner needs the question, which is unknown here; set condition=False",
        ),
        ({"pruner": "flowcut:budget=6"}, "last_layer=-3 is not in this encoder"),
    ],
)
def test_what_cannot_be_asked_is_one_line(engine, pictures, ask_about, changes, said):
    question = ChatPrompt(**({"prompt": ask_about(TEXT), "images": pictures[:1]} | changes))
    with pytest.raises(ValueError, match=said) as error:
        list(engine.ask(question))
    assert "\n" not in str(error.value)


def test_top_p_0_takes_the_most_likely_token(engine, pictures, ask_about):
    """LLaVA's page sends it."""
    question = {"prompt": ask_about(TEXT), "images": pictures[:1], "max_new_tokens": 6}
    greedy = engine.answer(ChatPrompt(**question, temperature=0.0)).text
    assert engine.answer(ChatPrompt(**question, temperature=0.9, top_p=0.0)).text == greedy


def test_no_new_tokens_and_texts_that_cannot_fit_are_answered_while_the_model_is_busy(engine, pictures, ask_about):
    prompt = ask_about(TEXT)
    with engine._lock:
        for question in (
            ChatPrompt(prompt, pictures[:1], max_new_tokens=0),
            ChatPrompt(prompt + "a" * 20_000_000, pictures[:1]),
        ):
            answer = engine.answer(question)  # would wait for ever if it needed the model
            assert (answer.text, answer.figures.finish) == (EXCEEDS, "context")


def test_a_comparison_is_made_of_rounds_in_turns(engine, checkpoint, pictures, ask_about, monkeypatch):
    seen = []
    monkeypatch.setattr(runs, "attach", lambda *given, **more: seen.append(given[1].budget) or attach(*given, **more))
    question = ChatPrompt(ask_about(TEXT), pictures[:1], 0.0, None, 1, pruner="fastervlm:budget=5", rounds=3)
    comparison = engine.answer(replace(question, against="random:budget=7")).figures.comparison
    assert seen == [5, *[7, 5], *[5, 7], *[7, 5], *[5, 7]]  # the answer, one warm-up, three rounds
    assert comparison["rounds"] == 3
    assert [run["pruner"] for run in comparison["runs"]] == ["fastervlm:budget=5", "random:budget=7"]
    assert [run["visual_tokens"] for run in comparison["runs"]] == [5, 7]
    for run in comparison["runs"]:
        assert 0 < run["encode_ms"] + run["prefill_ms"] <= run["ttft_ms"]
    for pruner, tokens in ((question.pruner, 5), ("none", 16)):
        [run] = engine.answer(replace(question, pruner=pruner)).figures.comparison["runs"]
        assert (run["pruner"], run["visual_tokens"]) == (pruner, tokens)


def test_a_comparison_has_medians_without_the_first_round(engine, pictures, ask_about, monkeypatch):
    # the answer; none and pruned to warm up; then pruned, none, none, pruned, pruned, none
    times = iter([900.0, 700.0, 1.0, 10.0, 2.0, 60.0, 50.0, 20.0, 3.0])

    def stop(watch):
        watch.encode_ms = watch.prefill_ms = watch.ttft_ms = next(times)
        return 1.0

    monkeypatch.setattr(runs.Stopwatch, "stop", stop)
    question = ChatPrompt(
        ask_about(TEXT), pictures[:1], 0.0, None, 1, pruner="fastervlm:budget=5", rounds=3, against="none"
    )
    pruned, none = engine.answer(question).figures.comparison["runs"]
    assert (pruned["ttft_ms"], pruned["ttft_range_ms"]) == (20.0, [10.0, 50.0])
    assert (none["ttft_ms"], none["ttft_range_ms"]) == (3.0, [2.0, 60.0])


def test_a_failed_comparison_leaves_the_answer(engine, pictures, ask_about, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried")

    monkeypatch.setattr(runs, "_medians", fail)
    question = ChatPrompt(ask_about(TEXT), pictures[:1], 0.0, None, 2, pruner="fastervlm:budget=5", rounds=1)
    answer = engine.answer(question)
    assert answer.text
    assert answer.figures.comparison == {"rounds": 0, "problem": "OutOfMemoryError: CUDA out of memory. Tried"}
    assert engine.answer(replace(question, prompt=ask_about(TEXT, 0), images=())).figures.comparison is None


def test_methods_that_need_a_question_or_more_layers_are_not_offered(engine):
    assert {"fastervlm", "random"} <= set(engine.budgets)
    assert not {"cdpruner", "rcom", "sparsevlm", "flowcut"} & set(engine.budgets)


def test_the_least_budgets_offered_can_be_asked_for(engine, pictures, ask_about):
    """Also those that a method's own declaration puts above 1; a smaller one is refused there."""
    above = {name: least for name, least in engine.budgets.items() if least > 1}
    assert above.keys() >= {"tome"}
    question = ChatPrompt(ask_about(TEXT), pictures[:1], 0.0, None, 1)
    for name, least in above.items():
        engine.answer(replace(question, pruner=f"{name}:budget={least}"))
    with pytest.raises(ValueError, match="use a larger budget"):
        engine.answer(replace(question, pruner=f"tome:budget={engine.budgets['tome'] - 1}"))


def test_a_model_that_needs_a_picture_says_so(checkpoint, ask_about):
    with pytest.raises(ValueError, match="about pictures only; add a picture to the question"):
        Engine(checkpoint, needs_picture=True).answer(ChatPrompt(ask_about(TEXT, 0)))


@pytest.mark.parametrize("pruner", ["pooling:budget=5", "visionzip:budget=5", "prumerge:budget=5"])
def test_where_merged_patches_went_is_sent_along(engine, pictures, ask_about, pruner):
    question = ChatPrompt(ask_about(TEXT, 2), pictures, 0.0, None, 1, pruner=pruner, trace=True)
    kept = engine.answer(question).kept
    assert kept["mixed"] == (kept["sources"] is None) == pruner.startswith("prumerge")
    assert kept["others"] == (0 if pruner.startswith("pooling") else 2)  # CLS, or a summary, of each picture
    if kept["sources"]:
        patches = 5 if pruner.startswith("pooling") else 4  # the fifth is CLS
        assert [len({*row}) for row in kept["sources"]] == [patches] * 2
        assert [len(row) for row in kept["sources"]] == [16] * 2


class TestContext:
    """The room that is left counts the visual tokens there really are."""

    @pytest.fixture
    def room(self, checkpoint, monkeypatch):
        def set_to(tokens):
            monkeypatch.setattr(checkpoint.model.config, "max_position_embeddings", tokens)

        return set_to

    def ask(self, engine, pictures, prompt, pruner):
        return engine.answer(ChatPrompt(prompt, pictures[:1], 0.0, max_new_tokens=50, pruner=pruner))

    def test_pruning_leaves_room_for_the_answer(self, engine, pictures, ask_about, room):
        prompt = ask_about(TEXT)
        words = self.ask(engine, pictures, prompt, "none").figures.text_tokens
        room(words + 16 + 4)
        seen = {}
        for pruner in ("none", "fastervlm:budget=5"):
            figures = self.ask(engine, pictures, prompt, pruner).figures
            seen[pruner] = (figures.new_tokens, figures.finish)
        assert seen == {"none": (4, "length"), "fastervlm:budget=5": (4 + 11, "length")}

    @pytest.mark.parametrize("spare", [16, 3, 0])
    def test_a_prompt_that_fills_it_is_told_so(self, engine, pictures, ask_about, room, spare):
        prompt = ask_about(TEXT)
        room(self.ask(engine, pictures, prompt, "none").figures.text_tokens + spare)
        answer = self.ask(engine, pictures, prompt, "none")
        assert (answer.text, answer.figures.finish) == (EXCEEDS, "context")
        assert engine.checkpoint.model._forward_pre_hooks == {}


class TestTrouble:
    """A model that fails, hangs or is left alone does so for one question only."""

    @pytest.fixture
    def slow(self, checkpoint, monkeypatch):
        """Each forward pass takes 50 ms longer; the passes are counted."""
        passes: list[None] = []
        handle = checkpoint.model.register_forward_pre_hook(lambda *_: passes.append(time.sleep(0.05)))
        yield passes
        handle.remove()

    def question(self, pictures, ask_about, tokens=100):
        return ChatPrompt(ask_about(TEXT), pictures[:1], 0.0, max_new_tokens=tokens)

    def test_an_exception_reaches_the_asker_and_the_next_question_is_answered(
        self, engine, checkpoint, pictures, ask_about, monkeypatch
    ):
        question = self.question(pictures, ask_about, 2)
        with monkeypatch.context() as patch:

            def fail(*_, **__):
                raise torch.OutOfMemoryError("CUDA out of memory")

            patch.setattr(checkpoint.model, "generate", fail)
            with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
                engine.answer(question)
        assert engine.answer(question).figures.new_tokens == 2

    def test_closing_ends_the_generation(self, engine, slow, pictures, ask_about):
        news = engine.ask(self.question(pictures, ask_about))
        next(news)
        news.close()
        assert engine.answer(self.question(pictures, ask_about, 1)).figures.new_tokens == 1
        assert len(slow) < 80  # 100 tokens were asked for

    @pytest.mark.usefixtures("slow")
    def test_who_waits_hears_that_and_does_not_lose_patience(self, engine, pictures, ask_about):
        first = engine.ask(self.question(pictures, ask_about, 60))
        next(first)
        second = list(engine.ask(self.question(pictures, ask_about, 1), patience=2, keep_alive=0.05))
        assert [progress.text for progress in second[:3]] == ["", "", ""]
        assert second[-1].figures.new_tokens == 1
        assert list(first)[-1].figures.new_tokens == 60

    def test_a_stuck_generation_is_given_up(self, engine, checkpoint, pictures, ask_about, monkeypatch):
        released = threading.Event()
        monkeypatch.setattr(checkpoint.model, "generate", lambda *_, **__: released.wait(5))
        try:
            with pytest.raises(TimeoutError, match=r"no new token within 0\.1 s"):
                list(engine.ask(self.question(pictures, ask_about), patience=0.1, keep_alive=0.05))
        finally:
            released.set()


def test_start_and_end_tokens_are_put_around_a_picture_once(engine, checkpoint, monkeypatch):
    monkeypatch.setattr(checkpoint.model.config, "mm_use_im_start_end", True, raising=False)
    for prompt in ("a <image> b", "a <im_start><image><im_end> b"):
        assert engine._prompt(prompt) == "a <im_start><image><im_end> b"
