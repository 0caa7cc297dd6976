"""The chat in the terminal."""

import io
import re

import pytest
import torch

from llava.eval.run_llava import eval_model
from llava.serve.cli import Chat, build_parser, converse, main, picture_names

TEXT = "what is in this image"


@pytest.fixture
def chat(engine, pictures):
    def make(*flags, images=1):
        args = build_parser().parse_args(["--model-path", "m", "--temperature", "0", "--max-new-tokens", "6", *flags])
        return Chat(engine, pictures[:images], args)

    return make


def talk(chat, *lines):
    """What is printed, prompts of the input included, when these lines are typed before the end of input."""
    out, typed = io.StringIO(), iter(lines)

    def read(prompt):
        out.write(prompt)
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    converse(chat, read, out)
    return out.getvalue()


def test_two_turns_and_the_end_of_input(chat):
    mine = chat()
    said = talk(mine, TEXT, "how many cats")
    (first, one), (second, two) = mine.turns
    assert (first, second) == (TEXT, "how many cats")
    # Answers may hold anything a random model says, line breaks included.
    assert re.fullmatch(r"USER: ASSISTANT: (.+)USER: ASSISTANT: (.+)USER: exit\.\.\.\n", said, re.DOTALL)
    assert one in said
    assert two in said


def test_an_empty_line_ends_it(chat):
    assert talk(chat(), "") == "USER: exit...\n"


def test_the_history_has_one_image_and_no_special_tokens(chat, engine, monkeypatch):
    """Even when the model ends its answer itself: its `</s>` is the template's, not the answer's."""
    tokenizer = engine.checkpoint.tokenizer
    mine = chat()
    ids = torch.tensor([[*tokenizer("two cats").input_ids[1:], tokenizer.eos_token_id]])

    def generate(*_, stopping_criteria, **__):
        for end in range(1, ids.shape[1] + 1):
            stopping_criteria[0](ids[:, :end], None)
        return ids

    monkeypatch.setattr(engine.checkpoint.model, "generate", generate)
    talk(mine, TEXT, "how many")
    assert mine.turns == [(TEXT, "two cats"), ("how many", "two cats")]
    prompt = mine.prompt("why")
    assert prompt.count("<image>") == 1
    assert prompt.endswith(
        f"USER: <image>\n{TEXT} ASSISTANT: two cats</s>USER: how many ASSISTANT: two cats</s>USER: why ASSISTANT:"
    )


def test_it_answers_as_run_llava_does(chat, llava_folder, pictures, tmp_path, capsys):
    pictures[0].save(tmp_path / "a.png")
    given = {"model_path": str(llava_folder), "query": TEXT, "image_file": str(tmp_path / "a.png"), "temperature": 0}
    for pruner in ("none", "fastervlm:budget=5"):
        values = type("Args", (), {**given, "max_new_tokens": 6, "pruner": pruner, "device": "cpu"})
        mine = chat()
        mine.engine = type(mine.engine)(mine.engine.checkpoint, pruner)
        mine.say(TEXT, io.StringIO())
        assert mine.turns[0][1] == eval_model(values())


def test_without_a_picture_and_with_two(chat):
    assert "<image>" not in chat(images=0).prompt(TEXT)
    assert talk(chat(images=0), TEXT).endswith("USER: exit...\n")
    assert chat(images=2).prompt(TEXT).count("<image>\n") == 2
    assert talk(chat(images=2), TEXT).endswith("USER: exit...\n")
    assert picture_names(["a.png,b.png", "http://c/d.png"]) == ["a.png", "b.png", "http://c/d.png"]


def test_a_typed_placeholder_is_no_second_image(chat):
    assert chat().prompt("what is <image> in this").count("<image>") == 1


def test_debug_shows_prompt_and_token_counts(chat):
    said = talk(chat("--debug"), TEXT)
    assert repr(f"<image>\n{TEXT} ASSISTANT:")[1:-1] in said
    assert "'patches': 16, 'visual_tokens': 16" in said


def test_an_error_does_not_end_the_chat(chat, engine, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried")

    monkeypatch.setattr(engine.checkpoint.model, "generate", fail)
    mine = chat()
    said = talk(mine, TEXT)
    assert "ASSISTANT: error: OutOfMemoryError: CUDA out of memory. Tried\nUSER: exit...\n" in said
    assert mine.turns == []


def test_ctrl_c_ends_an_answer_only(chat, engine, monkeypatch):
    def interrupted(question):
        raise KeyboardInterrupt
        yield

    mine = chat()
    monkeypatch.setattr(engine, "ask", interrupted)
    assert talk(mine, TEXT) == "USER: ASSISTANT:  (interrupted)\nUSER: exit...\n"


def test_the_command_line(llava_folder, pictures, tmp_path, monkeypatch, capsys):
    pictures[0].save(tmp_path / "a.png")
    flags = ["--model-path", str(llava_folder), "--device", "cpu", "--temperature", "0", "--max-new-tokens", "4"]
    lines = iter([TEXT, ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    main([*flags, "--image-file", str(tmp_path / "a.png"), "--pruner", "fastervlm:budget=5", "--debug"])
    said = capsys.readouterr().out
    assert said.startswith("ASSISTANT: ")
    assert "'visual_tokens': 5" in said
    assert said.endswith("exit...\n")


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--image-file", "/nowhere/a.png", "image /nowhere/a.png does not exist"),
        ("--image-file", "http://127.0.0.1:9/a.png", "is not a public address"),
        ("--model-path", "/nowhere/model", "/nowhere/model"),
        ("--pruner", "flowcut:budget=0", "budget=0"),
        ("--conv-mode", "v7", "conversation mode 'v7' is unknown"),
    ],
)
def test_bad_input_is_one_line(llava_folder, flag, value, said):
    given = {"--model-path": str(llava_folder), "--device": "cpu", flag: value}
    with pytest.raises(SystemExit) as end:
        main([part for pair in given.items() for part in pair])
    assert str(end.value).startswith("error: ")
    assert said in str(end.value)
    assert "\n" not in str(end.value)


def test_flags_and_defaults_are_llavas():
    args = build_parser().parse_args(["--model-path", "m", "--image-file", "a", "--image-file", "b"])
    assert (args.device, args.temperature, args.max_new_tokens, args.conv_mode) == ("cuda", 0.2, 512, None)
    assert (args.load_8bit, args.load_4bit, args.debug, args.image_file) == (False, False, False, ["a", "b"])
