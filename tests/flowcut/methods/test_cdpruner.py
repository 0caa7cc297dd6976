"""CDPruner against determinants taken one by one, by hand, and with the question of each image."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from flowcut import CDPruner, asked, attach
from flowcut.methods.cdpruner import most_diverse, spread_out
from tests.flowcut.hosts import Clip, HFLlava, HFLlavaNext, HFQwen2VL, pixels
from tests.flowcut.seen import kept_of, watch

pytestmark = pytest.mark.usefixtures("no_gradients")


def chosen(kernel, number):
    """Greedily the subset of largest determinant, each computed from nothing."""
    picks = []
    while len(picks) < number:
        volumes = {}
        for token in set(range(len(kernel))) - set(picks):
            members = [*picks, token]
            volumes[token] = float(torch.linalg.det(kernel[members][:, members].double()))
        picks.append(max(volumes, key=volumes.get))
    return picks


def test_by_hand():
    # The second is all but the first; the third is at right angles; the fourth as well, but shorter.
    points = torch.tensor([[1.0, 0.0, 0.0], [0.99, 0.1, 0.0], [0.0, 0.9, 0.0], [0.0, 0.0, 0.8]])
    kernel = points @ points.T
    assert most_diverse(kernel[None], 4)[0].tolist() == [0, 2, 3, 1]


def test_against_determinants_and_padding():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2, 14, 12, generator=generator, dtype=torch.float64)
    kernel = points @ points.mT
    valid = torch.arange(14) < torch.tensor([14, 9])[:, None]
    picks = most_diverse(kernel, 8, valid)
    assert picks[0].tolist() == chosen(kernel[0], 8)
    assert picks[1].tolist() == chosen(kernel[1, :9, :9], 8)


def test_more_tokens_than_dimensions_are_still_all_different():
    points = torch.randn(1, 30, 4, generator=torch.Generator().manual_seed(0))
    picks = most_diverse(points @ points.mT, 30)
    assert sorted(picks[0].tolist()) == list(range(30))
    assert sorted(most_diverse(torch.ones(1, 5, 5), 5)[0].tolist()) == list(range(5))


def test_relevance_is_scaled_over_an_image():
    values = torch.tensor([[0.0, 1.0], [2.0, 4.0], [5.0, 5.0]])
    scaled = spread_out(values, (0, 0, 1))
    assert torch.allclose(scaled, torch.tensor([[0.0, 0.25], [0.5, 1.0], [1.0, 1.0]]), atol=1e-5)
    assert float(scaled[0, 0]) == pytest.approx(1e-6 / 4)
    padded = spread_out(torch.tensor([[0.0, 1.0, 9.0]]), (0,), torch.tensor([[True, True, False]]))
    assert padded[0, :2].tolist() == pytest.approx([1e-6, 1 + 1e-6])


def test_without_condition_it_is_the_diversity_of_projected_tokens():
    host = HFLlava()
    model = host.build()
    [features] = model.model.get_image_features(pixels([0])).pooler_output
    similarity = cosine_similarity(features[:, None].double(), features[None].double(), dim=-1).fill_diagonal_(1)
    [kept] = kept_of(host, model, CDPruner(10, condition=False), [host.samples()[0]])
    assert kept == sorted(chosen(similarity, 10))


def test_with_the_question(tower):
    host = HFLlava()
    model, sample = host.build(), host.samples()[1]  # two images
    view = watch(host, model, [sample]).views[6]
    texts = ("red cat", "abcdefghij klmno")
    with attach(model, CDPruner(10), signals=True) as handle, asked(handle, texts, tower):
        host.outputs(model, [sample])
    for image, text in enumerate(texts):
        features = view.projected[image].double()
        patches = tower.patches(view.visual(view.hidden)[image])
        cosines = [cosine_similarity(patches, words[None], dim=-1) for words in tower.embed(text)]
        relevance = -sum(cosines) / len(cosines)
        low, high = relevance.min(), relevance.max()
        relevance = ((relevance - low + 1e-6) / (high - low)).double()
        assert torch.allclose(handle.trace.signals[6]["relevance"][image], relevance.float(), atol=1e-4)
        kernel = cosine_similarity(features[:, None], features[None], dim=-1) * relevance[:, None] * relevance
        assert handle.trace.final[image].tolist() == sorted(chosen(kernel, 10))


@pytest.mark.parametrize("host", [HFLlava(), HFLlavaNext()], ids=["llava", "tiles"])
def test_batch_mates_do_not_matter(host, tower):
    model, samples = host.build(), [host.samples()[0], host.samples()[1], host.samples()[3]]
    about = [["a"], ["b c", "d"], ["eee"]]
    with attach(model, CDPruner(10)) as handle:
        with asked(handle, [text for texts in about for text in texts], tower):
            host.outputs(model, samples, handle)
        together, alone = handle.trace.tokens, []
        for sample, texts in zip(samples, about, strict=True):
            with asked(handle, texts, tower):
                host.outputs(model, [sample], handle)
            alone += handle.trace.tokens
    assert all(torch.equal(a[:, 1], b[:, 1]) for a, b in zip(together, alone, strict=True))


def test_of_merged_tokens_whole_groups_stay():
    host = HFQwen2VL()
    [kept] = kept_of(host, host.build(), CDPruner(7, condition=False), [host.samples()[3]])
    assert len(kept) == 28
    assert [patch // 4 for patch in kept[::4]] == [patch // 4 for patch in kept[3::4]]


def test_a_bare_encoder_has_its_features(tower):
    host = Clip()
    model, samples = host.build(), host.samples()[:1]
    features = watch(host, model, samples).views[6].hidden[0, 1:]
    similarity = cosine_similarity(features[:, None].double(), features[None].double(), dim=-1).fill_diagonal_(1)
    [kept] = kept_of(host, model, CDPruner(6, condition=False), samples)
    assert kept == sorted(chosen(similarity, 6))
