"""The lmms-eval plug-in: found by its entry point without loading torch, and answering as the answerer does."""

import importlib.util
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from PIL import Image

from llava.eval.models.load import load_answerer
from llava.eval.models.reply import Generation
from tests.llava.eval.models.tiny import write_tiny_checkpoint
from tests.llava.integrations.lmms_task import QUESTIONS, write_task

installed = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed: see docs/evaluation_harnesses.md"
)


def test_the_entry_point_is_declared():
    [point] = entry_points(group="lmms_eval.models", name="llava_flowcut")
    assert point.value == "llava.integrations.lmms_eval:manifests"


def test_looking_for_models_imports_nothing_heavy():
    """lmms-eval loads the plug-ins of all packages whenever it starts."""
    heavy = "torch", "transformers", "numpy", "llava.model", "lmms_eval"
    code = f"import sys, llava.integrations.lmms_eval as plug; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, llava_folder):
    """`model_folder(name)`: a tiny checkpoint of this project's LLaVA classes, or of a transformers family."""
    root = tmp_path_factory.mktemp("models")
    return lambda name: llava_folder if name == "llava" else write_tiny_checkpoint(root / name, name)


@installed
@pytest.mark.slow
@pytest.mark.parametrize(("family", "mode"), [("llava", "mpt"), ("qwen2_vl", None), ("video_llava", "llava_v1")])
def test_a_task_is_answered_as_by_the_answerer(model_folder, tmp_path, family, mode):
    from lmms_eval import evaluator
    from lmms_eval.tasks import TaskManager

    folder, task = model_folder(family), write_task(tmp_path)
    pruner = "random:budget=5"
    results = evaluator.simple_evaluate(
        model="llava_flowcut",
        model_args=f"pretrained={folder},pruner={pruner},frames=3" + (f",conv_mode={mode}" if mode else ""),
        tasks=["tiny_task"],
        batch_size=2,
        device="cpu",
        log_samples=True,
        task_manager=TaskManager(include_path=str(task)),
    )
    answerer = load_answerer(
        str(folder), conv_mode=mode, device="cpu", pruner=pruner, generation=Generation(max_new_tokens=12)
    )
    pictures = [Image.open(task / f"{number}.png").convert("RGB") for number in range(4)]
    expected = [reply.text for reply in answerer(QUESTIONS, [[picture] for picture in pictures])]
    samples = sorted(results["samples"]["tiny_task"], key=lambda sample: sample["doc_id"])
    assert [sample["filtered_resps"][0] for sample in samples] == expected
    assert len(set(expected)) > 1
    mean = sum(len(text.split()) for text in expected) / 4
    assert results["results"]["tiny_task"]["length,none"] == pytest.approx(mean)


@installed
def test_several_settings_of_a_pruner_go_in_quotes(model_folder):
    from lmms_eval.models import get_model

    arguments = f'pretrained={model_folder("llava")},pruner="flowcut:budget=5,last_layer=-2"'
    model = get_model("llava_flowcut").create_from_arg_string(arguments, {"batch_size": 1, "device": "cpu"})
    assert model.answerer.pruner_text == "flowcut:budget=5,last_layer=-2"
    assert (model.rank, model.world_size, model.answerer.checkpoint.mode) == (0, 1, "vicuna_v1")


@installed
def test_what_tasks_give_and_ask_for():
    from llava.integrations.lmms_eval_model import cut_at, flat, generation_of, placed

    assert list(flat([["a"], [["b"], None], "c"])) == ["a", "b", "c"]
    assert list(flat(None)) == []
    assert placed("see <image> and <image>", 2) == "see <image-placeholder> and <image-placeholder>"
    assert placed("<image>\nwhat", 2) == "what"
    assert placed("what", 1) == "what"
    assert (cut_at("a\n\nb", "\n\n"), cut_at("a.b;c", [";", ".", ""]), cut_at("a", None)) == ("a", "a", "a")
    assert generation_of({"temperature": 0, "top_p": 1.0, "do_sample": False}, 9) == Generation(0.0, 1.0, 1, 9)
    assert generation_of({"temperature": 0.7, "max_new_tokens": 3, "num_beams": 2}, 9) == Generation(0.7, None, 2, 3)
    assert generation_of({"temperature": 0.7, "do_sample": False}, 9).temperature == 0
