"""Controller and workers as real servers on free ports."""

import asyncio
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from itertools import pairwise

import httpx
import pytest
import torch
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from llava.serve import register_worker, test_message
from llava.serve.answer_stats import AnswerStats
from llava.serve.client import ControllerClient, stream
from llava.serve.controller import Controller, build_app
from llava.serve.controller import main as controller_main
from llava.serve.engine import ChatPrompt, Engine, Progress
from llava.serve.limits import PATIENCE
from llava.serve.model_worker import Limits, ModelWorker, build_parser
from llava.serve.protocol import GenerateRequest, WorkerStatus
from llava.serve.server import LocalServer
from llava.serve.sglang_worker import build_parser as sglang_parser
from llava.serve.vllm_worker import build_parser as vllm_parser
from llava.serve.worker import Place, place_of

TEXT = "what is in this image"


def until(condition, seconds=60.0, pause=0.01):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(pause)
    return found


@contextlib.contextmanager
def running_worker(engine, controller="", **more):
    """A worker on a free port; heart beats come 20 times a second."""
    made = []

    def make(url):
        place = Place(url, controller, more.pop("limit", 5), 0.05)
        made.append(ModelWorker(engine, place, more.pop("name", "tiny"), more.pop("limits", None)))
        return made[0].build_app()

    with LocalServer(make) as server:
        yield server, made[0]


@contextlib.contextmanager
def running_controller(port=0, **more):
    controller = Controller(**{"expiration": 100, **more})
    with LocalServer(build_app(controller), port=port) as server:
        yield server, controller


@pytest.fixture(scope="module")
def services(engine):
    with running_controller() as (front, controller), running_worker(engine, front.url) as (back, worker):
        until(controller.models)
        yield front, back, worker


def last(address, request):
    *_, document = stream(address, request)
    return document


