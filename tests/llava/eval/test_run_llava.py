"""One question from the command line, and as LLaVA's README calls it."""

import json
import shutil
from argparse import Namespace

import pytest

from llava.eval.run_llava import build_parser, eval_model, image_parser, main


@pytest.fixture
def picture(question_folder):
    return str(question_folder / "images" / "3.png")


def test_eval_model_prints_and_returns(llava_folder, picture, capsys):
    values = {
        "model_path": str(llava_folder),
        "model_base": None,
        "model_name": "unused",
        "query": "what is in this image",
        "conv_mode": None,
        "image_file": picture,
        "sep": ",",
        "temperature": 0,
        "top_p": None,
        "num_beams": 1,
        "max_new_tokens": 4,
    }
    answer = eval_model(type("Args", (), values)())
    assert capsys.readouterr().out.strip() == answer
    assert answer


def test_the_command_line_with_a_pruner_and_two_pictures(llava_folder, picture, capsys):
    main(
        [
            *("--model-path", str(llava_folder), "--image-file", f"{picture};{picture}", "--sep", ";"),
            *("--query", "what is in this image", "--temperature", "0", "--max_new_tokens", "4"),
            *("--pruner", "fastervlm:budget=5"),
        ]
    )
    assert capsys.readouterr().out.strip()


def test_without_a_flag_the_checkpoints_own_pruner_is_taken(llava_folder, picture, tmp_path, caplog):
    own = shutil.copytree(llava_folder, tmp_path / "own")
    fields = json.loads((own / "config.json").read_text()) | {"flowcut": {"method": "fastervlm", "budget": 5}}
    (own / "config.json").write_text(json.dumps(fields))
    args = {"model_path": str(own), "query": "why?", "image_file": picture, "temperature": 0, "max_new_tokens": 4}
    answers = [eval_model(Namespace(**args, **more)) for more in ({}, {"pruner": "fastervlm:budget=5"})]
    assert answers[0] == answers[1]
    [said] = [record.getMessage() for record in caplog.records if record.name == "llava.model.remembered_pruner"]
    assert said == "own was trained with fastervlm:budget=5 and runs with it; --pruner none turns that off"


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--image-file", "/nowhere/a.png", "image /nowhere/a.png does not exist"),
        ("--pruner", "flowcut:budget=0", "budget=0"),
        ("--model-path", "/nowhere/model", "/nowhere/model is not a folder"),
        ("--conv-mode", "v7", "conversation mode 'v7' is unknown"),
        ("--image-file", "http://127.0.0.1:9/a.png", "127.0.0.1 is not a public address"),
        ("--query", "<image-placeholder> <image-placeholder>", "2 <image> placeholders but 1 images"),
    ],
)
def test_bad_input_is_one_line(llava_folder, picture, flag, value, said):
    given = {"--model-path": str(llava_folder), "--image-file": picture, "--query": "why?", flag: value}
    with pytest.raises(SystemExit) as end:
        main([part for pair in given.items() for part in pair])
    message = str(end.value)
    assert message.startswith("error: ")
    assert said in message
    assert "\n" not in message


def test_flags_and_defaults_are_llavas():
    args = build_parser().parse_args(["--model-path", "m", "--image-file", "a.png,b.png", "--query", "q"])
    assert (args.sep, args.temperature, args.top_p, args.num_beams, args.max_new_tokens) == (",", 0.2, None, 1, 512)
    assert image_parser(args) == ["a.png", "b.png"]
