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


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