class TestAnswers:
    def test_through_worker_and_controller_as_the_engine_says(self, services, engine, request_for, pictures):
        front, back, _ = services
        request = request_for(pruner="fastervlm:budget=5", trace=True)
        whole = engine.answer(
            ChatPrompt(request["prompt"], pictures[:1], 0.0, max_new_tokens=6, pruner="fastervlm:budget=5")
        )
        for server in (front, back):
            documents = list(stream(server.url, request))
            assert {document["error_code"] for document in documents} == {0}
            texts = [document["text"] for document in documents]
            assert all(after.startswith(before) for before, after in pairwise(texts))
            assert texts[-1] == request["prompt"] + whole.text
            assert documents[-1]["figures"]["encoder"] == whole.figures.encoder == [16, 5]
            assert documents[-1]["kept"]["grid"] == [4, 4]
            assert "figures" not in documents[-2]

    def test_the_cap_on_new_tokens_is_llavas(self, services, engine, request_for, monkeypatch):
        asked = []

        def ask(question, patience):
            asked.append(question.max_new_tokens)
            yield Progress("", AnswerStats())

        monkeypatch.setattr(engine, "ask", ask)
        for tokens in (1024, 1025, 10**9):
            last(services[1].url, request_for(max_new_tokens=tokens))
        assert asked == [1024, 1024, 1024]

    def test_the_wire_is_llavas(self, services, request_for):
        _, back, _ = services
        answer = httpx.post(f"{back.url}/worker_generate_stream", json=request_for())
        parts = answer.content.split(b"\0")
        assert parts[-1] == b""
        assert all({"text", "error_code"} <= json.loads(part).keys() for part in parts[:-1])

    def test_a_request_s_stop_text_ends_the_answer(self, services, request_for):
        prompt = request_for()["prompt"]
        full = last(services[1].url, request_for())["text"][len(prompt) :]
        stop = full[len(full) // 2 :][:2]
        short = last(services[1].url, request_for(stop=stop))["text"][len(prompt) :]
        assert short == full[: full.index(stop)]

    @pytest.mark.parametrize(
        ("changes", "kind", "said"),
        [
            ({"images": []}, "bad_request", "0 images for 1 <image> in the prompt"),
            ({"images": ["bm8gcGljdHVyZQ=="]}, "bad_request", "image 1: 10 bytes hold no picture"),
            ({"images": ["?"]}, "bad_request", "image 1: not base64"),
            ({"pruner": "flowcat"}, "bad_request", "unknown pruner"),
            ({"pruner": "flowcut:budget=6"}, "bad_request", "last_layer=-3 is not in this encoder"),
            ({"top_p": 3}, "bad_request", "top_p: Input should be less than or equal to 1"),
            ({"prompt": None}, "bad_request", "prompt"),
            ({"model": "another"}, "bad_request", "this worker serves tiny, not another"),
        ],
    )
    def test_what_is_wrong_with_a_request_is_said(self, services, request_for, changes, kind, said):
        document = last(services[1].url, request_for(**changes))
        assert (document["error_code"], document["error"]["kind"]) == (1, kind)
        assert said in document["text"]
        assert "\n" not in document["text"]

    def test_what_is_no_json_is_a_bad_request_everywhere(self, services):
        for server in services[:2]:
            answer = httpx.post(f"{server.url}/worker_generate_stream", content=b"{")
            assert json.loads(answer.content.rstrip(b"\0"))["error"]["kind"] == "bad_request"

    def test_a_picture_above_the_limits_is_refused(self, engine, request_for):
        from PIL import Image

        buffer = io.BytesIO()
        Image.new("1", (9000, 9000)).save(buffer, "PNG")
        import base64

        bomb = base64.b64encode(buffer.getvalue()).decode()
        with running_worker(engine, limits=Limits(image_pixels=10**6)) as (server, _):
            assert "9000 x 9000 pixels are more than" in last(server.url, request_for(images=[bomb]))["text"]
        with running_worker(engine, limits=Limits(image_bytes=100)) as (server, _):
            assert "larger than 100 bytes" in last(server.url, request_for())["text"]


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "code", "kind"),
        [
            (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "out_of_memory"),
            (RuntimeError("Expected all tensors on the same device"), 1, "exception"),
        ],
    )
    def test_the_models_own_error_arrives(self, services, checkpoint, request_for, monkeypatch, error, code, kind):
        def fail(*_, **__):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.model, "generate", fail)
            document = last(services[0].url, request_for())
        assert document["text"].startswith(f"{type(error).__name__}: {error}")
        assert (document["error_code"], document["error"]["kind"]) == (code, kind)
        assert last(services[0].url, request_for())["error_code"] == 0

    def test_a_stuck_model_is_a_timeout(self, engine, checkpoint, request_for, monkeypatch):
        released = threading.Event()
        monkeypatch.setattr(checkpoint.model, "generate", lambda *_, **__: released.wait(10))
        monkeypatch.setattr(Engine.ask, "__defaults__", (PATIENCE, 0.05))
        with running_worker(engine, limits=Limits(patience=0.1)) as (server, _):
            document = last(server.url, request_for())
            released.set()
        assert (document["error_code"], document["error"]["kind"]) == (3, "timeout")

    def test_a_shutdown_while_a_thread_generates_is_no_bad_request(self, engine, checkpoint, request_for, monkeypatch):
        """Closing the answer then fails, which used to reach the client as its error."""
        started, released = threading.Event(), threading.Event()
        monkeypatch.setattr(checkpoint.model, "generate", lambda *_, **__: started.set() or released.wait(10))

        async def ask_and_cancel():
            documents = ModelWorker(engine, Place("http://127.0.0.1:9"), "tiny").stream(
                GenerateRequest(**request_for())
            )
            asking = asyncio.create_task(anext(documents))
            await asyncio.to_thread(started.wait, 10)
            asking.cancel()
            try:
                with pytest.raises(asyncio.CancelledError):
                    await asking
            finally:
                released.set()

        asyncio.run(ask_and_cancel())

    def test_no_worker_is_said_with_what_there_is(self, services, request_for):
        document = last(services[0].url, request_for(model="another"))
        assert (document["error_code"], document["error"]["kind"]) == (2, "no_worker")
        assert document["text"] == "NoWorkerError: no worker serves 'another'; there is tiny"

    def test_a_worker_that_is_not_there_is_dropped_and_another_asked(self, services, engine, request_for):
        with running_controller() as (front, controller):
            controller.register("http://127.0.0.1:9", False, WorkerStatus(model_names=["tiny"]))
            assert last(front.url, request_for())["error_code"] == 2
            assert controller.workers() == {}
            controller.register("http://127.0.0.1:9", False, WorkerStatus(model_names=["tiny"]))
            controller.register(services[1].url, False, WorkerStatus(model_names=["tiny"], queue_length=3))
            assert last(front.url, request_for())["error_code"] == 0
            assert list(controller.workers()) == [services[1].url]

    def test_a_worker_that_dies_in_the_middle(self, request_for):
        app = FastAPI()

        @app.post("/worker_generate_stream")
        def half(request: Request):
            def parts():
                yield b'{"text": "a", "error_code": 0}\0'
                raise OSError("killed")

            return StreamingResponse(parts())

        with LocalServer(app) as broken, running_controller() as (front, controller):
            controller.register(broken.url, False, WorkerStatus(model_names=["tiny"]))
            for address in (broken.url, front.url):
                documents = list(stream(address, request_for()))
                assert [document["error_code"] for document in documents] == [0, 3]
                assert documents[-1]["error"]["kind"] == "worker_lost"


