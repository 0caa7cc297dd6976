"""The page's programs, without a browser; test_browser.py has one."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

import gradio as gr

from flowcut.registry import METHODS
from llava.serve import demo, gradio_web_server
from llava.serve.chatlog import ChatLog
from llava.serve.client import ControllerClient
from llava.serve.controller import Controller, build_app
from llava.serve.examples import EXAMPLES
from llava.serve.gradio_web_server import build_parser, launch, settings_of
from llava.serve.layout import OFF, example
from llava.serve.page import Handlers, PageSettings, build_page
from llava.serve.protocol import WorkerStatus
from llava.serve.server import LocalServer
from llava.serve.session import Session
from llava.serve.side_by_side import SideBySide
from llava.utils import moderation_msg

# The workers below do not exist, and the page says so in a corner.
pytestmark = pytest.mark.filterwarnings("ignore:no valid answer", "ignore:no worker serves")


VALUES = ["a", 0.0, 1.0, 4, "Default", False, "none", 64, "", OFF, 64, ""]  # of `Widgets.wish`


@pytest.fixture(scope="module")
def idle():
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


def test_without_key_or_controller_it_refuses_in_one_line(idle, monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    flags = ["--log-dir", str(tmp_path), "--controller"]
    with pytest.raises(SystemExit, match=r"^error: moderation uses OpenAI's server and needs a key; set "):
        gradio_web_server.main([*flags, idle[0], "--moderate"])
    with pytest.raises(SystemExit, match=r"^error: no valid answer from http://127\.0\.0\.1:9/list_models"):
        gradio_web_server.main([*flags, "http://127.0.0.1:9"])


def settings(url, tmp_path, **more):
    return PageSettings(ControllerClient(url), ChatLog(tmp_path), **more)


class Visit:
    """What gradio hands to a handler of a request."""

    client = None

    def __init__(self, **parameters):
        self.query_params = parameters


def test_the_address_chooses_the_model(idle, tmp_path):
    handlers = Handlers(settings(idle[0], tmp_path))
    for parameters, expected in (({}, "a"), ({"model": "b"}, "b"), ({"model": "c"}, "a")):
        models, *_ = handlers.load(Visit(**parameters))
        assert (models.value, [name for name, _ in models.choices]) == (expected, ["a", "b"])


def test_once_and_reload(tmp_path):
    known = Controller()
    known.register("http://127.0.0.1:9", False, WorkerStatus(model_names=["a"]))
    with LocalServer(build_app(known)) as server:
        once, reload = (Handlers(settings(server.url, tmp_path, reload=reload)) for reload in (False, True))
        known.drop("http://127.0.0.1:9", "for the test")
        assert [name for name, _ in once.load(Visit())[0].choices] == ["a"]
        assert reload.load(Visit())[0].choices == []
        known.register("http://127.0.0.1:9", False, WorkerStatus(model_names=["b"]))
        reload.models = ["b"]
    with pytest.warns(UserWarning, match="no valid answer"):  # the controller is gone
        models, *_ = reload.load(Visit())
    assert [name for name, _ in models.choices] == ["b"]


def test_only_methods_that_the_worker_can_run_are_offered(tmp_path, monkeypatch):
    known = Controller()
    known.register("http://127.0.0.1:9", False, WorkerStatus(model_names=["a"]))
    with LocalServer(build_app(known)) as server:
        handlers = Handlers(settings(server.url, tmp_path))
        for methods, offered, value in (
            (["random", "flowcut"], ["none", "random", "flowcut"], "flowcut"),
            (["random"], ["none", "random"], OFF),
            ([], ["none"], OFF),
            (None, ["none", *METHODS], OFF),  # LLaVA's own worker prunes nothing
        ):
            status = WorkerStatus(model_names=["a"], methods=methods, visual_tokens=16)
            monkeypatch.setattr("llava.serve.page.status_of", lambda worker, status=status: status)
            first, hidden, _, second, budget, _, column = handlers.of_model("a")
            assert ([name for name, _ in first.choices], first.value, hidden.visible) == (offered, "none", False)
            assert ([name for name, _ in second.choices], second.value) == ([OFF, *offered], value)
            assert budget.visible is column.visible is (value != OFF)
            assert value == OFF or (budget.maximum, budget.value) == (16, 16)


def test_a_slider_has_the_range_that_the_method_declares(idle, tmp_path, monkeypatch):
    handlers = Handlers(settings(idle[0], tmp_path))
    status = WorkerStatus(model_names=["a"], methods=["fastv"], visual_tokens=576, budgets={"fastv": 37})
    monkeypatch.setattr("llava.serve.page.status_of", lambda worker: status)
    monkeypatch.setattr(handlers.controller, "worker", lambda model: "")
    for budget, written, expected in (
        (20, "", (37, 37)),
        (64, "", (37, 64)),
        (20, "layer=1", (1, 20)),
        (999, "", (37, 576)),
    ):
        slider, text = handlers.limits("a", "fastv", budget, written)
        assert (slider.minimum, slider.value, slider.maximum) == (*expected, 576)
        assert slider.label == f"Budget ({expected[0]} to 576)"
        assert text.placeholder == "for example layer=2"
    slider, text = handlers.limits("a", "none", 64, "layer=1")
    assert not slider.visible
    assert text.value == ""


def test_an_upload_is_not_opened_before_its_format_is_checked(idle, tmp_path, monkeypatch):
    page = build_page(settings(idle[0], tmp_path))
    [image] = [block for block in page.blocks.values() if block.elem_id == "picture"]
    monkeypatch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("it was opened"))
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    payload = gr.image_utils.ImageData(path=str(tmp_path / "a.jpg"), orig_name="a.jpg")
    assert image.preprocess(payload) == payload.path
    assert image.preprocess(None) is None
    with pytest.raises(gr.Error, match="the picture is not a file; upload one"):
        image.preprocess(gr.image_utils.ImageData(url="data:image/png;base64,aaaa"))


def test_a_broken_picture_is_told_in_one_line(idle, tmp_path):
    handlers = Handlers(settings(idle[0], tmp_path))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(gr.Error, match="the picture cannot be read") as error:
        handlers.ask(SideBySide(), "what is this", str(tmp_path / "a.png"), *VALUES)
    assert "\n" not in error.value.message
    with pytest.warns(UserWarning, match="the picture cannot be read"):
        assert handlers.uploaded(str(tmp_path / "a.png")) is None
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    assert handlers.uploaded(str(tmp_path / "b.png")) == str(tmp_path / "b.png")
    assert handlers.uploaded(None) is None


def test_a_missing_picture_is_told_where_the_model_needs_one(idle, tmp_path, monkeypatch):
    handlers, session = Handlers(settings(idle[0], tmp_path)), SideBySide()
    status = WorkerStatus(model_names=["a"], needs_picture=True)
    monkeypatch.setattr("llava.serve.session.status_of", lambda worker: status)
    with pytest.raises(gr.Error, match="answers questions about pictures only; upload one, or choose an example"):
        handlers.ask(session, "what is this", None, *VALUES)
    picture, question = example(0)
    assert handlers.ask(session, question, picture, *VALUES) is session
    assert [[turn["content"] for turn in side.shown()] for side in session.sides] == [[question, "…"], []]


def test_examples_are_small_pictures_that_the_script_draws(tmp_path):
    from scripts import serve_examples

    serve_examples.main(["--out", str(tmp_path)])
    for drawn in EXAMPLES:
        assert drawn.picture.stat().st_size < 50_000
        fresh = np.asarray(Image.open(tmp_path / drawn.picture.name), dtype=int)
        assert abs(fresh - np.asarray(Image.open(drawn.picture))).mean() < 3  # decoders differ a little


def test_nothing_is_logged_without_a_folder(idle, tmp_path):
    assert build_parser().parse_args([]).log_dir is None
    assert demo.build_parser().parse_args([]).log_dir is None
    for folder, likes in ((None, 0), (str(tmp_path), 2)):
        args = build_parser().parse_args(["--log-dir", folder] if folder else [])
        page = build_page(settings_of(args, idle[0], reload=False))
        assert len([one for one in page.fns.values() if ("like" in {event for _, event in one.targets})]) == likes
        assert any("logged" in str(block.value) for block in titles(page)) == bool(likes)
    handlers = Handlers(PageSettings(ControllerClient(idle[0])))
    handlers._log((Session(), Session()), [], Visit())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", [demo, gradio_web_server])
def test_ports_are_checked(program, capsys):
    with pytest.raises(SystemExit):
        program.build_parser().parse_args(["--port", "70000"])
    assert "'70000' is not a port; give a number from 1 to 65535" in capsys.readouterr().err


def test_a_flagged_question_is_not_asked(idle, tmp_path, monkeypatch):
    handlers = Handlers(settings(idle[0], tmp_path, moderate=True))
    monkeypatch.setattr("llava.serve.page.violates_moderation", lambda text: text == "bad")
    session = SideBySide()
    with pytest.raises(gr.Error) as error:
        handlers.ask(session, "bad", None, *VALUES)
    assert error.value.message == moderation_msg
    assert session.sides[0].conversation is None
    with pytest.raises(gr.Error, match="there is no question"):
        handlers.ask(session, "", None, *VALUES)
    with pytest.raises(gr.Error, match="no answer to judge"):
        handlers.vote(0, session, True, Visit())
    with pytest.raises(gr.Error, match="nothing to ask again"):
        handlers.again(session, *VALUES)


def test_it_listens_on_this_machine_alone_and_embeds_without_title(idle, tmp_path, monkeypatch):
    args = build_parser().parse_args(["--log-dir", str(tmp_path), "--embed"])
    page = build_page(settings_of(args, idle[0], reload=False))
    assert page.analytics_enabled is False
    assert not titles(page)
    assert titles(build_page(settings(idle[0], tmp_path)))
    given = {}
    monkeypatch.setattr(page, "queue", lambda **more: given.update(more))
    monkeypatch.setattr(page, "launch", lambda **more: given.update(more))
    launch(page, args)
    assert (given["server_name"], given["share"]) == ("127.0.0.1", False)
    assert given["default_concurrency_limit"] == 16


def titles(page):
    return [block for block in page.blocks.values() if isinstance(block, gr.Markdown) and "# LLaVA" in str(block.value)]


def test_an_answer_from_the_question_to_the_figures(controller, files):
    """What the page's widgets get, in the order of `Widgets.outputs`."""
    handlers, session = Handlers(PageSettings(controller)), SideBySide()
    values = ["tiny", 0.0, 1.0, 3, "Default", True, "none", 64, "", "fastervlm", 5, ""]
    handlers.ask(session, "what is in this image", files[0], *values)
    first, *growing, last = handlers.answer(Visit(), session, *values)
    assert first[1] == ""  # the question's box
    assert [first[2].label, first[5].label] == ["none", "fastervlm:budget=5"]
    assert first[9].value == "<p>Answering, then measuring …</p>"
    assert len(growing) >= 4
    left, right = session.sides
    assert (last[2], last[5]) == (left.shown(), right.shown())
    assert [last[3].label, last[6].label] == ["all 16 patches", "5 of 16 patches"]
    assert [last[4].visible, last[7].visible, last[8].visible] == [False, True, True]  # layers of each, both together
    assert "medians of 5 runs" in last[9].value
    assert last[10].count("<tr>") == 3
    stopped = handlers.stop(session)
    assert stopped[1:3] == (left.shown(), right.shown())
    cleared = handlers.clear(session)
    assert (cleared[2], cleared[5], cleared[10], cleared[11]) == ([], [], last[10], None)


def test_an_answer_of_one_method_hides_the_other_side(controller, files):
    handlers, session = Handlers(PageSettings(controller)), SideBySide()
    values = ["tiny", 0.0, 1.0, 1, "Default", False, "none", 64, "", OFF, 64, ""]
    handlers.ask(session, "what is in this image", files[0], *values)
    first, *_, last = handlers.answer(Visit(), session, *values)
    assert first[9].value == "<p>Answering …</p>"
    assert last[6].visible is last[7].visible is False
    assert "No times were measured" in last[9].value
    with pytest.raises(gr.Error, match="nothing to ask again"):
        handlers.again(SideBySide(), *values)
    assert handlers.again(session, *values) is session
