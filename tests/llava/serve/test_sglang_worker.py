"""The worker in front of an imitation of SGLang's server."""

import json

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from llava.serve.client import stream
from llava.serve.server import LocalServer
from llava.serve.sglang_worker import SGLangWorker
from llava.serve.worker import Place


@pytest.fixture(scope="module")
def endpoint():
    """What SGLang's server answers, as far as it is used."""
    app = FastAPI()
    app.state.asked = []

    @app.get("/get_model_info")
    def info():
        return {"model_path": "somewhere/llava-v1.5-7b"}

    @app.post("/generate")
    async def generate(request: Request):
        body = await request.json()
        app.state.asked.append(body)
        events = [{"text": "one"}, {"text": "one two"}]
        if "break" in body["text"]:
            events[1] = {"error": {"message": "out of slots"}}
        lines = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]
        return StreamingResponse(iter(lines), media_type="text/event-stream")

    with LocalServer(app) as server:
        yield server.url, app.state.asked


@pytest.fixture(scope="module")
def sglang(endpoint):
    with LocalServer(lambda url: SGLangWorker(endpoint[0], Place(url)).build_app()) as server:
        yield server.url


def test_it_speaks_llavas_protocol(sglang, endpoint, request_for):
    request = request_for(model="llava-v1.5-7b", temperature=0.0005, max_new_tokens=5000, stop="###")
    documents = list(stream(sglang, request))
    assert [document["text"] for document in documents] == [
        request["prompt"] + "one",
        request["prompt"] + "one two",
    ]
    body = endpoint[1][-1]
    assert (body["text"], body["image_data"], body["stream"]) == (request["prompt"], request["images"], True)
    parameters = body["sampling_params"]
    assert (parameters["temperature"], parameters["max_new_tokens"], parameters["stop"]) == (0, 1024, ["###"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pruner": "flowcut:budget=64"}, "SGLang cannot prune"),
        ({"images": []}, "0 images for 1 <image>"),
        ({"prompt": "<image> break"}, "out of slots"),
    ],
)
def test_what_it_cannot_do_is_said(sglang, request_for, changes, said):
    document = list(stream(sglang, request_for(model="llava-v1.5-7b", **changes)))[-1]
    assert document["error_code"] == 1
    assert said in document["text"]


def test_without_a_server_it_does_not_start():
    with pytest.raises(ValueError, match=r"no valid answer from http://127\.0\.0\.1:9/get_model_info"):
        SGLangWorker("http://127.0.0.1:9", Place(""))