class TestPresence:
    """Who is registered, for how long, and how they come back."""

    def test_a_silent_worker_expires_and_one_without_heart_beats_does_not(self, monkeypatch):
        clock = [1000.0]
        monkeypatch.setattr("llava.serve.controller.monotonic", lambda: clock[0])
        controller = Controller(expiration=10)
        controller.register("http://a", True, WorkerStatus(model_names=["a"]))
        controller.register("http://b", False, WorkerStatus(model_names=["b"]))
        assert controller.models() == ["a", "b"]
        clock[0] += 6
        assert controller.heart_beat("http://a", 3)
        clock[0] += 6
        assert controller.models() == ["a", "b"]
        assert controller.status().queue_length == 3
        clock[0] += 12
        assert controller.models() == ["b"]
        assert not controller.heart_beat("http://a", 0)

    def test_a_worker_registers_again_with_a_controller_that_starts_anew(self, engine):
        with running_controller() as (front, controller):
            port = front.port
            back = running_worker(engine, front.url)
            server, _ = back.__enter__()
            until(controller.models)
        try:
            with running_controller(port) as (_, again):
                assert until(again.models) == ["tiny"]
                controller_knows = again.workers()
                assert list(controller_knows) == [server.url]
        finally:
            back.__exit__(None, None, None)

    def test_a_worker_that_stops_says_goodbye(self, engine):
        with running_controller(expiration=100) as (_front, controller):
            with running_worker(engine, _front.url):
                until(controller.models)
            assert controller.models() == []

    def test_refreshing_drops_who_does_not_answer(self, services):
        with running_controller() as (front, controller):
            controller.register("http://127.0.0.1:9", False, WorkerStatus(model_names=["gone"]))
            controller.register(services[1].url, False, WorkerStatus(model_names=["old name"]))
            client = ControllerClient(front.url)
            assert client.models() == ["gone", "old name"]
            client.refresh()
            assert client.models() == ["tiny"]

    def test_the_shortest_queue_and_the_lottery(self):
        controller = Controller("shortest_queue")
        for name, speed, queue in (("http://a", 1, 3), ("http://b", 2, 3), ("http://c", 1, 9)):
            controller.register(name, False, WorkerStatus(model_names=["m"], speed=speed, queue_length=queue))
        assert [controller.choose("m") for _ in range(6)] == ["http://b"] * 3 + ["http://a", "http://b", "http://b"]
        assert controller.choose("n") == ""
        lottery = Controller("lottery")
        for name, speed in (("http://a", 1), ("http://b", 3)):
            lottery.register(name, False, WorkerStatus(model_names=["m"], speed=speed))
        drawn = [lottery.choose("m") for _ in range(2000)]
        assert 0.68 < drawn.count("http://b") / 2000 < 0.82
        with pytest.raises(ValueError, match="'fastest' is unknown; use lottery or shortest_queue"):
            Controller("fastest")

    def test_a_worker_says_what_a_page_needs_to_know(self, services):
        status = httpx.post(f"{services[1].url}/worker_get_status").json()
        assert status["model_names"] == ["tiny"]
        assert (status["visual_tokens"], status["pruner"], status["conv_mode"]) == (16, "none", "llava_v1")
        assert (status["speed"], status["queue_length"]) == (1, 0)


class TestManyAtATime:
    @pytest.fixture
    def gate(self, checkpoint):
        """Every forward pass waits for the gate to open."""
        opened = threading.Event()
        handle = checkpoint.model.register_forward_pre_hook(lambda *_: opened.wait(60) and None)
        yield opened
        opened.set()
        handle.remove()

    def test_more_than_the_limit_wait_and_are_counted(self, engine, request_for, gate):
        with running_worker(engine, limit=2) as (server, worker):
            results = []
            ask = lambda: results.append(last(server.url, request_for()))  # noqa: E731
            threads = [threading.Thread(target=ask) for _ in range(4)]
            [thread.start() for thread in threads]
            until(lambda: worker.queue_length == 4)
            until(worker._slots.locked)
            gate.set()
            [thread.join() for thread in threads]
            assert len({result["text"] for result in results}) == 1
            assert {result["error_code"] for result in results} == {0}
            until(lambda: worker.queue_length == 0)

    def test_a_client_that_leaves_ends_its_generation(self, engine, checkpoint, request_for):
        passes = []
        handle = checkpoint.model.register_forward_pre_hook(lambda *_: passes.append(time.sleep(0.02)))
        try:
            with running_worker(engine) as (server, worker):
                answer = stream(server.url, request_for(max_new_tokens=1000))
                next(answer)
                answer.close()
                until(lambda: worker.queue_length == 0)
                until(lambda: engine._lock.acquire(blocking=False))
                engine._lock.release()
        finally:
            handle.remove()
        assert len(passes) < 500


