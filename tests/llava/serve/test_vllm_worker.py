"""The worker in front of an imitation of vLLM, which answers with the same tiny model as a worker that has it."""

import pytest

from llava.serve.client import status_of, stream
from llava.serve.model_worker import ModelWorker
from llava.serve.server import LocalServer
from llava.serve.vllm_worker import build_parser, worker_of
from llava.serve.worker import Place
from tests.llava.fake_vllm import engine_like_vllm, fake_vllm

TEXT = "what is in this image"


@pytest.fixture(scope="module")
def endpoint(hub_folder):
    app = fake_vllm(engine_like_vllm(hub_folder), hub_folder, "fastervlm:budget=9")
    with LocalServer(app) as server:
        yield server.url, app.state


def worker(endpoint, url="", *flags):
    return worker_of(build_parser().parse_args(["--server", endpoint, "--worker", url, "--no-register", *flags]))


@pytest.fixture(scope="module")
def vllm(endpoint):
    with LocalServer(lambda url: worker(endpoint[0], url, "--pruner", "fastervlm:budget=9").build_app()) as server:
        yield server.url


@pytest.fixture(scope="module")
def model(engine):
    """A worker that has the model itself."""
    with LocalServer(lambda url: ModelWorker(engine, Place(url), "served").build_app()) as server:
        yield server.url


@pytest.fixture
def request_for(ask_about, pictures, as_base64):
    """The pictures are no squares, so that padding matters."""
    images = [as_base64(picture) for picture in pictures[:1]]
    return lambda **more: {
        **{"model": "served", "prompt": ask_about(TEXT), "temperature": 0, "max_new_tokens": 6, "images": images},
        **more,
    }


def last(address, request):
    *_, document = stream(address, request)
    return document


@pytest.mark.parametrize(
    ("pruner", "kept"), [(None, 9), ("fastervlm:budget=5", 5), ("none", 16), ("fastervlm:budget=0.25", 4)]
)
def test_answers_are_those_of_a_worker_with_the_model(vllm, model, request_for, pruner, kept):
    request = request_for(temperature=0.0005, pruner=pruner, rounds=2)
    found = list(stream(vllm, request))
    assert all(document["error_code"] == 0 for document in found)
    expected = last(model, {**request, "pruner": pruner or "fastervlm:budget=9", "rounds": 0})
    assert found[-1]["text"] == expected["text"]
    figures = found[-1]["figures"]
    for name in ("visual_tokens", "text_tokens", "patches", "new_tokens", "finish"):
        assert figures[name] == expected["figures"][name], name
    assert (figures["visual_tokens"], figures["prefill_ms"]) == (kept, None)
    assert "no time to compare with" in figures["comparison"]["problem"]
    assert found[0]["text"].startswith(request["prompt"])


def test_the_page_learns_what_the_server_can_do(vllm):
    status = status_of(vllm)
    assert (status.model_names, status.methods) == (["served"], ["fastervlm"])
    assert (status.visual_tokens, status.pruner) == (16, "fastervlm:budget=9")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pruner": "flowcut:budget=5"}, "flowcut:budget=5 is not what the server was started with, fastervlm"),
        ({"pruner": "fastervlm:budget=0"}, "budget=0 is not a whole number"),
        ({"images": []}, "0 images for 1 <image>"),
    ],
)
def test_what_it_cannot_do_is_said(vllm, request_for, changes, said):
    document = last(vllm, request_for(**changes))
    assert document["error_code"] == 1
    assert said in document["text"]


def test_an_error_of_the_server_is_one_line(vllm, endpoint, request_for):
    endpoint[1].refuse["too long"] = (400, "This model's maximum context length is 2048 tokens.")
    document = last(vllm, request_for(prompt="<image> too long"))
    assert document["text"] == "ValueError: vLLM answered 400: This model's maximum context length is 2048 tokens."


def test_it_does_not_start_with_a_wrong_server(endpoint, hub_folder):
    for address, flags, message in (
        ("http://127.0.0.1:9", (), r"no valid answer from http://127\.0\.0\.1:9/v1/models"),
        (endpoint[0], ("--model-path", "other"), "serves served, not other; give its checkpoint"),
        (endpoint[0], ("--pruner", "flowcut:budget=4"), "this server prunes with fastervlm:budget=9"),
        (endpoint[0], ("--conv-mode", "none such"), "conversation mode 'none such' is unknown"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            worker(address, "", *flags)
        assert "\n" not in str(error.value)
