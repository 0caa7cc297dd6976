"""For methods that choose by the question, and for the laws."""

import pytest
import torch

from flowcut import TextTower
from tests.flowcut.seen import write_clip


@pytest.fixture(scope="session")
def whole_clip(tmp_path_factory):
    """The folder of a tiny CLIP with both halves, whose vision half has the size of the hosts' towers."""
    return write_clip(tmp_path_factory.mktemp("whole-clip"))


@pytest.fixture(scope="session")
def tower(whole_clip):
    """Its text tower."""
    return TextTower.load(str(whole_clip))


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def host(request):
    """The family of that name."""
    from laws import hosts

    return hosts()[request.param]


@pytest.fixture
def pruner(request):
    """The pruner of that name, with settings for the tiny models."""
    from laws import PRUNERS

    return PRUNERS[request.param]
