"""Cog's predictor, with the few names of `cog` that it uses."""

import sys
import types

import pytest

from llava.eval.models.llava_answerer import LlavaAnswerer
from llava.eval.models.reply import Generation


@pytest.fixture
def predictor(llava_folder, monkeypatch):
    cog = types.ModuleType("cog")
    cog.BasePredictor = object
    cog.Path = str
    cog.ConcatenateIterator = list
    cog.Input = lambda default=None, **_: default
    monkeypatch.setitem(sys.modules, "cog", cog)
    monkeypatch.delitem(sys.modules, "llava.serve.predict", raising=False)
    from llava.serve import predict

    monkeypatch.setattr(predict, "CHECKPOINT", str(llava_folder))
    made = predict.Predictor()
    made.setup()
    yield made
    sys.modules.pop("llava.serve.predict")


def test_its_pieces_are_the_evaluations_answer(predictor, checkpoint, pictures, tmp_path):
    pictures[0].save(tmp_path / "a.png")
    for pruner in ("none", "fastervlm:budget=5"):
        pieces = list(
            predictor.predict(str(tmp_path / "a.png"), "how many cats", 1.0, 0.0, max_tokens=6, pruner=pruner)
        )
        [reply] = LlavaAnswerer(checkpoint, pruner, Generation(max_new_tokens=6))(["how many cats"], [pictures[:1]])
        assert len(pieces) > 1
        assert "".join(pieces).strip() == reply.text
