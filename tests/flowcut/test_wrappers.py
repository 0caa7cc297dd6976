"""Models inside of other libraries' wrappers, half precision, and compiled decoders."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hosts import SAMPLES, all_hosts
from torch import nn

from flowcut import FastV, FlowCut, attach, detach

ROOT = Path(__file__).parents[2]
NAMES = ["llava_hf", "llava_next_hf", "qwen2_vl", "llava", "llava_next"]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    return all_hosts(tmp_path_factory.mktemp("tower"))


@pytest.fixture(params=NAMES)
def host(request, hosts):
    return hosts[request.param]


def pruned(host, model, inner=None):
    """The outputs of a (wrapped) model with ten tokens an image, and what was kept."""
    with torch.no_grad(), attach(model, FlowCut(10)) as handle:
        outputs = host.outputs(inner or model, host.samples(), handle)
        return outputs, host.generate(inner or model, host.samples()), handle.trace.remaining


def alike(one, other):
    for mine, theirs in zip(one[0], other[0], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    assert torch.equal(one[1], other[1])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one[2], other[2], strict=True))


def test_peft(host):
    """A LoRA-wrapped model is looked through, prunes as it does merged, and learns with pruned tokens."""
    peft = pytest.importorskip("peft")
    model = host.build()
    plain = pruned(host, model)
    config = peft.LoraConfig(r=2, target_modules=r".*(language_model|model)\.layers\.\d+\.self_attn\.(q|v)_proj")
    wrapped = peft.get_peft_model(model, config)
    alike(pruned(host, wrapped), plain)  # LoRA begins as nothing
    with attach(wrapped, FlowCut(10)):
        host.loss(wrapped.train(), host.samples()).backward()
    touched = [name for name, p in wrapped.named_parameters() if p.grad is not None and bool(p.grad.any())]
    assert touched
    assert all("lora_" in name for name in touched)


def test_dispatched_by_accelerate(host):
    """accelerate's hooks replace every module's forward; a tower that leaves layers out must not run them after all."""
    accelerate = pytest.importorskip("accelerate")
    model = host.build()
    plain = pruned(host, model)
    with torch.no_grad():
        vanilla = host.outputs(model, host.samples())
    dispatched = accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    every = {name: "cpu" for name, module in model.named_modules() if name and not list(module.children())}
    accelerate.hooks.attach_align_device_hook_on_blocks(dispatched, execution_device=every)
    alike(pruned(host, dispatched), plain)
    with torch.no_grad():
        again = host.outputs(dispatched, host.samples())
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(vanilla, again, strict=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("host", ["llava_next_hf", "qwen2_vl", "llava"], indirect=True)
def test_compiled_decoder(host):
    """torch.compile of the decoder works with graph breaks at the hooks, which are attached after compiling.

    One of each kind: a decoder with cuts of its own, one with positions in three dimensions, and this project's class,
    where the decoder is called with embeddings and holds the tower. Two layers, because each is compiled by itself.
    """
    config = host.config()
    text = config.get_text_config()
    text.num_hidden_layers, text.layer_types = 2, (getattr(text, "layer_types", None) or [])[:2] or None
    model = host.build(config)
    plain = pruned(host, model)
    torch._dynamo.reset()
    host.decoder(model).compile(backend="eager")
    try:
        alike(pruned(host, model), plain)
    finally:
        host.decoder(model)._compiled_call_impl = None
        torch._dynamo.reset()


def test_half_precision(host):
    """Scores underflow and attention gets exact zeros in float16: never NaN, always the budget."""
    model = host.build().to(torch.float16)
    for name, parameter in model.named_parameters():
        if ("q_proj" in name or "k_proj" in name or "qkv" in name) and parameter.ndim == 2:
            parameter.data *= 16
    with torch.no_grad(), attach(model, FlowCut(10), signals=True) as handle:
        outputs = host.outputs(model, host.samples(), handle)
    assert all(torch.isfinite(row).all() for row in outputs)
    rows = [row for signals in handle.trace.signals.values() for row in signals["attention"]]
    assert min(row.min() for row in rows) < 6e-8  # what float16 can hold
    assert all(torch.isfinite(row).all() for row in rows)


def test_data_parallel_and_engines_are_looked_through(hosts):
    host = hosts["llava_hf"]
    model = host.build()

    class DeepSpeedEngine(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    attach(DeepSpeedEngine(model), FlowCut(10))
    with torch.no_grad():
        assert model(**host.inputs(SAMPLES[:1], "left")).logits.shape[1] == 5 + 10
    detach(DeepSpeedEngine(model))


@pytest.fixture(scope="module")
def zero_losses(tmp_path_factory):
    """The losses of two ranks by model and ZeRO stage, such as llava_hf:3; one launch for all of them."""
    pytest.importorskip("deepspeed")
    worker = Path(__file__).with_name("zero3_worker.py")
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    runs = [f"{name}:{stage}" for stage in (0, 3) for name in ("llava_hf", "llava_next")]
    command = [*launcher, str(worker), str(tmp_path_factory.mktemp("zero")), *runs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["llava'))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava_hf", "llava_next"])
def test_deepspeed_zero3(name, zero_losses):
    """Two ranks that hold half of every weight each lose what two ranks with all of them lose.

    In llava_next one rank has text alone, and so nothing to cut.
    """
    whole, halved = zero_losses[f"{name}:0"], zero_losses[f"{name}:3"]
    assert whole[-1] < whole[0]
    assert halved == pytest.approx(whole, rel=1e-5)


COPIED = {
    "llava_hf": ["vision_tower", "multi_modal_projector"],
    "video_llava": ["image_tower", "video_tower"],
    "qwen2_vl": ["visual"],
    "llava": ["vision_tower.vision_tower", "mm_projector"],
}


@pytest.mark.parametrize("name", COPIED)
def test_modules_that_peft_trains_whole(hosts, name):
    """PEFT keeps a copy of them for each adapter; whichever runs is pruned."""
    peft = pytest.importorskip("peft")
    host = hosts[name]
    model = host.build()
    plain = pruned(host, model)
    config = peft.LoraConfig(r=2, target_modules=r".*layers\.\d+\.self_attn\.q_proj", modules_to_save=COPIED[name])
    wrapped = peft.get_peft_model(model, config, "first")
    wrapped.add_adapter("second", config)
    with torch.no_grad(), attach(wrapped, FlowCut(10)) as handle:
        for adapter in ("second", "first"):
            wrapped.set_adapter(adapter)
            outputs = host.outputs(wrapped, host.samples(), handle)
            alike((outputs, plain[1], handle.trace.remaining), plain)
        with wrapped.disable_adapter():
            outputs = host.outputs(wrapped, host.samples(), handle)
        alike((outputs, plain[1], handle.trace.remaining), plain)
    alike(pruned(host, wrapped), plain)


def test_a_language_model_that_peft_trains_whole(hosts):
    peft = pytest.importorskip("peft")
    if "x" in inspect.signature(peft.utils.ModulesToSaveWrapper.forward).parameters:
        pytest.skip("this PEFT calls such modules with a positional argument only")
    host = hosts["llava_hf"]
    model = host.build()
    pruner = FastV.keeping(10, layer=2)
    with torch.no_grad(), attach(model, pruner) as handle:
        expected = host.outputs(model, SAMPLES, handle)
    config = peft.LoraConfig(r=2, target_modules=r".*vision_tower.*q_proj", modules_to_save=["language_model"])
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad(), attach(wrapped, pruner) as handle:
        for mine, theirs in zip(host.outputs(wrapped, SAMPLES, handle), expected, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
        with wrapped.disable_adapter(), pytest.raises(ValueError, match="attached to another PEFT adapter's "):
            host.outputs(wrapped, SAMPLES, handle)
