"""The VLMEvalKit launcher, with a stand-in that has the kit's documented surface."""

import json
import sys

import pytest
from PIL import Image

from llava.eval.models.load import load_answerer
from llava.eval.models.reply import Generation
from llava.integrations import vlmevalkit
from tests.llava.eval.models.tiny import pictures, write_tiny_checkpoint

RUN = """
import argparse
import json
import os
from pathlib import Path

from vlmeval.config import supported_VLM


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--model", nargs="+", required=True)
    parser.add_argument("--messages", required=True)
    args = parser.parse_args()
    [name] = args.model
    model = supported_VLM[name]()
    messages = json.loads(Path(args.messages).read_text())
    said = [model.generate(message, dataset=args.data[0]) for message in messages]
    Path(args.messages).with_name("said.json").write_text(json.dumps({"model": name, "data": args.data, "said": said}))
"""
BASE = """
class BaseModel:
    INTERLEAVE = False

    def __init__(self):
        self.dump_image_func = None

    def generate(self, message, dataset=None):
        assert all(set(part) == {"type", "value"} for part in message)
        return self.generate_inner(message, dataset)

    def generate_inner(self, message, dataset=None):
        raise NotImplementedError
"""


@pytest.fixture
def kit(tmp_path):
    """A folder with `run.py` and the package `vlmeval`; the package is forgotten afterwards."""
    folder = tmp_path / "VLMEvalKit"
    (folder / "vlmeval" / "vlm").mkdir(parents=True)
    for name in ("vlmeval/__init__.py", "vlmeval/vlm/__init__.py"):
        (folder / name).touch()
    (folder / "run.py").write_text(RUN)
    (folder / "vlmeval" / "vlm" / "base.py").write_text(BASE)
    (folder / "vlmeval" / "config.py").write_text("supported_VLM = {'taken': None}\n")
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "vlmeval"]:
        del sys.modules[name]


@pytest.fixture
def messages(tmp_path):
    """Two messages about pictures; the second shows two, between texts."""
    for number, picture in enumerate(pictures(3)):
        picture.save(tmp_path / f"{number}.png")
    image = [{"type": "image", "value": str(tmp_path / f"{number}.png")} for number in range(3)]
    text = [{"type": "text", "value": text} for text in ("how many cats", "hello red star", "two")]
    written = [[image[0], text[0]], [text[1], image[1], image[2], text[2]]]
    (tmp_path / "messages.json").write_text(json.dumps(written))
    return tmp_path / "messages.json"


def test_the_kit_is_started_with_the_model(kit, messages, tmp_path):
    model, before, path = write_tiny_checkpoint(tmp_path / "model", "qwen2_vl"), list(sys.argv), list(sys.path)
    vlmevalkit.main(
        [
            *("--kit", str(kit), "--name", "pruned", "--model-path", str(model), "--pruner", "random:budget=5"),
            *("--device", "cpu", "--max-new-tokens", "6", "--", "--data", "MME", "--messages", str(messages)),
        ]
    )
    told = json.loads((tmp_path / "said.json").read_text())
    assert (told["model"], told["data"]) == ("pruned", ["MME"])
    answerer = load_answerer(
        str(model), device="cpu", pruner="random:budget=5", generation=Generation(max_new_tokens=6)
    )
    images = [Image.open(tmp_path / f"{number}.png").convert("RGB") for number in range(3)]
    replies = answerer(["how many cats", "hello red star\ntwo"], [images[:1], images[1:]])
    assert told["said"] == [reply.text for reply in replies]
    assert told["said"][0] != told["said"][1]
    assert (sys.argv, sys.path) == (before, path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [(("--name", "taken"), "has a model taken already; give another --name"), ((), "run.py does not exist")],
)
def test_what_does_not_fit_is_one_line(kit, messages, flags, message):
    (kit / "run.py").unlink()
    with pytest.raises(SystemExit) as end:
        vlmevalkit.main(["--kit", str(kit), "--model-path", "anything", *flags, "--", "--data", "MME"])
    assert str(end.value).startswith("error: ")
    assert message in str(end.value)


def test_without_the_kit_it_is_named():
    with pytest.raises(ValueError, match="VLMEvalKit cannot be imported"):
        vlmevalkit.model_class()


def test_parts_that_cannot_be_shown_are_refused(checkpoint):
    from llava.eval.models.llava_answerer import LlavaAnswerer

    with pytest.raises(ValueError, match=r"a part of type 'video' cannot be shown to tiny-llava-v1\.5"):
        vlmevalkit.answer(LlavaAnswerer(checkpoint), [{"type": "video", "value": "a.mp4"}])
