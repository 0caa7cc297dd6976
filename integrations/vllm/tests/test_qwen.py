"""Qwen2.5-VL with random weights: greedy tokens equal transformers' with the library, one-stage; positions by hand."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import tower_probe
from conftest import ENGINE, Reference, answers, request
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from vllm import LLM

from flowcut import FlowCut, Pruner, attach
from flowcut_vllm.mrope import digits, numbers_in, place_kept_tokens, text_positions
from tests.llava.eval.models.tiny import write_tokenizer

SIZES = ((56, 56), (40, 96), (88, 48), (64, 72))


@dataclass(frozen=True)
class OneStage(FlowCut):
    """FlowCut as it is served: the encoder keeps the whole budget, the language model drops nothing."""

    def cuts_language(self, two_stage):
        return False

    def targets(self, rows, shape):
        return Pruner.targets(self, rows, shape)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 6,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 24,
            "fullatt_block_indexes": [2, 5],
            "out_hidden_size": 128,
        },
        text_config={
            "vocab_size": 100,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        },
        image_token_id=99,
        video_token_id=98,
        vision_start_token_id=97,
        vision_end_token_id=96,
    )
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    for weight in model.parameters():
        if weight.ndim > 1:  # large ones, so that attention is sharp and answers depend on the picture
            torch.nn.init.normal_(weight, std=2 * weight.flatten(1).shape[1] ** -0.5)
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    write_tokenizer(folder, "qwen2_5_vl")
    small = {"min_pixels": 16 * 16, "max_pixels": 96 * 96, "patch_size": 4, "merge_size": 2}
    Qwen2VLImageProcessorPil(**small).save_pretrained(folder)
    video = json.loads((folder / "preprocessor_config.json").read_text())
    video["size"] = {"shortest_edge": 64, "longest_edge": 576}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    return str(folder)


@pytest.fixture(scope="module")
def reference(folder):
    class OneStageReference(Reference):
        def __init__(self, folder):
            self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
            self.processor = AutoProcessor.from_pretrained(folder)

        @torch.inference_mode()
        def answer(self, prompt, pictures, budget):
            inputs = self.processor(text=prompt, images=pictures, return_tensors="pt")
            with attach(self.model, OneStage(budget=budget)):
                tokens = self.model.generate(**inputs, max_new_tokens=8, do_sample=False)
            return [token for token in tokens[0, inputs["input_ids"].shape[1] :].tolist() if token != 2]

    return OneStageReference(folder)


def pictures():
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES]


def prompt_about(text, count=1):
    return f"user {'<|vision_start|><|image_pad|><|vision_end|>' * count} {text} assistant"


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 32}], ids=["whole", "prefill in chunks"])
def test_budgets_and_pictures_mixed_in_one_queue(folder, reference, options):
    engine = LLM(folder, hf_overrides={"flowcut": {"budget": 8}}, dtype="float32", **{**ENGINE, **options})
    asked, expected = [], []
    for number, budget in enumerate((8, 24, 0.25, 1000) * 3):
        some = [pictures()[(number + number // 4 + n) % 4] for n in range(1 + number % 2)]
        prompt = prompt_about(("what is in this", "how many red star")[number % 2], len(some))
        asked.append(request(prompt, some if len(some) > 1 else some[0], budget))
        expected.append(reference.answer(prompt, some, budget))
    found, outputs = answers(engine, asked)
    assert found == expected
    assert len({tuple(answer) for answer in found}) > 6, "answers that never differ would prove nothing"
    again, outputs = answers(engine, asked)  # now from the prefix cache
    assert again == expected
    if not options:
        assert any(output.num_cached_tokens for output in outputs)


def test_positions_are_those_of_the_unpruned_prompt():
    """Two images of 2 x 3 and 4 x 1 tokens between texts, counted by hand."""
    rows = [(0, 0), (0, 2), (1, 1)], [(1, 0), (3, 0)]
    #        t  t  image of 3 positions  t   image of 4 positions    t
    whole = [0, 1, 2, 2, 2, 5, 6, 6, 10]
    positions, following = text_positions(9, [(2, 3, 3), (6, 2, 4)])
    assert positions.tolist() == whole
    assert following == 11
    is_image = torch.tensor([False, False, True, True, True, False, True, True, False])
    brought = [
        digits(torch.tensor([[*place, room] for place in part]), torch.zeros(1))
        for part, room in zip(rows, (3, 4), strict=True)
    ]
    start = torch.from_numpy(np.repeat(positions[None], 3, axis=0))
    placed, following = place_kept_tokens(start, is_image, brought, 0)
    assert placed[0].tolist() == whole
    assert placed[1].tolist() == [0, 1, 2, 2, 3, 5, 7, 9, 10]
    assert placed[2].tolist() == [0, 1, 2, 4, 3, 5, 6, 6, 10]
    assert following == 11
    first, _ = place_kept_tokens(start, is_image, [brought[0][:2]], 0)
    both, _ = place_kept_tokens(first, is_image, [brought[0][2:], brought[1]], 4)
    assert torch.equal(both, placed)
    assert place_kept_tokens(start[:, :8], is_image[:8], brought, 0)[1] == 10  # a prompt that ends with an image


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_numbers_survive_the_embeddings_type(dtype):
    numbers = torch.tensor([[0, 127, 128], [255, 257, 1000], [16383, 5, 300]])
    assert torch.equal(numbers_in(digits(numbers, torch.zeros(1, dtype=dtype))), numbers)


@pytest.mark.slow
def test_two_tensor_parallel_ranks(folder, reference):
    """With all heads gathered, both ranks keep the library's patches; without, they keep others."""
    options = {**ENGINE, "tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    engine = LLM(folder, hf_overrides={"flowcut": {"budget": 20}}, dtype="float32", **options)
    asked = [(prompt_about("what is in this"), picture) for picture in pictures()]
    found, _ = answers(engine, [request(prompt, picture) for prompt, picture in asked])
    assert found == [reference.answer(prompt, picture, 20) for prompt, picture in asked]
    with attach(reference.model, OneStage(budget=20)) as handle, torch.inference_mode():
        reference.model.model.get_image_features(tower_probe.pixels(), torch.tensor(tower_probe.GRIDS))
        expected = [row.tolist() for row in handle.trace.final]
    assert [len(row) for row in expected] == [80, 80]
    assert engine.apply_model(tower_probe.kept) == [expected, expected]
    assert engine.apply_model(tower_probe.kept_without_gathering)[0] != expected