class TestCommands:
    def test_prefixes_of_flags_are_part_of_the_interface(self):
        given = ["--controller", "http://c:1/", "--worker", "http://w:2", "--port", "2"]
        for parser, more in (
            (build_parser(), ["--model-path", "m"]),
            (sglang_parser(), ["--sgl", "http://s"]),
            (vllm_parser(), ["--server", "http://v"]),
        ):
            args = parser.parse_args([*given, *more])
            assert place_of(args) == Place("http://w:2", "http://c:1", 5)
            assert (args.host, args.port, args.stream_interval) == ("localhost", 2, 1)
        assert build_parser().parse_args(["--model-path", "m", "--no-register", "--multi-modal"]).no_register
        assert place_of(build_parser().parse_args(["--model-path", "m", "--no-register"])).controller_address == ""
        assert build_parser().parse_args(["--model-path", "m", "--load-4bit", "--use-flash-attn"]).load_4bit

    def test_one_message_from_the_command_line(self, services, capsys, tmp_path, pictures):
        pictures[0].save(tmp_path / "a.png")
        flags = ["--message", TEXT, "--image-file", str(tmp_path / "a.png"), "--max-new-tokens", "4"]
        test_message.main(["--controller", services[0].url, *flags])
        by_controller = capsys.readouterr().out
        test_message.main(["--worker", services[1].url, "--model-name", "tiny", *flags])
        assert capsys.readouterr().out == by_controller
        assert by_controller.strip()
        with pytest.raises(SystemExit, match="error: no valid answer from http://127"):
            test_message.main(["--controller", "http://127.0.0.1:9"])
        with pytest.raises(SystemExit, match="error: no worker serves 'none such'"):
            test_message.main(["--controller", services[0].url, "--model-name", "none such"])

    def test_registering_by_hand(self, engine):
        with running_controller() as (front, controller), running_worker(engine) as (back, _):
            register_worker.main(["--controller", front.url, "--worker", back.url])
            assert controller.models() == ["tiny"]
            assert not controller.workers()[back.url].check_heart_beat
            with pytest.raises(SystemExit, match="does not say what it serves"):
                register_worker.main(["--controller", front.url, "--worker-name", "http://127.0.0.1:9"])

    def test_bad_flags_are_one_line(self, capsys):
        with pytest.raises(SystemExit):
            controller_main(["--dispatch-method", "fastest"])
        assert "invalid choice: 'fastest'" in capsys.readouterr().err
        with pytest.raises(ValueError, match="--limit-model-concurrency 0 allows no question"):
            Place("", "", 0)


@pytest.mark.slow
def test_the_programs_themselves(llava_folder, request_for, tmp_path):
    """As a user starts them; a worker that is told to stop ends its answer, says goodbye and leaves in order."""
    ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    front, back = (port.getsockname()[1] for port in ports)
    [port.close() for port in ports]
    controller, worker = f"http://127.0.0.1:{front}", f"http://127.0.0.1:{back}"
    serve = [sys.executable, "-m"]
    commands = [
        [*serve, "llava.serve.controller", "--host", "127.0.0.1", "--port", str(front), "--log-dir", "."],
        [
            *(*serve, "llava.serve.model_worker", "--host", "127.0.0.1", "--port", str(back), "--worker", worker),
            *("--controller", controller, "--model-path", str(llava_folder), "--device", "cpu", "--model-name", "tiny"),
        ],
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    processes = [subprocess.Popen(one, cwd=tmp_path, env=environment, stderr=subprocess.PIPE) for one in commands]
    try:
        client = ControllerClient(controller)

        def models():
            with contextlib.suppress(ValueError):  # not there yet
                return client.models()

        assert until(models, 240, pause=0.5) == ["tiny"]
        answer = stream(controller, request_for(max_new_tokens=200))
        next(answer)
        processes[1].send_signal(signal.SIGTERM)
        *_, document = answer
        assert (document["error_code"], document["figures"]["new_tokens"]) == (0, 200)
        until(lambda: models() == [], pause=0.2)
        assert processes[1].wait(20) in (0, -signal.SIGTERM)
        assert (tmp_path / "controller.log").read_text().count(worker) >= 2
    finally:
        for process in processes:
            process.kill()
            process.communicate()
