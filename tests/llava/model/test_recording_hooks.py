"""Hidden states of a tiny LLaVA are recorded once each, by hooks that can be pickled."""

import pickle

import torch

from llava.model.recording_hooks import RecordingHook


def test_a_model_that_recorded_hidden_states_can_be_pickled(tiny_llava):
    ids = torch.tensor([[1, -200, 5]])
    images = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    hooks = [hook for module in tiny_llava.modules() for hook in module._forward_hooks.values()]
    assert any(isinstance(hook, RecordingHook) for hook in hooks)
    assert not [hook for hook in hooks if "<locals>" in getattr(hook, "__qualname__", "")]
    with torch.no_grad():
        states = tiny_llava(ids, images=images, output_hidden_states=True).hidden_states
        back = pickle.loads(pickle.dumps(tiny_llava))
        again = back(ids, images=images, output_hidden_states=True).hidden_states
    assert len(states) == len(again) == tiny_llava.config.num_hidden_layers + 1
    assert all(torch.equal(one, other) for one, other in zip(states, again, strict=True))
