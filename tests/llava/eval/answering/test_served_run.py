"""A server answers instead of a loaded model: equal answers, many at a time, kills, and what is refused in one line."""

import json
import threading

import pytest

from llava.eval import launch, model_vqa_loader
from llava.eval.answering.served_run import ServedRun
from llava.serve.server import LocalServer
from tests.llava.eval.data_tree import make_data_tree
from tests.llava.eval.in_this_process import answer_in_this_process
from tests.llava.fake_vllm import engine_like_vllm, fake_vllm

PRUNER = "fastervlm:budget=5"


@pytest.fixture(scope="module")
def engine(hub_folder):
    return engine_like_vllm(hub_folder)


@pytest.fixture
def server(engine, hub_folder):
    app = fake_vllm(engine, hub_folder, "fastervlm:budget=9")
    with LocalServer(app) as running:
        yield running.url, app.state


@pytest.fixture
def ask(flags, hub_folder):
    """`ask(name, *more)`: the answer lines of model_vqa_loader with the served checkpoint."""

    def run(name, *more, pruner=PRUNER):
        own = ["--model-path", hub_folder, *(["--pruner", pruner] if pruner else [])]
        told = flags(name, *more)
        model_vqa_loader.main([*told, *own])
        file = told[told.index("--answers-file") + 1]
        return [json.loads(line) for line in open(file, encoding="utf-8")]

    return run


def said(lines):
    return [(line["question_id"], line["prompt"], line["text"], line["answer_id"], line["model_id"]) for line in lines]


def through(url, *more):
    return ("--backend", "vllm", "--server", url, *more)


def test_answers_equal_those_of_the_loaded_model(ask, server):
    url, state = server
    for pruner, kept in ((PRUNER, 5), ("none", 16), ("fastervlm:budget=0.25", 4)):
        local = ask(f"local-{kept}.jsonl", pruner=pruner)
        served = ask(f"served-{kept}.jsonl", *through(url), pruner=pruner)
        assert said(served) == said(local)
        assert {line["metadata"]["visual_tokens"] for line in served} <= {kept, 0}
        for one, two in zip(served, local, strict=True):
            assert one["metadata"]["text_tokens"] == two["metadata"]["text_tokens"]
    assert len({line["text"] for line in local}) > 1
    assert {len(body["mm_processor_kwargs"]) for body in state.asked if "mm_processor_kwargs" in body} == {1}


def test_many_are_under_way_and_never_more_than_asked(ask, server, monkeypatch, engine):
    url, state = server
    together, answer = threading.Barrier(4), engine.answer

    def meet(question):
        if question.max_new_tokens > 1:  # not the two questions by which a server is tried
            together.wait(60)  # the eight questions meet in two groups, or not at all
        return answer(question)

    monkeypatch.setattr(engine, "answer", meet)
    assert len(ask("many.jsonl", *through(url, "--in-flight", "4"))) == 8
    assert state.most == 4


def test_a_killed_run_asks_for_what_is_missing(ask, server, monkeypatch, question_folder):
    url, state = server
    whole = said(ask("whole.jsonl", *through(url)))
    step, calls = ServedRun.step, []

    def interrupted(run):
        calls.append(run)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(run)

    monkeypatch.setattr(ServedRun, "step", interrupted)
    with pytest.raises(SystemExit):
        ask("killed.jsonl", *through(url, "--in-flight", "1"))
    done = len((question_folder / "killed.jsonl").read_text().splitlines())
    assert done == 2
    monkeypatch.setattr(ServedRun, "step", step)
    state.asked.clear()
    assert said(ask("killed.jsonl", *through(url))) == whole
    assert len(state.asked) == 2 + len(whole) - done


def test_a_refused_question_is_its_own_problem(ask, server, question_folder):
    url, state = server
    state.refuse["how many cats"] = (400, "the prompt is longer than the context")
    with pytest.raises(SystemExit):
        ask("bad.jsonl", *through(url))
    lines = (question_folder / "bad.bad.jsonl").read_text().splitlines()
    assert lines
    assert all("400: the prompt is longer than the context" in line for line in lines)
    answered = (question_folder / "bad.jsonl").read_text().splitlines()
    assert len(answered) + len(lines) == 8


def test_what_holds_for_every_question_ends_the_run(ask, server):
    url, state = server
    state.refuse["how many cats"] = (401, "no key")
    with pytest.raises(SystemExit, match="said 401: no key; start vLLM with"):
        ask("key.jsonl", *through(url))


def test_a_benchmark_from_question_file_to_score(server, hub_folder, tmp_path, monkeypatch, capsys):
    answer_in_this_process(monkeypatch)
    url, state = server
    data = make_data_tree(tmp_path / "eval", ("gqa",))
    shared = ["gqa", "--data", str(data), "--model-path", hub_folder, "--max_new_tokens", "4", "--pruner", PRUNER]
    reports, answers = [], []
    for more in (["--devices", "cpu"], [*through(url), "--fresh"]):
        launch.main([*shared, *more])
        reports.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
        [merged] = data.rglob("merge.jsonl")
        answers.append(said([json.loads(line) for line in merged.read_text().splitlines()]))
    assert answers[0] == answers[1]
    assert reports[0]["main"] == reports[1]["main"]
    assert state.asked


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        ({}, ["--pruner", "flowcut:budget=5"], "this server prunes with fastervlm:budget=9"),
        ({}, ["--pruner", "fastervlm:budget=0"], "budget=0 is not a whole number"),
        ({"plug_in": False}, [], "does not prune: it read all 16 tokens with fastervlm:budget=5"),
        ({"trusts": False}, [], "Start vLLM with --trust-request-mm-kwargs --trust-request-chat-template"),
        ({"details": False}, [], "does not report the visual tokens of a prompt; start it with"),
        ({}, ["--dtype", "float32"], "--dtype is decided by the server"),
        ({}, ["--num_beams", "2"], "--num_beams 2 is not possible with --backend vllm"),
        ({}, ["--in-flight", "0"], "--in-flight 0 is not a number of requests"),
    ],
)
def test_what_does_not_go_is_one_line(ask, engine, hub_folder, options, more, message):
    app = fake_vllm(engine, hub_folder, "fastervlm:budget=9", **options)
    with LocalServer(app) as running, pytest.raises(SystemExit, match=message) as stopped:
        ask("none.jsonl", *through(running.url), *more, pruner=None if "--pruner" in more else PRUNER)
    assert "\n" not in str(stopped.value)


def test_no_server_another_model_and_flags_that_belong_together(ask, server, llava_folder, engine):
    with pytest.raises(SystemExit, match=r"no valid answer from http://127\.0\.0\.1:9/v1/models .*; is vLLM's"):
        ask("none.jsonl", *through("http://127.0.0.1:9"))
    with pytest.raises(SystemExit, match="belong together"):
        ask("none.jsonl", "--backend", "vllm")
    with pytest.raises(SystemExit, match="belong together"):
        ask("none.jsonl", "--server", server[0])
    with pytest.raises(SystemExit, match="give --pruner"):
        ask("none.jsonl", *through(server[0]), pruner=None)
    with (
        LocalServer(fake_vllm(engine, "someone/else")) as running,
        pytest.raises(SystemExit, match=r"serves served, not .*tiny-hf; give its checkpoint"),
    ):
        ask("none.jsonl", *through(running.url))
