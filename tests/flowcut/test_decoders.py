"""LLaVA over language models of many architectures: encoder methods on all, cuts inside where the layout is known."""

from dataclasses import dataclass

import pytest
import torch
import transformers
from hosts import IMAGE_TOKEN, SAMPLES, TEXT, VISION, HFLlava
from transformers import CLIPVisionConfig
from transformers import LlavaConfig as HFLlavaConfig

from flowcut import DART, FastV, FlowCut, PyramidDrop, SparseVLM, attach
from flowcut.methods.text_attention import keys_from_start, position_prior
from flowcut.pruner import Cut, Pruner

SMALL = {key: value for key, value in TEXT.items() if key not in ("num_key_value_heads", "intermediate_size")}
SHORT = {"vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
WINDOW = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2}
CONFIGS = {
    "GPTNeoX": SMALL | {"intermediate_size": 64},
    "GPT2": SHORT | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "OPT": SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 512},
    "Falcon": SMALL | {"alibi": True},
    "Bloom": SHORT | {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Phi": TEXT,
    "StableLm": TEXT,
    "Glm": TEXT | {"head_dim": 8},
    "Cohere": TEXT,
    "Gemma2": TEXT | {"head_dim": 8} | WINDOW,
    "Gemma3Text": TEXT | {"head_dim": 8} | WINDOW,
    "Qwen2": TEXT | WINDOW | {"use_sliding_window": True},
}
EAGER = ("Bloom", "Gemma2")
UNKNOWN = ("GPTNeoX", "GPT2", "OPT", "Falcon", "Bloom")


class Over(HFLlava):
    """transformers' LLaVA over another language model."""

    def __init__(self, architecture):
        self.architecture = architecture

    def config(self):
        text = getattr(transformers, f"{self.architecture}Config")(
            **CONFIGS[self.architecture], tie_word_embeddings=False
        )
        return HFLlavaConfig(
            vision_config=CLIPVisionConfig(**VISION),
            text_config=text,
            image_token_id=IMAGE_TOKEN,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            tie_word_embeddings=False,
        )

    def build(self):
        return super().build(implementation="eager" if self.architecture in EAGER else "sdpa")


@dataclass(frozen=True)
class Half(Pruner):
    """Keep every second visual token, twice: a choice that does not depend on who asks last."""

    renumber: bool = False

    def language(self, view):
        if view.layer not in (0, 2):
            return None
        return Cut.rows([torch.arange(0, count, 2) for count in view.counts], renumber=self.renumber)


def right(host, model, pruner):
    """Alone as in a padded batch, cached as uncached."""
    with torch.no_grad(), attach(model, pruner) as handle:
        batch = host.outputs(model, SAMPLES, handle, "left")
        for sample, row in zip(SAMPLES, batch, strict=True):
            torch.testing.assert_close(host.outputs(model, [sample], handle)[0], row, atol=1e-4, rtol=1e-4)
        cached = host.generate(model, SAMPLES)
        assert torch.equal(cached, host.generate(model, SAMPLES, use_cache=False))


@pytest.mark.parametrize("architecture", CONFIGS)
def test_pruned_in_the_encoder(architecture):
    host = Over(architecture)
    right(host, host.build(), FlowCut(10))


@pytest.mark.parametrize("architecture", [name for name in CONFIGS if name not in UNKNOWN])
@pytest.mark.parametrize("pruner", [Half(1), Half(1, renumber=True)])
def test_cut_in_the_decoder(architecture, pruner):
    host = Over(architecture)
    right(host, host.build(), pruner)


@pytest.mark.parametrize("architecture", UNKNOWN)
def test_refused_in_the_decoder(architecture):
    with pytest.raises(ValueError, match=r"no method can cut inside a .* use a method that cuts in the enc"):
        attach(Over(architecture).build(), FastV(30, layer=1, keep=5))


@pytest.mark.parametrize("architecture", ["Phi", "Gemma3Text"])
@pytest.mark.parametrize(
    "pruner", [FastV(36), PyramidDrop(36, layers=(1, 2)), DART(36), SparseVLM(36, layers=(0, 1, 2))]
)
def test_a_budget_that_drops_nothing(architecture, pruner):
    host = Over(architecture)
    model = host.build()
    with torch.no_grad():
        expected = host.outputs(model, SAMPLES)
        with attach(model, pruner) as handle:
            found = host.outputs(model, SAMPLES, handle)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


@dataclass(frozen=True)
class Ahead(Pruner):
    """Compares what is foretold of the next layer with what that layer is seen to attend with."""

    reads_hidden = True

    def language(self, view):
        if "foretold" in view.memory:
            foretold = view.memory.pop("foretold")
            for name in ("q", "k", "v"):
                torch.testing.assert_close(getattr(foretold, name), getattr(view, name), atol=1e-5, rtol=1e-5)
        cut = Half.language(Half(1, renumber=False), view) if view.layer == 2 else None
        if view.layer + 1 < view.layers and cut is None:
            view.memory["foretold"] = view.next_layer()
        return cut


@pytest.mark.parametrize("architecture", ["Gemma3Text", "Gemma2", "Qwen2", "Phi"])
def test_the_next_layer_has_its_own_kind_of_position_embeddings(architecture):
    host = Over(architecture)
    model = host.build()
    with torch.no_grad(), attach(model, Ahead(1)) as handle:
        host.outputs(model, SAMPLES, handle, "left")


@dataclass(frozen=True)
class Seen(Pruner):
    """Keeps what DART and SparseVLM+ derive from position embeddings."""

    reads_hidden = True

    def language(self, view):
        if view.layer == 0:
            columns = torch.arange(view.q.shape[2])
            SEEN.update(keys=keys_from_start(view, 0), prior=position_prior(view, 0, columns), k=view.k)
            SEEN.update(rotary=view.source.rotary, columns=view.layout.columns[0], real=view.layout.real)


SEEN = {}


@pytest.mark.parametrize(("architecture", "width"), [("Phi", 4), ("StableLm", 2), ("Glm", 4)])
def test_partial_rotary_by_hand(architecture, width):
    """Turned by complex numbers: entry i with i + width / 2 of the first `width`, in GLM 2 i with 2 i + 1."""
    host = Over(architecture)
    model = host.build()
    inputs = host.inputs(SAMPLES[:2], "left")  # the first is padded on the left
    with torch.no_grad(), attach(model, Seen(1)):
        model(**inputs, position_ids=torch.arange(inputs["input_ids"].shape[1])[None])
    first = int((inputs["attention_mask"][0] == 0).sum())
    assert first > 0
    base = model.config.text_config.rope_parameters["rope_theta"]
    angle = torch.outer(torch.arange(SEEN["k"].shape[2]).float(), base ** (-torch.arange(0, width, 2) / width))
    even, odd = (
        (slice(0, width, 2), slice(1, width, 2))
        if architecture == "Glm"
        else (slice(0, width // 2), slice(width // 2, width))
    )
    keys = SEEN["k"][0].clone()
    turned = torch.complex(keys[..., even], keys[..., odd]) * torch.polar(torch.ones(width // 2), -angle[first])
    keys[..., even], keys[..., odd] = turned.real, turned.imag
    torch.testing.assert_close(SEEN["keys"], keys, atol=1e-5, rtol=1e-5)
    apart = angle[:, None] - angle[None, SEEN["columns"]]
    prior = (2 * apart.cos().sum(dim=-1) + (8 - width)) * 8**-0.5
    torch.testing.assert_close(SEEN["prior"], prior, atol=1e-4, rtol=1e-4)
