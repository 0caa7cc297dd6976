"""Ctrl-C anywhere inside a forward or backward pass: the next call is as if nothing had happened."""

import pytest
import torch
from hosts import all_hosts

from flowcut import FastV, FlowCut, ToMe, attach

FAMILIES = ["llava_hf", "qwen2_vl", "llava"]


def stop(*_):
    raise KeyboardInterrupt


def places(host, model):
    """Modules in the middle of the encoder, at its attention, and in the middle of the language model."""
    layer = host.layers(model)[4]
    attention = layer.self_attn if hasattr(layer, "self_attn") else layer.attn
    return [layer, attention, host.decoder(model).layers[2], host.decoder(model).layers[2].self_attn]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pruner", [FlowCut(10), FastV.keeping(10), ToMe(10)], ids=["flowcut", "fastv", "tome"])
def test_the_next_call_is_right(family, pruner, tmp_path):
    host = all_hosts(tmp_path)[family]
    if isinstance(pruner, ToMe) and not host.merges:
        pytest.skip("merges patches itself")
    model = host.build()
    samples = host.samples()
    [text] = [sample for sample in samples if not (sample.images or sample.videos)]
    with torch.no_grad():
        vanilla = host.outputs(model, [text])
        with attach(model, pruner) as handle:
            expected = host.outputs(model, samples, handle)
            for place in places(host, model):
                hook = place.register_forward_pre_hook(stop)
                with pytest.raises(KeyboardInterrupt):
                    host.outputs(model, samples, handle)
                hook.remove()
                assert torch.equal(host.outputs(model, [text], handle)[0], vanilla[0])
                for mine, theirs in zip(host.outputs(model, samples, handle), expected, strict=True):
                    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reentrant", [False, True], ids=["nonreentrant", "reentrant"])
def test_training_with_checkpointing_goes_on(family, reentrant, tmp_path):
    """Interrupted in the forward pass, and in the backward pass while a layer is recomputed."""
    host = all_hosts(tmp_path)[family]
    model = host.build().train()
    for part in (model, host.tower(model)):
        part.gradient_checkpointing_enable({"use_reentrant": reentrant})

    def step():
        model.zero_grad()
        loss = host.loss(model, host.samples())
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    with attach(model, FlowCut(10)):
        loss, gradients = step()
        layer, calls = host.decoder(model).layers[2], []
        for fatal in (1, 2):  # the second call is the recomputation
            calls.clear()

            def stop_at(*_, fatal=fatal):
                calls.append(1)
                if len(calls) == fatal:
                    raise KeyboardInterrupt

            hook = layer.self_attn.register_forward_pre_hook(stop_at)
            with pytest.raises(KeyboardInterrupt):
                step()
            hook.remove()
            again, others = step()
            assert torch.equal(loss, again)
            assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))
