"""Everything together, in a real browser, with the embedded model."""

import json
from pathlib import Path
from time import sleep

import pytest

pytest.importorskip("gradio")
pytest.importorskip("selenium")

from scripts.serve_screenshot import Visitor, find_browser, running_demo

MODEL, SCENE = Path("playground/embedded"), Path("docs/images/scene.png")
TEXT = "What color is the star?"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.embedded,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium with chromedriver on this machine"),
]


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def visitor(logs):
    with (
        running_demo(str(MODEL), "--device", "cpu", "--log-dir", str(logs)) as url,
        Visitor(f"{url}/?model=embedded") as visitor,
    ):
        yield visitor


def test_a_visit(visitor, logs, tmp_path):
    assert visitor.find("#model input")[0].get_attribute("value") == "embedded"
    visitor.upload(SCENE)
    first = visitor.ask(TEXT)
    assert visitor.answers() == ["yellow"]
    assert "576 → 64" in first
    assert "encoder, layer by layer: 576" in first
    assert "first token sooner by" in first
    visitor.until(lambda: len(visitor.find("#kept img")) > 2)
    captions = visitor.text("#kept")
    assert "576 patches" in captions
    assert ": 64" in captions

    visitor.set_budget(32)
    assert "576 → 32" in visitor.again()
    visitor.until(lambda: ": 32" in visitor.text("#kept"))

    visitor.choose("#method", "none")
    unpruned = visitor.again()
    assert "576 → 576" in unpruned
    assert "sooner" not in unpruned
    visitor.choose("#method", "flowcut")
    compared = visitor.again()
    assert "visual tokens 32 576" in compared
    assert compared.split("first token sooner by ")[1][0].isdigit()

    second = visitor.ask("What shape is in the middle?")
    assert len(visitor.answers()) == 2
    assert "first token sooner by" in second

    visitor.find("#upvote")[0].click()
    visitor.until(lambda: "noted" in visitor.text("body"))
    [log] = logs.glob("*-conv.json")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["type"] for line in lines] == ["chat"] * 5 + ["upvote"]
    assert [line["pruner"] for line in lines[:3]] == ["flowcut:budget=64", "flowcut:budget=32", "none"]
    assert len(list(logs.glob("serve_images/*/*.jpg"))) == 1

    visitor.find("#clear")[0].click()
    visitor.until(lambda: not visitor.answers() and not visitor.find("#picture img"))

    visitor.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size < 300_000


def test_trouble_is_told_on_the_page(visitor):
    visitor.find("#send")[0].click()
    visitor.until(lambda: "there is no question; write one" in visitor.text("body"))
    visitor.upload(SCENE)
    visitor.choose("#method", "fastv")
    visitor.find("#question textarea")[0].send_keys(TEXT)
    visitor.find("#send")[0].click()
    visitor.until(lambda: visitor.answers())
    visitor.until(lambda: visitor.answers()[-1].startswith("ValueError: budget="))


def test_stop_ends_the_generation(engine, tmp_path):
    """The answer would take half a minute; the model is free again soon after the button."""
    from llava.serve.chatlog import ChatLog
    from llava.serve.client import ControllerClient
    from llava.serve.controller import Controller, build_app
    from llava.serve.gradio_web_server import build_parser, launch
    from llava.serve.model_worker import ModelWorker
    from llava.serve.page import PageSettings, build_page
    from llava.serve.server import LocalServer
    from llava.serve.worker import Place

    known, passes = Controller(), []

    def make(url):
        worker = ModelWorker(engine, Place(url), "tiny")
        known.register(url, False, worker.status())
        return worker.build_app()

    slow = engine.checkpoint.model.register_forward_pre_hook(lambda *_: passes.append(sleep(0.1)))
    with LocalServer(build_app(known)) as front, LocalServer(make):
        page = build_page(PageSettings(ControllerClient(front.url), ChatLog(tmp_path)))
        try:
            _, url, _ = launch(page, build_parser().parse_args([]), block=False)
            with Visitor(url) as visitor:
                visitor.choose("#method", "none")
                visitor.find("#question textarea")[0].send_keys("what is in this image")
                visitor.find("#send")[0].click()
                visitor.until(lambda: len(passes) > 10)
                visitor.find("#stop")[0].click()
                visitor.until(lambda: engine._lock.acquire(blocking=False))
                engine._lock.release()
                assert len(passes) < 400
                sleep(0.5)
                assert len(visitor.answers()) == 1
                assert visitor.answers()[0] not in ("", "…")
        finally:
            slow.remove()
            page.close()
