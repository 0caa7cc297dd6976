from pathlib import Path

import pytest

from llava.eval.answer import Generation
from llava.eval.hosts import HostAnswerer, HostCheckpoint, load_host
from tests.llava.eval.hosts.tiny import write_host
from tests.llava.eval.media.videos import write_video


@pytest.fixture(scope="session")
def host_folder(tmp_path_factory):
    """`host_folder(family)`: a tiny checkpoint of that family, written once."""
    root, made = tmp_path_factory.mktemp("hosts"), {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = write_host(root / family, family)
        return made[family]

    return folder


@pytest.fixture(scope="session")
def host(host_folder):
    """`host(family)`: that checkpoint loaded, three frames a video."""
    loaded: dict[str, HostCheckpoint] = {}

    def load(family: str) -> HostCheckpoint:
        if family not in loaded:
            loaded[family] = load_host(str(host_folder(family)), device="cpu", frames=3)
        return loaded[family]

    return load


@pytest.fixture(scope="session")
def answerer(host):
    """`answerer(family, pruner)`: ready to say six words."""
    return lambda family, pruner="none", **settings: HostAnswerer(
        host(family), pruner, Generation(**{"max_new_tokens": 6, **settings})
    )


@pytest.fixture(scope="session")
def video(tmp_path_factory):
    """A video of 20 frames of 64 x 48 pixels."""
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", 20)
