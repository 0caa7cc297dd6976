"""A config.json that programs from before transformers 5 read rightly, and that comes back the same."""

import json

import pytest

from llava import LlavaConfig


@pytest.mark.parametrize(
    ("rope", "scaling"),
    [
        ({"rope_type": "default", "rope_theta": 5e5}, None),
        ({"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}, {"type": "linear", "factor": 2.0}),
    ],
)
@pytest.mark.parametrize("reader", ["new", "old"])
def test_rope_fields(tmp_path, rope, scaling, reader):
    LlavaConfig(rope_parameters=rope, dtype="bfloat16", mm_hidden_size=7).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["rope_theta"] == rope["rope_theta"]
    assert fields.get("rope_scaling") == scaling
    assert fields["torch_dtype"] == fields["dtype"] == "bfloat16"
    if reader == "old":  # what a 4.x program would have written
        kept = {name: value for name, value in fields.items() if name not in ("rope_parameters", "dtype")}
        (tmp_path / "config.json").write_text(json.dumps(kept))
    again = LlavaConfig.from_pretrained(tmp_path)
    assert {name: again.rope_parameters[name] for name in rope} == rope
    assert str(again.dtype).endswith("bfloat16")
    assert again.mm_hidden_size == 7
