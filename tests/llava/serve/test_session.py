"""A visitor's chat without the page: turns, pictures, settings, log."""

import hashlib
import json

import pytest
from fastapi import FastAPI, Request, Response
from PIL import Image

from llava.eval.models.llava_answerer import LlavaAnswerer
from llava.eval.models.reply import Generation
from llava.serve.chatlog import ChatLog
from llava.serve.client import ControllerClient
from llava.serve.controller import Controller, build_app
from llava.serve.protocol import NoWorkerError
from llava.serve.server import LocalServer
from llava.serve.session import UNANSWERED, Session, Wish

TEXT = "what is in this image"
WISH = Wish("tiny", temperature=0.0, max_new_tokens=6)


def ask(session, controller, text, path, wish=WISH):
    session.add(text, path, wish, controller)
    return list(session.answer(wish, controller))


def test_it_gets_the_evaluations_answer(controller, checkpoint, pictures, files):
    texts = ask(Session(), controller, TEXT, files[0])
    [reply] = LlavaAnswerer(checkpoint, "none", Generation(max_new_tokens=6))([TEXT], [pictures[:1]])
    assert texts[-1] == reply.text


def test_turns_are_about_the_picture_until_there_is_another(controller, files):
    session = Session()
    ask(session, controller, TEXT, files[0])
    ask(session, controller, "how many", files[0])
    assert len(session.conversation.messages) == 4
    assert session.conversation.get_prompt().count("<image>") == 1
    assert [turn["role"] for turn in session.shown()] == ["user", "assistant"] * 2
    assert session.last_turn() == ("how many", session.conversation.messages[-1][1])
    ask(session, controller, "how many", files[1])
    assert len(session.conversation.messages) == 2
    ask(session, controller, "how many", None)
    assert len(session.conversation.messages) == 2
    assert session.conversation.get_prompt().count("<image>") == 0


def test_long_texts_and_typed_placeholders_are_cut(controller, files):
    session = Session()
    for path, longest in ((None, 1536), (files[0], 1200)):
        session.add("<image>" + "a" * 2000, path, WISH, controller)
        message = session.conversation.messages[0][1]
        text = message[0] if path else message
        assert set(text) == {"a"}
        assert longest - len("<image>") == len(text)


def test_settings_of_a_method_are_passed_on(controller, files):
    wish = Wish("tiny", method="fastv", budget=6, settings=" keep=4 , layer=1,")
    assert wish.pruner == "fastv:budget=6,keep=4,layer=1"
    [said] = ask(Session(), controller, TEXT, files[0], Wish("tiny", method="random", budget=6, settings="kepp=4"))
    assert "'kepp=4' is not a setting of random" in said


def test_a_worker_that_ignores_the_method_is_told(engine, files):
    """LLaVA's own: no figures, and a status of three fields."""
    app, asked = FastAPI(), []

    @app.post("/worker_get_status")
    def status():
        return {"model_names": ["llava-v1.5"], "speed": 1, "queue_length": 0}

    @app.post("/worker_generate_stream")
    async def generate(request: Request):
        asked.append(await request.json())
        return Response(json.dumps({"text": asked[-1]["prompt"] + "yes", "error_code": 0}).encode() + b"\0")

    known, session = Controller(), Session()
    with LocalServer(build_app(known)) as front, LocalServer(app) as worker:
        known.register(worker.url, False)
        for method, said in (("random", "This worker ignored random: it reports no figures"), ("none", "")):
            wish = Wish("llava-v1.5", top_p=0.0, method=method)
            assert ask(session, ControllerClient(front.url), TEXT, files[0], wish)[-1] == "yes"
            assert session.note.startswith(said)
            assert bool(session.note) == bool(said)
    assert asked[0]["top_p"] == 0


def test_trouble_is_shown_as_the_answer_and_the_chat_goes_on(controller, files):
    session = Session()
    bad = Wish("tiny", 0.0, method="flowcut", budget=6)
    [said] = ask(session, controller, TEXT, files[0], bad)
    assert said.startswith("**ValueError: last_layer=-3 is not in this encoder")
    assert said.endswith("(error code: 1)")
    assert session.figures is None
    assert session.reopen()
    assert list(session.answer(WISH, controller))[-1] == session.shown()[-1]["content"]


def test_what_cannot_be_asked(controller, files, tmp_path):
    session = Session()
    with pytest.raises(ValueError, match="there is no question"):
        session.add("  ", files[0], WISH, controller)
    with pytest.raises(NoWorkerError, match="no worker serves 'none such'"):
        session.add(TEXT, files[0], Wish("none such"), controller)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="cannot be read"):
        session.add(TEXT, str(tmp_path / "text.png"), WISH, controller)
    with pytest.raises(ValueError, match="is the server running"):
        Session().add(TEXT, None, WISH, ControllerClient("http://127.0.0.1:9"))
    assert not Session().reopen()


def test_a_stopped_answer_stays_as_far_as_it_came(controller, files):
    session = Session()
    session.add(TEXT, files[0], WISH, controller)
    answer = session.answer(WISH, controller)
    while not (text := next(answer)):
        pass
    answer.close()
    session.close()
    assert session.shown()[-1]["content"] == text
    session.add("how many", files[0], WISH, controller)
    session.add("how many", files[0], WISH, controller)
    assert session.conversation.messages[-3][1] == UNANSWERED
    session.conversation.get_prompt()


def test_the_log_is_llavas(controller, files, tmp_path):
    session, log = Session(), ChatLog(tmp_path / "logs")
    ask(session, controller, TEXT, files[0])
    log.chat(session.conversation, "tiny", "127.0.0.1", (1.0, 2.00004), session.images(), pruner="none")
    log.vote("upvote", session.conversation, "tiny", "127.0.0.1")
    [file] = (tmp_path / "logs").glob("*-conv.json")
    assert len(file.name) == len("2025-01-31-conv.json")
    chat, vote = map(json.loads, file.read_text().splitlines())
    [digest] = chat["images"]
    assert digest == hashlib.md5(session.images()[0].tobytes()).hexdigest()
    [picture] = (tmp_path / "logs" / "serve_images").glob("*/*.jpg")
    assert picture.stem == digest
    assert Image.open(picture).size == Image.open(files[0]).size
    assert (chat["type"], chat["model"], chat["start"], chat["finish"], chat["tstamp"]) == (
        "chat",
        "tiny",
        1.0,
        2.0,
        2.0,
    )
    assert (vote["type"], vote["state"]) == ("upvote", chat["state"])
    assert chat["state"]["messages"] == [["USER", TEXT], ["ASSISTANT", session.conversation.messages[1][1]]]
    assert vote.keys() >= {"tstamp", "type", "model", "state", "ip"}
