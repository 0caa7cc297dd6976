"""What all programs share: flags in every spelling, how programs end, extras, and bars in a log."""

import io
import os
import sys

import pytest

import flowcut.api
from flowcut import FUNCTIONS, attach
from flowcut.cli import command_line
from flowcut.cli.command_line import Parser, print_result, program, refuse, run, told_in_one_line
from flowcut.cli.extras import extra_of, extras
from flowcut.cli.progress import progress_bar


def parser():
    made = Parser("A program.")
    made.add_argument("--image", also=["--image-file", "--img_file"], dest="image")
    made.add_argument("--top_p", type=float)
    made.add_argument("--max-new-tokens", type=int)
    made.add_argument_group("judge").add_argument("--judge-model")
    made.add_argument("rest", nargs="*")
    return made


@pytest.mark.parametrize(
    "given",
    [
        ["--image", "a", "--top_p", "0.5", "--max-new-tokens", "3", "--judge-model", "m"],
        ["--image-file", "a", "--top-p", "0.5", "--max_new_tokens", "3", "--judge_model", "m"],
        ["--image_file=a", "--top-p=0.5", "--max_new_tokens=3", "--judge_model=m"],
        ["--img-file", "a", "--top_p", "0.5", "--max-new", "3", "--judge-mod", "m"],
    ],
)
def test_hyphens_underscores_and_older_names(given):
    args = parser().parse_args(given)
    assert (args.image, args.top_p, args.max_new_tokens, args.judge_model) == ("a", 0.5, 3, "m")


def test_older_names_are_not_shown_and_values_are_left_alone():
    text = parser().format_help()
    assert "--image IMAGE" in text
    assert "file" not in text.replace("A program.", "")
    assert parser().parse_args(["--image", "a_b-c", "--", "--max_new_tokens"]).rest == ["--max_new_tokens"]


def test_a_wrong_flag_ends_with_status_2_and_what_was_typed(monkeypatch, capsys):
    monkeypatch.setattr(command_line, "_running", command_line.Running("a.module", "llava ask", []))
    with pytest.raises(SystemExit) as end:
        parser().parse_args(["--imagine", "a", "--wrong"])
    assert end.value.code == 2
    [usage, error] = capsys.readouterr().err.splitlines()
    assert usage == "usage: llava ask [flags]; --help explains them"
    assert error == "error: unrecognized arguments: --imagine --wrong"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "error: the following arguments are required: benchmark, --model-path/--model, --size"),
        (["b", "--model-path"], "error: argument --model-path/--model: expected one argument"),
        (["b", "--model-path", "m", "--size", "1", "2", "--kind", "c"], "choose from"),
        (
            ["b", "--model-path", "m", "--size", "1", "2", "--limit", "x"],
            "error: argument --limit: invalid int value: 'x'",
        ),
    ],
)
def test_wrong_use_is_a_line_of_what_must_be_given_and_one_of_what_was_wrong(given, said, capsys):
    """However many flags there are."""
    made = Parser(prog="a program")
    made.add_argument("benchmark")
    made.add_argument("--model-path", "--model", required=True)
    made.add_argument("--size", nargs=2, metavar=("W", "H"), required=True)
    made.add_argument("--kind", choices=("a", "b"))
    made.add_argument("--limit", type=int)
    for number in range(40):
        made.add_argument(f"--more-{number}")
    with pytest.raises(SystemExit) as end:
        made.parse_args(given)
    assert end.value.code == 2
    [usage, error] = capsys.readouterr().err.splitlines()
    assert usage == "usage: a program BENCHMARK --model-path MODEL_PATH --size W H [flags]; --help explains them"
    assert said in error


def test_the_result_is_one_line_of_json(capsys):
    print_result({"name": "é\n", "value": 0.5})
    assert capsys.readouterr().out == '{"name": "é\\n", "value": 0.5}\n'


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("two\nlines"), 2, "error: two lines"),
        (FileNotFoundError(2, "No such file", "x.png"), 2, "error: No such file: x.png"),
        (OSError(28, "No space left on device", "x.json"), 1, "error: No space left on device: x.json"),
        (MemoryError(), 1, "error: MemoryError"),
        (KeyboardInterrupt(), 130, "stopped"),
        (ModuleNotFoundError("", name="gradio.themes"), 2, "gradio; pip install 'llava-flowcut[serve]'"),
        (ModuleNotFoundError("", name="numpy"), 2, "numpy; pip install llava-flowcut"),
    ],
)
def test_how_a_program_ends(error, status, said, capsys):
    @program
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == status
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(said)


def test_a_module_of_this_project_that_is_missing_is_a_fault_and_not_told_away():
    with pytest.raises(ModuleNotFoundError), told_in_one_line():
        raise ModuleNotFoundError("", name="llava.nowhere")


def test_a_closed_pipe_ends_quietly(monkeypatch, capsys):
    """The reader has gone: the last flush fails, and then nothing may be left for Python's own flush."""
    dropped = []
    monkeypatch.setattr(os, "dup2", lambda *pair: dropped.append(pair))

    class Closed(io.StringIO):
        def flush(self):
            raise BrokenPipeError

        def fileno(self):
            return 1

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(SystemExit) as end:
        run("tests.flowcut.a_program", "flowcut told", ["--help"])
    monkeypatch.undo()
    assert end.value.code == 141
    assert len(dropped) >= 1
    assert capsys.readouterr().err == ""


def test_refusing_keeps_the_text_and_the_status():
    with pytest.raises(SystemExit, match=r"^no$") as end:
        refuse("no")
    assert end.value.code == 2


def test_every_extra_is_found_and_the_programs_own_comes_first():
    assert {"serve", "eval", "train", "flow"} <= extras().keys()
    assert extra_of("starlette") == "serve"
    assert extra_of("matplotlib") == "flow"
    assert extra_of("httpx", "llava.serve.controller") == "serve"
    assert extra_of("httpx", "llava.eval.score") == "eval"
    assert extra_of("accelerate", "llava.train.train") == "train"
    assert extra_of("skimage") == "real"
    assert extra_of("numpy") is None


def test_bars_in_a_log_are_few_whole_lines(capsys):
    with progress_bar(total=1000, desc="answers") as bar:
        for _ in range(1000):
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[-1].startswith("answers: 1000 of 1000, ")
    assert "\r" not in "".join(lines)


def test_the_package_offers_what_its_lazy_names_say():
    assert {name for name in flowcut.api.__all__ if name.islower()} == set(FUNCTIONS)
    assert flowcut.attach is attach is flowcut.api.attach
    assert callable(flowcut.attach)
    assert set(flowcut.api.__all__) <= set(dir(flowcut))
    assert flowcut.scores.__name__ == "flowcut.scores"
    with pytest.raises(AttributeError, match="no attribute 'nowhere'"):
        _ = flowcut.nowhere
