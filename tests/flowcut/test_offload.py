"""Models whose weights accelerate keeps elsewhere until they are needed: the same results as with all in place."""

import pytest
import torch
from hosts import all_hosts

from flowcut import CDPruner, DivPrune, FastV, FlowCut, TextTower, asked, attach
from flowcut.anatomy.reading import running_device

accelerate = pytest.importorskip("accelerate")
PRUNERS = {
    "flowcut": FlowCut(10),
    "divprune": DivPrune(10),
    "cdpruner": CDPruner(10, condition=False),
    "fastv": FastV.keeping(10, layer=2),
}


def results(host, model, pruner):
    with torch.no_grad(), attach(model, pruner) as handle:
        return host.outputs(model, host.samples()[:2], handle)


OFFLOADED = [
    "llava_hf",
    "llava_next_hf",
    "llava_onevision",
    "video_llava",
    "qwen2_vl",
    "internvl",
    "smolvlm",
    "gemma3",
    "llava",
    "llava_next",
]


@pytest.mark.parametrize("name", OFFLOADED)
def test_offloaded_to_the_cpu(name, tmp_path):
    host = all_hosts(tmp_path)[name]
    model = host.build()
    expected = {key: results(host, model, pruner) for key, pruner in PRUNERS.items()}
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert next(model.parameters()).is_meta
    for key, pruner in PRUNERS.items():
        for mine, theirs in zip(results(host, model, pruner), expected[key], strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5, msg=key)
    assert all(weight.is_meta for weight in model.parameters())


def test_dispatched_between_memory_and_disk(tmp_path):
    """Blocks of the tower, the projector and the decoder on disk; the model's own parameter too."""
    host = all_hosts(tmp_path / "tower")["llava_next_hf"]
    model = host.build()
    expected = {key: results(host, model, pruner) for key, pruner in PRUNERS.items()}
    places = {
        "model.vision_tower.embeddings": "cpu",
        "model.vision_tower.pre_layrnorm": "cpu",
        "model.vision_tower.encoder": "disk",
        "model.vision_tower.post_layernorm": "cpu",
        "model.multi_modal_projector": "disk",
        "model.image_newline": "disk",
        "model.language_model": "disk",
        "lm_head": "cpu",
    }
    accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path / "offload", force_hooks=True)
    for key, pruner in PRUNERS.items():
        for mine, theirs in zip(results(host, model, pruner), expected[key], strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5, msg=key)


def test_a_text_tower_goes_where_an_offloaded_vision_tower_computes(whole_clip, tmp_path):
    host = all_hosts(tmp_path)["llava_hf"]
    model = host.build()
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert running_device(host.tower(model)).type == "cpu"
    tower = TextTower.find(model, str(whole_clip))
    pruner, inputs = CDPruner(10), host.inputs(host.samples()[:1], "left")
    with torch.no_grad(), attach(model, pruner) as handle, asked(handle, "What is this?", tower):
        offloaded = model(**inputs).logits
    with torch.no_grad(), attach(plain := host.build(), pruner) as handle, asked(handle, "What is this?", tower):
        assert torch.allclose(plain(**inputs).logits, offloaded, atol=1e-5)
