"""Fixtures: the embedded model in transformers' layout, pictures with questions, an engine, and what to compare."""

import os
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine runs in this process, so that tests can look inside
os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from PIL import Image
from vllm import LLM, SamplingParams

from flowcut import attach
from flowcut.registry import pruner_from_config
from llava.conversation import conv_templates
from llava.convert import convert
from scripts.embedded.data import scene_at
from scripts.embedded.questions import ask
from scripts.embedded.scenes import draw

EMBEDDED = Path(__file__).parents[3] / "playground" / "embedded"
NEW_TOKENS = 8
CHAOTIC = {"vispruner"}
"""Half of its choice follows from rounding; see its docstring. The other half is equal."""
ENGINE = {
    "max_model_len": 1536,
    "block_size": 32,
    "enforce_eager": True,
    "max_num_seqs": 16,
    "limit_mm_per_prompt": {"image": 3},
}


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: starts further processes")


@pytest.fixture(scope="session")
def embedded(tmp_path_factory):
    """Folder of the embedded model as transformers' LlavaForConditionalGeneration."""
    folder = tmp_path_factory.mktemp("embedded") / "hf"
    convert(str(EMBEDDED), None, "hf", str(folder))
    return str(folder)


@pytest.fixture(scope="session")
def scenes():
    """Pictures, each with a question about it."""
    found = []
    for number in range(24):
        scene, rng = scene_at("dev", number)
        found.append((Image.fromarray(draw(scene)), ask(scene, rng, 1)[0].text))
    return found


def prompt_about(*questions, pictures=1):
    """LLaVA's prompt for so many pictures and one question, or a dialogue: questions and answers in turn."""
    conversation = conv_templates["v1"].copy()
    for number, text in enumerate(questions):
        shown = "" if number else "<image>\n" * pictures
        conversation.append_message(conversation.roles[number % 2], shown + text)
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt()


def request(prompt, pictures, budget=None):
    """A prompt as vLLM takes it."""
    given = {"prompt": prompt, "multi_modal_data": {"image": pictures}}
    return given if budget is None else {**given, "mm_processor_kwargs": {"flowcut": {"budget": budget}}}


@pytest.fixture(scope="session")
def engine(embedded):
    """vLLM with the embedded model and FlowCut(64)."""
    return LLM(embedded, hf_overrides={"flowcut": {"budget": 64}}, dtype="float32", **ENGINE)


def answers(engine, requests):
    """The greedy tokens of each request, without the end of the answer."""
    outputs = engine.generate(requests, SamplingParams(temperature=0, max_tokens=NEW_TOKENS), use_tqdm=False)
    return [[token for token in output.outputs[0].token_ids if token != 2] for output in outputs], outputs


class Reference:
    """A model of transformers' own, with the library's hooks."""

    def __init__(self, folder, model_class, processor_class, dtype=torch.float32):
        self.model = model_class.from_pretrained(folder, dtype=dtype).eval()
        self.processor = processor_class.from_pretrained(folder, backend="pil")

    @torch.inference_mode()
    def answer(self, prompt, pictures, pruner):
        """The greedy tokens, and for each picture the patches kept."""
        inputs = self.processor(text=prompt, images=pictures, return_tensors="pt").to(self.model.dtype)
        settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
        if pruner is None:
            tokens, kept = self.model.generate(**inputs, **settings), None
        else:
            with attach(self.model, pruner_from_config(pruner)) as handle:
                tokens, kept = self.model.generate(**inputs, **settings), None
                kept = [sorted(row.tolist()) for row in handle.trace.final]
        said = tokens[0, inputs["input_ids"].shape[1] :].tolist()
        return [token for token in said if token != 2], kept


@pytest.fixture(scope="session")
def reference(embedded):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    return Reference(embedded, LlavaForConditionalGeneration, AutoProcessor)
