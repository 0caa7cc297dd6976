"""Tiny Qwen-VL checkpoints with random weights, pictures and prompts for them, and FlowCut as vLLM serves it."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from conftest import NEW_TOKENS, Reference
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from flowcut import FlowCut, Pruner, attach
from tests.llava.eval.models.tiny import write_tokenizer

SIZES = ((56, 56), (40, 96), (88, 48), (64, 72))
VISION = {"depth": 6, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
TEXT = {
    "vocab_size": 100,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
IDS = {"image_token_id": 99, "video_token_id": 98, "vision_start_token_id": 97, "vision_end_token_id": 96}


@dataclass(frozen=True)
class OneStage(FlowCut):
    """FlowCut as it is served: the encoder keeps the whole budget, the language model drops nothing."""

    def cuts_language(self, two_stage):
        return False

    def targets(self, rows, shape):
        return Pruner.targets(self, rows, shape)


def one_stage(pruner):
    if not isinstance(pruner, FlowCut):
        return pruner
    return OneStage(**{field.name: getattr(pruner, field.name) for field in fields(pruner)})


def qwen2_vl():
    vision = {**VISION, "embed_dim": 64, "hidden_size": 128, "mlp_ratio": 2}
    config = Qwen2VLConfig(vision_config=vision, text_config={**TEXT, "rope_parameters": ROPE}, **IDS)
    return Qwen2VLForConditionalGeneration(config)


def qwen2_5_vl():
    sizes = {"hidden_size": 64, "intermediate_size": 128, "out_hidden_size": 128}
    vision = {**VISION, **sizes, "window_size": 24, "fullatt_block_indexes": [2, 5]}
    config = Qwen2_5_VLConfig(vision_config=vision, text_config={**TEXT, "rope_parameters": ROPE}, **IDS)
    return Qwen2_5_VLForConditionalGeneration(config)


QWEN3_VISION = {
    **VISION,
    "hidden_size": 64,
    "intermediate_size": 128,
    "out_hidden_size": 128,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [1, 3],
}
INTERLEAVED = {**ROPE, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
QWEN3_TEXT = {**TEXT, "head_dim": 32, "rope_parameters": INTERLEAVED}


def qwen3_vl():
    config = Qwen3VLConfig(vision_config=QWEN3_VISION, text_config=QWEN3_TEXT, **IDS)
    return Qwen3VLForConditionalGeneration(config)


def qwen3_vl_moe():
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "norm_topk_prob": True}
    config = Qwen3VLMoeConfig(vision_config=QWEN3_VISION, text_config={**QWEN3_TEXT, **experts}, **IDS)
    return Qwen3VLMoeForConditionalGeneration(config)


FAMILIES = {made.__name__: made for made in (qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe)}


def write_checkpoint(folder: Path, family: str) -> str:
    torch.manual_seed(0)
    model = FAMILIES[family]()
    for weight in model.parameters():
        if weight.ndim > 1:  # large ones, so that attention is sharp and answers depend on the picture
            torch.nn.init.normal_(weight, std=2 * weight.flatten(1).shape[1] ** -0.5)
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    transpose_experts(folder / "model.safetensors")
    write_tokenizer(folder, "qwen3_vl")  # all have the same words
    small = {"min_pixels": 16 * 16, "max_pixels": 96 * 96, "patch_size": 4, "merge_size": 2}
    Qwen2VLImageProcessorPil(**small).save_pretrained(folder)
    video = json.loads((folder / "preprocessor_config.json").read_text())
    video["size"] = {"shortest_edge": 64, "longest_edge": 576}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    return str(folder)


def transpose_experts(weights: Path) -> None:
    """As published checkpoints have them and vLLM needs them. transformers reads both, and writes the other way."""
    tensors = load_file(weights)
    for name in tensors:
        if ".experts." in name:
            tensors[name] = tensors[name].transpose(1, 2).contiguous()
    save_file(tensors, weights, metadata={"format": "pt"})


class OneStageReference(Reference):
    """transformers' own class with the library's hooks."""

    def __init__(self, folder):
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)

    def inputs(self, prompt, pictures):
        return self.processor(text=prompt, images=pictures, return_tensors="pt")

    @torch.inference_mode()
    def answer(self, prompt, pictures, budget, **more):
        inputs = self.inputs(prompt, pictures)
        with attach(self.model, OneStage(budget=budget, **more)):
            tokens = self.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        return [token for token in tokens[0, inputs["input_ids"].shape[1] :].tolist() if token != 2]

    @torch.inference_mode()
    def answer_without_cache(self, prompt, pictures, budget):
        """The same tokens computed another way: with each one, the whole prompt anew."""
        inputs, said = self.inputs(prompt, pictures), []
        with attach(self.model, OneStage(budget=budget)):
            while len(said) < NEW_TOKENS:
                token = int(self.model(**inputs, use_cache=False).logits[0, -1].argmax())
                if token == 2:
                    break
                said.append(token)
                for name, value in {"input_ids": token, "attention_mask": 1, "mm_token_type_ids": 0}.items():
                    inputs[name] = torch.cat([inputs[name], torch.tensor([[value]])], dim=1)
        return said

    @torch.inference_mode()
    def features(self, pixels, grids, pruner):
        """The patches kept of each picture, and the kept tokens' features: [k, D (1 + taps of DeepStack)]."""
        with attach(self.model, one_stage(pruner)) as handle:
            found = self.model.model.get_image_features(pixels, torch.tensor(grids))
            kept = [row.tolist() for row in handle.trace.final]
        parts = (found.pooler_output, *getattr(found, "deepstack_features", ()))
        return kept, [torch.cat([part[number] for part in parts], dim=1) for number in range(len(kept))]


def pictures(seed=3):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES]


def prompt_about(text, count=1):
    return f"user {'<|vision_start|><|image_pad|><|vision_end|>' * count} {text} assistant"
