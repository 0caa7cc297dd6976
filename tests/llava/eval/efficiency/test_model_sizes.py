"""What the formulas need to know, read from configs alone."""

import json

from llava.eval.efficiency.model_sizes import sizes_in


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
