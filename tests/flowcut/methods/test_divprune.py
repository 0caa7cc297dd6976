"""DivPrune against a loop over the paper's definition, on points in the plane, and on what really is projected."""

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import CLIPVisionConfig, LlamaConfig, LlavaForConditionalGeneration
from transformers import LlavaConfig as HFLlavaConfig

from flowcut import DivPrune, attach
from flowcut.methods.divprune import distances, furthest_apart
from tests.flowcut.hosts import IMAGE_TOKEN, TEXT, VISION, HFLlava, HFLlavaSiglip, HFQwen2VL, HFQwen25VL, pixels
from tests.flowcut.seen import kept_of


def chosen(points, number):
    """By the definition, one pair after the other."""
    count = len(points)
    apart = [[1 - float(cosine_similarity(points[a], points[b], dim=0)) for b in range(count)] for a in range(count)]
    alone = [min(apart[a][b] for b in range(count) if b != a) for a in range(count)]
    picks = [max(range(count), key=lambda a: alone[a])]
    while len(picks) < number:
        free = [a for a in range(count) if a not in picks]
        picks.append(max(free, key=lambda a: min(apart[a][b] for b in picks)))
    return picks


def plane(*degrees):
    return torch.tensor([[math.cos(math.radians(one)), math.sin(math.radians(one))] for one in degrees])


def test_points_in_the_plane():
    # Alone stands 100 (60 from 40); furthest from it is 0, then 40 (40 from 0, 60 from 100), last the neighbours.
    points = plane(0, 10, 40, 100, 5)
    assert furthest_apart(distances(points[None]), 3)[0].tolist() == [3, 0, 2]
    assert sorted(furthest_apart(distances(points[None]), 5)[0].tolist()) == [0, 1, 2, 3, 4]


def test_length_does_not_matter_and_of_equals_the_first_is_taken():
    points = plane(0, 90, 180, 270) * torch.tensor([[1.0], [20.0], [0.01], [3.0]])
    assert furthest_apart(distances(points[None]), 4)[0].tolist() == [0, 2, 1, 3]


def test_random_points_and_padding():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3, 20, 8, generator=generator, dtype=torch.float64).float()
    valid = torch.arange(20) < torch.tensor([20, 12, 5])[:, None]
    picks = furthest_apart(distances(points), 12, valid)
    for row, (count, number) in enumerate(((20, 12), (12, 12), (5, 5))):
        assert picks[row, :number].tolist() == chosen(points[row, :count], number)


@pytest.mark.parametrize("host", [HFLlava(), HFLlavaSiglip()], ids=["clip", "siglip, read after its last layer"])
def test_it_is_what_the_language_model_would_get(host):
    model, samples = host.build(), [host.samples()[0]]
    with torch.no_grad():
        features = model.model.get_image_features(pixels([0])).pooler_output
    for budget in (1, 2, 10, 35):
        [kept] = kept_of(host, model, DivPrune(budget), samples)
        assert kept == sorted(chosen(features[0], budget))


@pytest.mark.parametrize("host", [HFQwen2VL(), HFQwen25VL()], ids=["qwen2", "qwen2.5"])
def test_of_merged_tokens_whole_groups_stay(host):
    model, samples = host.build(), [host.samples()[3]]
    media = host.media(samples)
    with torch.no_grad():
        [features] = model.model.get_image_features(**media).pooler_output
    [kept] = kept_of(host, model, DivPrune(10), samples)
    tokens = sorted(chosen(features, 10))
    assert kept == [token * 4 + inside for token in tokens for inside in range(4)]


def test_features_of_several_layers_are_refused_in_one_line():
    config = HFLlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**TEXT),
        image_token_id=IMAGE_TOKEN,
        vision_feature_layer=[-2, -3],
        vision_feature_select_strategy="default",
    )
    model, host = LlavaForConditionalGeneration(config).eval(), HFLlava()
    with (
        torch.no_grad(),
        attach(model, DivPrune(10)),
        pytest.raises(ValueError, match=r"projects features of layers \[-2, -3\] together") as error,
    ):
        host.outputs(model, host.samples()[:1])
    assert "\n" not in str(error.value)
