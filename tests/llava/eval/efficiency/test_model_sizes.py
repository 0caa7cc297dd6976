"""ModelSizes of a model from its config, and the FLOPs that follow from them."""

import json

from transformers import CLIPVisionConfig

from flowcut.cost import encoder_flops, prefill_flops, projector_flops
from llava.eval.efficiency.answer_costs import ModelSizes, flops_of
from llava.eval.efficiency.model_sizes import sizes_in
from llava.model import LlavaConfig


def test_flops_of_tiles():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    vision = CLIPVisionConfig(**sizes, image_size=56, patch_size=14)
    language = LlavaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    answer = {"tokens": [48, 48, 30], "visual_tokens": 21, "text_tokens": 9}
    [cost] = flops_of([answer], ModelSizes(vision, language, 2))
    assert cost.encoder == 3 * encoder_flops(vision, [16, 16])
    assert cost.projector == projector_flops(30, 32, 64)
    assert cost.prefill == prefill_flops(language, [30, 30])
    [merging] = flops_of(
        [answer | {"language_tokens": [21, 6]}], ModelSizes(vision, language, 2), merges_before_mlp=True
    )
    assert merging.encoder == 3 * encoder_flops(vision, [16, 16], mlp_path=[16, 10])
    assert merging.prefill == prefill_flops(language, [30, 15])


def test_sizes_are_read_from_either_layout(llava_folder, tmp_path):
    ours = sizes_in(llava_folder)
    assert (ours.vision.hidden_size, ours.language.hidden_size, ours.projector_layers) == (32, 64, 2)
    parts = {
        "vision_config": ours.vision.to_dict(),
        "text_config": {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 520},
    }
    fields = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", **parts}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    theirs = sizes_in(tmp_path)
    assert (theirs.vision.hidden_size, theirs.language.num_hidden_layers, theirs.projector_layers) == (32, 3, 2)
    other = {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl"}
    (tmp_path / "config.json").write_text(json.dumps(other))
    assert sizes_in(tmp_path) is None
