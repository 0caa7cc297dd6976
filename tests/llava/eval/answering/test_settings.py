"""Settings of answering programs as flags, and back."""

from dataclasses import fields, replace

import pytest

from llava.eval import model_vqa_loader, model_vqa_mmbench
from llava.eval.answering.settings import AnswerSettings

OTHERS = {
    "model_base": "base",
    "conv_mode": "vicuna_v1",
    "temperature": 0.5,
    "top_p": 0.25,
    "num_beams": 3,
    "max_new_tokens": 7,
    "seed": 5,
    "batch_size": 8,
    "workers": 0,
    "fresh": True,
    "device": "cpu",
    "dtype": "float16",
    "backend": "transformers",
    "frames": 4,
    "max_pixels": 1003520,
    "in_flight": 64,
}
SERVED = {"backend": "vllm", "server": "http://localhost:8000"}


def test_every_setting_goes_there_and_back():
    assert set(OTHERS) | {"more", "server"} == {field.name for field in fields(AnswerSettings)}
    assert AnswerSettings.parse([]) == AnswerSettings()
    for name, value in OTHERS.items():
        settings = replace(AnswerSettings(), **{name: value})
        assert AnswerSettings.parse(settings.flags()) == settings
    everything = AnswerSettings(**OTHERS, more=("--lang", "cn"))
    assert AnswerSettings.parse(everything.flags()) == everything
    served = AnswerSettings(**SERVED, in_flight=64)
    assert AnswerSettings.parse(served.flags()) == served


def test_the_programs_know_the_flags():
    args = model_vqa_loader.build_parser().parse_args(
        ["--model-path", "m", "--question-file", "q", *AnswerSettings(**OTHERS).flags()]
    )
    assert {name: getattr(args, name) for name in OTHERS} == OTHERS
    more = AnswerSettings(more=("--single-pred-prompt", "--lang", "cn")).flags()
    args = model_vqa_mmbench.build_parser().parse_args(["--model-path", "m", "--question-file", "q", *more])
    assert (args.single_pred_prompt, args.lang, args.temperature) == (True, "cn", 0.0)


def test_defaults_are_left_to_the_program():
    assert AnswerSettings().flags() == ["--temperature", "0.0"]


def test_a_bad_value_is_one_line():
    with pytest.raises(ValueError, match=r"argument --batch-size: invalid int value: 'many'"):
        AnswerSettings.parse(["--batch-size", "many"])
    with pytest.raises(ValueError, match=r"argument --temperature: invalid float value: 'hot'"):
        AnswerSettings.parse(["--temperature", "hot"])
