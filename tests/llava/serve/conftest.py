"""A tiny LLaVA behind the serving programs, and pictures to ask it about."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from llava.conversation import conv_templates
from llava.serve.turns import prompt_of


@pytest.fixture(scope="session")
def engine(checkpoint):
    from llava.serve.engine import Engine

    return Engine(checkpoint)


@pytest.fixture(scope="session")
def pictures():
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 255, (40, 56, 3), dtype=np.uint8)) for _ in range(2)]


@pytest.fixture(scope="session")
def as_base64():
    def convert(image, kind="PNG"):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        return base64.b64encode(buffer.getvalue()).decode()

    return convert


@pytest.fixture(scope="session")
def ask_about(checkpoint):
    """`ask_about(text, images)`: the prompt of a first question in the checkpoint's template."""

    def prompt(text, images=1):
        return prompt_of(conv_templates[checkpoint.mode], [(text, None)], images)

    return prompt


@pytest.fixture(scope="session")
def controller(engine):
    """A controller with a worker that serves `engine` as "tiny"."""
    pytest.importorskip("fastapi")
    from llava.serve.client import ControllerClient
    from llava.serve.controller import Controller, build_app
    from llava.serve.model_worker import ModelWorker
    from llava.serve.server import LocalServer
    from llava.serve.worker import Place

    known = Controller()

    def make(url):
        worker = ModelWorker(engine, Place(url), "tiny")
        known.register(url, False, worker.status())
        return worker.build_app()

    with LocalServer(build_app(known)) as front, LocalServer(make):
        yield ControllerClient(front.url)


@pytest.fixture
def files(pictures, tmp_path):
    """The paths of both pictures."""
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    return [str(tmp_path / "0.png"), str(tmp_path / "1.png")]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TEXT = "what is in this image"


@pytest.fixture
def request_for(ask_about, pictures, as_base64):
    def make(count=1, **more):
        images = [as_base64(picture) for picture in pictures[:count]]
        prompt = ask_about(TEXT, count)
        return {"model": "tiny", "prompt": prompt, "temperature": 0, "max_new_tokens": 6, "images": images, **more}

    return make
