"""Every method that is served keeps the same patches and gives the same tokens in vLLM's tower as in transformers'."""

import pytest
import torch
from conftest import CHAOTIC

from flowcut import METHODS, attach
from flowcut.registry import parse_pruner
from flowcut_vllm.pruner import check_served
from flowcut_vllm.tower import PrunedTower


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("budget", [40, 0.2])
@torch.inference_mode()
def test_kept_patches_and_features(engine, reference, scenes, name, budget):
    pruner = parse_pruner(f"{name}:budget={budget}")
    pictures = [picture for picture, _ in scenes[:3]]
    pixels = reference.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]

    def inside(model):
        try:
            check_served(pruner, model.pruned.encoder.shape)
        except ValueError:
            return None
        own = model.pruned
        own.stage.remove()
        model.pruned = PrunedTower(pruner, own.encoder)  # with the hooks that this pruner needs
        features, kept = model.encode(pruner, pixels), model.pruned.session.trace.final
        model.pruned.stage.remove()
        model.pruned = own
        own.stage.install()
        return features, kept

    found = engine.apply_model(inside)[0]
    if found is None:
        pytest.skip("cannot be served")
    with attach(reference.model, pruner) as handle:
        expected = reference.model.model.get_image_features(pixels).pooler_output
        kept = handle.trace.final
    if name in CHAOTIC:
        same = [len(set(one.tolist()) & set(two.tolist())) / len(two) for one, two in zip(found[1], kept, strict=True)]
        assert min(same) >= 0.45
    else:
        for one, two in zip(found[1], kept, strict=True):
            assert torch.equal(one, two)
        for one, two in zip(found[0], expected, strict=True):
            torch.testing.assert_close(one, two, atol=2e-4, rtol=2e-4)
    assert {len(feature) for feature in found[0]} == {pruner.tokens_of(576)}
