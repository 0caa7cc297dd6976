"""What the README says is run: its snippet, its commands, its links."""

import re
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_snippet_runs_on_a_transformers_llava():
    """On the paper's grid of 576 patches: 64 are left in the end, and the model is as before afterwards."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=336, patch_size=14),
        text_config=LlamaConfig(**text, vocab_size=50, pad_token_id=0, eos_token_id=None),
        image_token_id=49,
    )
    model = LlavaForConditionalGeneration(config).eval()
    inputs = {
        "input_ids": torch.tensor([[1, *[49] * 576, 7]]),
        "attention_mask": torch.ones(1, 578, dtype=torch.long),
        "pixel_values": torch.randn(1, 3, 336, 336),
        "max_new_tokens": 3,
    }
    before = model.generate(**inputs)
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {"model": model, "inputs": inputs}
    exec(snippet, names)
    assert [len(kept) for kept in names["handle"].trace.final] == [64]
    assert torch.equal(names["ids"][:, :578], inputs["input_ids"])
    assert torch.equal(model.generate(**inputs), before)


def test_what_the_readme_points_to_is_there():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    targets += re.findall(r"(?:--image|--image-file|--model-path) (\S+)", README)
    assert len(targets) > 6
    for target in targets:
        assert (ROOT / target).exists(), target


def test_its_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"make (\w+)", README):
        rule = re.sub(r"^table\d+$", "table%", target)
        assert re.search(rf"^{rule}:", makefile, re.MULTILINE), target
