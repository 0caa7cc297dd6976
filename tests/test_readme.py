"""What the README says is run: its scripts, its commands, its links."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from flowcut.anatomy.find import FAMILIES
from scripts.tables import readme

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
SCRIPT, SNIPPET, METHOD = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def llava():
    """A tiny LLaVA on the paper's grid of 576 patches, and the arguments of a `generate`."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=336, patch_size=14),
        text_config=LlamaConfig(**text, vocab_size=50, pad_token_id=0, eos_token_id=None),
        image_token_id=49,
    )
    inputs = {
        "input_ids": torch.tensor([[1, *[49] * 576, 7]]),
        "attention_mask": torch.ones(1, 578, dtype=torch.long),
        "pixel_values": torch.randn(1, 3, 336, 336),
        "max_new_tokens": 3,
    }
    return LlavaForConditionalGeneration(config).eval(), inputs


@pytest.mark.embedded
def test_the_first_script_prints_what_stands_below_it(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert len(SCRIPT.strip().splitlines()) <= 12
    [printed] = re.findall(re.escape(SCRIPT) + r"```\n\n```text\n(.*?)```", README, re.DOTALL)
    exec(SCRIPT, {})
    assert capsys.readouterr().out == printed


def test_the_snippet_runs_on_a_transformers_llava(llava):
    """64 visual tokens are left in the end, and the model is as before afterwards."""
    model, inputs = llava
    before = model.generate(**inputs)
    names = {"model": model, "inputs": inputs}
    exec(SNIPPET, names)
    assert [len(kept) for kept in names["handle"].trace.final] == [64]
    assert torch.equal(names["ids"][:, :578], inputs["input_ids"])
    assert torch.equal(model.generate(**inputs), before)


def test_the_method_of_the_readme_keeps_the_longest_keys(llava):
    model, inputs = llava
    names = {"model": model}
    exec(METHOD, names)
    layer = model.model.vision_tower.encoder.layers[-2]
    seen = []
    hook = layer.self_attn.k_proj.register_forward_hook(lambda module, given, keys: seen.append(keys))
    model(**{key: value for key, value in inputs.items() if key != "max_new_tokens"})
    hook.remove()
    names["handle"].remove()
    norms = seen[0][0, 1:].unflatten(-1, (2, 16)).norm(dim=-1).mean(dim=-1)
    expected = norms.argsort(descending=True)[:64].sort().values
    assert torch.equal(names["handle"].trace.final[0], expected)


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


def test_its_table_of_models_names_every_family():
    [table] = re.findall(r"## Models\n\n(.*?)\n\n", README, re.DOTALL)
    named = set(re.findall(r"`(\w+)`", table))
    known = {
        re.sub("ForConditionalGeneration$|Model$", "", word)
        for family in FAMILIES
        for word in re.findall(r"\w+", family.FAMILY)
        if re.search("ForConditionalGeneration$|Model$", word)
    }
    assert named == known


def test_its_list_of_methods_is_the_registry(monkeypatch):
    monkeypatch.chdir(ROOT)
    readme.main(["--check"])
    row = re.search(r"^\| PruMerge \| `prumerge`, `prumerge_plus` \| \[2403.15388\]", README, re.MULTILINE)
    assert row


def test_what_its_commands_write_is_not_seen_by_git():
    """Their --out, the programs' own places, and the tables of another model; committed files are seen."""
    written = re.findall(r"--out (\S+)", README + (ROOT / "Makefile").read_text("utf-8"))
    written += ["report/index.html", "runs/evaluate/rows.json", "results/demo/none.json"]
    written += ["results/llava-v1.5-7b/tables/table01.md", "playground/data/embedded/questions.jsonl"]
    told = subprocess.run(["git", "-C", str(ROOT), "check-ignore", *written], capture_output=True, text=True)
    if "not a git repository" in told.stderr:
        pytest.skip("not a checkout")
    assert set(told.stdout.split()) == set(written)
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert subprocess.run(listed, capture_output=True, text=True, check=True).stdout == ""
