"""Everything together, in a real browser, with the embedded model."""

import json
from pathlib import Path
from time import sleep

import pytest

pytest.importorskip("gradio")
pytest.importorskip("selenium")

from selenium.webdriver.common.keys import Keys

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
        running_demo("--model-path", str(MODEL), "--device", "cpu", "--log-dir", str(logs)) as url,
        Visitor(f"{url}/?model=embedded") as visitor,
    ):
        yield visitor


def test_a_visit(visitor, logs, tmp_path):
    assert visitor.find("#model input")[0].get_attribute("value") == "embedded"
    visitor.upload(SCENE)
    first = visitor.ask(TEXT)
    assert [visitor.answers(side) for side in (1, 2)] == [["yellow"], ["yellow"]]
    assert "576 → 576 576 → 64" in first
    assert "medians of 5 runs, the methods in turns" in first
    assert "all 576 patches" in visitor.text("#kept-1")
    assert "64 of 576 patches" in visitor.text("#kept-2")
    visitor.find("#details button")[0].click()
    visitor.until(lambda: "after encoder layer" in visitor.text("#layers-2"))

    visitor.set_budget(32)
    assert "576 → 32" in visitor.again()
    visitor.choose("#first-method", "tome")
    assert "576 → 64 576 → 32" in visitor.again()
    assert "576 patches became 64 tokens" in visitor.text("#kept-1")
    visitor.choose("#second-method", "no second method")
    visitor.until(lambda: not any(side.is_displayed() for side in visitor.find("#side-2")))
    assert "in turns" not in visitor.ask("What shape is in the middle?")
    assert len(visitor.answers()) == 2
    assert [line.split()[0] for line in visitor.history()] == ["4", "3", "3", "2", "2", "1", "1"]

    visitor.until(lambda: visitor.find("#chat-1 button[aria-label='Like']"))[-1].click()
    visitor.until(lambda: "noted" in visitor.text("body"))
    [log] = logs.glob("*-conv.json")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["type"] for line in lines] == ["chat"] * 7 + ["upvote"]
    assert [line["pruner"] for line in lines[:4]] == ["none", "flowcut:budget=64", "none", "flowcut:budget=32"]
    assert len(list(logs.glob("serve_images/*/*.jpg"))) == 1

    visitor.find("#clear")[0].click()
    visitor.until(lambda: not visitor.answers() and not visitor.find("#picture img"))
    assert len(visitor.history()) == 7
    visitor.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size < 300_000


def test_trouble_is_told_on_the_page(visitor, tmp_path):
    visitor.browser.refresh()
    visitor.until(lambda: visitor.find("#second-budget"))
    question = visitor.find("#question textarea")[0]
    visitor.find("#send")[0].click()
    visitor.until(lambda: "there is no question; write one" in visitor.text("body"))
    question.send_keys(TEXT, Keys.ENTER)
    visitor.until(lambda: "answers questions about pictures only" in visitor.text("body"))
    assert question.get_attribute("value") == TEXT
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    visitor.find("#picture input[type=file]")[0].send_keys(str(tmp_path / "broken.png"))
    visitor.until(lambda: "the picture cannot be read" in visitor.text("body"))
    visitor.until(lambda: not visitor.find("#picture img"))
    visitor.choose("#second-method", "fastv")  # of the four layers, two read everything
    visitor.until(lambda: visitor.find("#second-budget input[type=range]")[0].get_attribute("min") == "289")
    visitor.example()
    visitor.until(lambda: "square" in question.get_attribute("value"))
    question.send_keys(Keys.ENTER)
    visitor.until(lambda: len(visitor.history()) == 2)
    assert "576 → 576 → 2" in visitor.text("#figures")
    assert "Error" not in visitor.text("#answers")


def test_a_telephone_shows_the_question_first_and_scrolls_down_only(visitor):
    with Visitor(visitor.url, (390, 844), dark=True) as narrow:
        narrow.example()
        narrow.find("#send")[0].click()
        narrow.until(lambda: len(narrow.history()) == 2)
        tops = [narrow.find(name)[0].location["y"] for name in ("#asking", "#picture", "#answers", "#wish")]
        assert tops == sorted(tops)
        assert tops[0] < 120
        assert narrow.browser.execute_script("return document.documentElement.scrollWidth") == 390


@pytest.fixture
def slow_page(engine):
    """The page's address, the generated tokens, and the worker's server. A token takes 0.1 s."""
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
    with LocalServer(build_app(known)) as front, LocalServer(make) as worker:
        page = build_page(PageSettings(ControllerClient(front.url)))
        try:
            _, url, _ = launch(page, build_parser().parse_args([]), block=False)
            yield url, passes, worker
        finally:
            slow.remove()
            page.close()


def begin(visitor, passes):
    passes.clear()
    visitor.until(lambda: visitor.find("#question textarea"))[0].send_keys("what is in this image")
    visitor.find("#send")[0].click()
    visitor.until(lambda: len(passes) > 10)


def test_stopping_reloading_and_a_lost_worker_end_the_generation(engine, slow_page):
    """The answer would take a minute; the model is free again soon after."""
    url, passes, worker = slow_page
    with Visitor(url) as visitor:
        for end in (lambda: visitor.find("#stop")[0].click(), visitor.browser.refresh):
            begin(visitor, passes)
            end()
            visitor.until(lambda: engine._lock.acquire(blocking=False))
            engine._lock.release()
            assert len(passes) < 400
            if visitor.answers():  # after a reload the page is as at the first visit
                assert visitor.answers()[0] not in ("", "…")
        begin(visitor, passes)
        worker.stop()
        visitor.until(lambda: "WorkerLostError" in visitor.text("#chat-1"))
        visitor.find("#question textarea")[0].send_keys("and now", Keys.ENTER)
        visitor.until(lambda: "is gone" in visitor.text("#chat-1"))
