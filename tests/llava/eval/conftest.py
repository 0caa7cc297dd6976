from pathlib import Path

import pytest

from llava.eval.models.hf_answerer import HFAnswerer
from llava.eval.models.hf_checkpoint import HFCheckpoint, load_hf_checkpoint
from llava.eval.models.reply import Generation
from tests.llava.eval.media.videos import write_video
from tests.llava.eval.models.tiny import write_tiny_checkpoint


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory):
    """`hf_folder(family)`: a tiny checkpoint of that family, written once."""
    root, made = tmp_path_factory.mktemp("checkpoints"), {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = write_tiny_checkpoint(root / family, family)
        return made[family]

    return folder


@pytest.fixture(scope="session")
def hf_checkpoint(hf_folder):
    """`hf_checkpoint(family)`: that checkpoint loaded, three frames a video."""
    loaded: dict[str, HFCheckpoint] = {}

    def load(family: str) -> HFCheckpoint:
        if family not in loaded:
            loaded[family] = load_hf_checkpoint(str(hf_folder(family)), device="cpu", frames=3)
        return loaded[family]

    return load


@pytest.fixture(scope="session")
def answerer(hf_checkpoint):
    """`answerer(family, pruner)`: ready to say six words."""
    return lambda family, pruner="none", **settings: HFAnswerer(
        hf_checkpoint(family), pruner, Generation(**{"max_new_tokens": 6, **settings})
    )


@pytest.fixture(scope="session")
def video(tmp_path_factory):
    """A video of 20 frames of 64 x 48 pixels."""
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", 20)
