"""The page's programs, without a browser; test_browser.py has one."""

from pathlib import Path

import pytest

pytest.importorskip("gradio")

import gradio as gr

from flowcut.registry import METHODS
from llava.serve import demo, gradio_web_server
from llava.serve.chatlog import ChatLog
from llava.serve.client import ControllerClient
from llava.serve.controller import Controller, build_app
from llava.serve.gradio_web_server import build_parser, launch, settings_of
from llava.serve.page import Handlers, PageSettings, build_page
from llava.serve.protocol import WorkerStatus
from llava.serve.server import LocalServer
from llava.serve.session import Session
from llava.utils import moderation_msg

# The workers below do not exist, and the page says so in a corner.
pytestmark = pytest.mark.filterwarnings("ignore:no proper answer", "ignore:no worker serves")


@pytest.fixture(scope="module")
def controller():
    known = Controller()
    for name, address in (("b", "http://127.0.0.1:9"), ("a", "http://127.0.0.1:10")):  # nobody there
        known.register(address, False, WorkerStatus(model_names=[name]))
    with LocalServer(build_app(known)) as server:
        yield server.url, known


def test_flags_are_llavas_but_for_the_host():
    args = build_parser().parse_args(["--controller", "http://c:1"])
    assert (args.controller_url, args.port, args.concurrency_count) == ("http://c:1", None, 16)
    assert (args.model_list_mode, args.share, args.moderate, args.embed) == ("once", False, False, False)
    assert args.host == "127.0.0.1"
    assert demo.build_parser().parse_args([]).model_path == "playground/embedded"


def test_without_key_or_controller_it_refuses_in_one_line(controller, monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    flags = ["--log-dir", str(tmp_path), "--controller"]
    with pytest.raises(SystemExit, match=r"^error: moderation asks OpenAI and needs a key; set OPENAI_API_KEY"):
        gradio_web_server.main([*flags, controller[0], "--moderate"])
    with pytest.raises(SystemExit, match=r"^error: no proper answer from http://127\.0\.0\.1:9/list_models"):
        gradio_web_server.main([*flags, "http://127.0.0.1:9"])


def settings(url, tmp_path, **more):
    return PageSettings(ControllerClient(url), ChatLog(tmp_path), **more)


class Visit:
    """What gradio hands to a handler of a request."""

    client = None

    def __init__(self, **parameters):
        self.query_params = parameters


def test_the_address_chooses_the_model(controller, tmp_path):
    handlers = Handlers(settings(controller[0], tmp_path))
    for parameters, expected in (({}, "a"), ({"model": "b"}, "b"), ({"model": "c"}, "a")):
        models, _, _ = handlers.load(Visit(**parameters))
        assert (models.value, [name for name, _ in models.choices]) == (expected, ["a", "b"])


def test_once_and_reload(tmp_path):
    known = Controller()
    known.register("http://127.0.0.1:9", False, WorkerStatus(model_names=["a"]))
    with LocalServer(build_app(known)) as server:
        once, reload = (Handlers(settings(server.url, tmp_path, reload=reload)) for reload in (False, True))
        known.drop("http://127.0.0.1:9", "for the test")
        assert [name for name, _ in once.load(Visit())[0].choices] == ["a"]
        assert reload.load(Visit())[0].choices == []


def test_only_methods_that_the_worker_can_run_are_offered(tmp_path, monkeypatch):
    known = Controller()
    known.register("http://127.0.0.1:9", False, WorkerStatus(model_names=["a"]))
    with LocalServer(build_app(known)) as server:
        handlers = Handlers(settings(server.url, tmp_path))
        for methods, offered, value in (
            (["random", "flowcut"], ["none", "random", "flowcut"], "flowcut"),
            (["random"], ["none", "random"], "none"),
            ([], ["none"], "none"),
            (None, ["none", *METHODS], "flowcut"),
        ):
            status = WorkerStatus(model_names=["a"], methods=methods, visual_tokens=16)
            monkeypatch.setattr("llava.serve.page.status_of", lambda worker, status=status: status)
            method, budget = handlers.of_model("a")
            assert ([name for name, _ in method.choices], method.value) == (offered, value)
            assert (budget.maximum, budget.value) == (16, 16)


def test_an_upload_is_not_opened_before_its_format_is_checked(controller, tmp_path, monkeypatch):
    page = build_page(settings(controller[0], tmp_path))
    [image] = [block for block in page.blocks.values() if isinstance(block, gr.Image)]
    monkeypatch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("it was opened"))
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    payload = gr.image_utils.ImageData(path=str(tmp_path / "a.jpg"), orig_name="a.jpg")
    assert image.preprocess(payload) == payload.path
    assert image.preprocess(None) is None
    with pytest.raises(gr.Error, match="the picture is no file; upload one"):
        image.preprocess(gr.image_utils.ImageData(url="data:image/png;base64,aaaa"))


def test_a_broken_picture_is_told_in_one_line(controller, tmp_path):
    handlers = Handlers(settings(controller[0], tmp_path))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(gr.Error, match="the picture cannot be read") as error:
        handlers.ask(Session(), "what is this", str(tmp_path / "a.png"), "a")
    assert "\n" not in error.value.message


def test_visitors_files_do_not_go_into_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build_parser().parse_args([]).log_dir == str(tmp_path / "llava" / "serve")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert demo.build_parser().parse_args([]).log_dir == str(Path.home() / ".cache" / "llava" / "serve")


@pytest.mark.parametrize("program", [demo, gradio_web_server])
def test_ports_are_checked(program, capsys):
    with pytest.raises(SystemExit):
        program.build_parser().parse_args(["--port", "70000"])
    assert "'70000' is no port; give a number from 1 to 65535" in capsys.readouterr().err


def test_a_flagged_question_is_not_asked(controller, tmp_path, monkeypatch):
    handlers = Handlers(settings(controller[0], tmp_path, moderate=True))
    monkeypatch.setattr("llava.serve.page.violates_moderation", lambda text: text == "bad")
    session = Session()
    with pytest.raises(gr.Error) as error:
        handlers.ask(session, "bad", None, "a")
    assert error.value.message == moderation_msg
    assert session.conversation is None
    with pytest.raises(gr.Error, match="there is no question"):
        handlers.ask(session, "", None, "a")
    with pytest.raises(gr.Error, match="no answer to judge"):
        handlers.vote("upvote", session, Visit())
    with pytest.raises(gr.Error, match="nothing to ask again"):
        handlers.again(session)


def test_it_listens_on_this_machine_alone_and_embeds_without_title(controller, tmp_path, monkeypatch):
    args = build_parser().parse_args(["--log-dir", str(tmp_path), "--embed"])
    page = build_page(settings_of(args, controller[0], reload=False))
    assert page.analytics_enabled is False
    assert not titles(page)
    assert titles(build_page(settings(controller[0], tmp_path)))
    given = {}
    monkeypatch.setattr(page, "queue", lambda **more: given.update(more))
    monkeypatch.setattr(page, "launch", lambda **more: given.update(more))
    launch(page, args)
    assert (given["server_name"], given["share"]) == ("127.0.0.1", False)
    assert given["default_concurrency_limit"] == 16


def titles(page):
    return [block for block in page.blocks.values() if isinstance(block, gr.Markdown) and "# LLaVA" in str(block.value)]
