"""Other programs change LLaVA by replacing its methods and by hooks on its tower; here are such programs in small."""

import types

import pytest
import torch
from transformers import CLIPVisionModel

import llava.model.llava_arch as arch
from flowcut import attach
from llava import LlavaLlamaForCausalLM
from llava.model.checkpoint import with_vision_model_level
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower

IDS = torch.tensor([[1, -200, 8]])
GREEDY = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
TILED = {"merge": "spatial_unpad", "image_aspect_ratio": "anyres", "image_grid_pinpoints": [[56, 112], [112, 56]]}


def pixels(*shape):
    return torch.randn(*shape, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def lengths(model, ids=IDS, images=None, **more):
    """The sequence lengths that the language model gets, in a forward and in the prompt of `generate`."""
    seen = []
    body = model.get_model()
    hook = body.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]) if not seen[1:] else None,
        with_kwargs=True,
    )
    images = pixels(1) if images is None else images
    with torch.no_grad():
        model(ids, images=images, **more)
        model.generate(ids, images=images, **more, **GREEDY)
    hook.remove()
    return seen


def test_encode_images_that_keeps_diverse_tokens(tiny_llava):
    """As DivPrune's program does it: features of the whole tower, of which it keeps those far from each other."""

    def diverse(self, images):
        features = self.get_model().mm_projector(self.get_model().get_vision_tower()(images))
        unit = torch.nn.functional.normalize(features[0].float(), dim=-1)
        near, chosen = unit @ unit.T, [0]
        while len(chosen) < 5:
            closest = near[chosen].max(dim=0).values
            closest[chosen] = 2
            chosen.append(int(closest.argmin()))
        return features[:, sorted(chosen)]

    assert lengths(tiny_llava) == [18, 18]
    tiny_llava.encode_images = types.MethodType(diverse, tiny_llava)
    assert lengths(tiny_llava) == [7, 7]
    attach(tiny_llava, "flowcut:budget=4,interval=1,last_layer=-2")
    with pytest.raises(ValueError, match="the attached pruner left 4 tokens of an image but encode_images gave"):
        tiny_llava(IDS, images=pixels(1))


def test_encode_images_replaced_on_the_class_or_by_a_subclass(tiny_llava, monkeypatch):
    original = arch.LlavaMetaForCausalLM.encode_images

    class Halved(LlavaLlamaForCausalLM):
        def encode_images(self, images):
            return list(super().encode_images(images)[:, ::2])

    changed = Halved(tiny_llava.config).eval()
    assert lengths(changed, images=pixels(1)) == [10, 10]
    monkeypatch.setattr(arch.LlavaMetaForCausalLM, "encode_images", lambda self, x: original(self, x)[:, :3])
    assert lengths(tiny_llava) == [5, 5]


def test_tiles_that_other_programs_shorten(make_tiny_llava):
    model = make_tiny_llava(**TILED)
    inputs = {"images": pixels(1, 3), "image_sizes": [(56, 112)]}
    assert lengths(model, **inputs) == [62 - 4, 62 - 4]  # whole 4 x 4, grid 4 x 8 with a token per row, two of text
    first = model.get_vision_tower().register_forward_hook(lambda module, args, output: output[:, :9])
    with pytest.raises(ValueError, match="9 tokens of a tile of 16 patches, which cannot be put on a grid"):
        model(IDS, **inputs)
    first.remove()
    model.config.mm_patch_merge_type = "flat"
    model.get_vision_tower().register_forward_hook(lambda module, args, output: output[:, :9])
    assert lengths(model, **inputs) == [29, 29]


def test_another_rule_to_take_padding_off(make_tiny_llava, monkeypatch):
    model = make_tiny_llava(**TILED)
    monkeypatch.setattr(arch, "unpad_image", lambda tensor, size: tensor[:, :2])
    assert lengths(model, images=pixels(1, 3), image_sizes=[(56, 112)]) == [28, 28]


@pytest.mark.parametrize("where", ["instance", "class"])
def test_prepare_inputs_that_drops_tokens(tiny_llava, monkeypatch, where):
    """It calls LLaVA's own and drops every second position; the mask and the positions are its own too."""
    original = LlavaLlamaForCausalLM.prepare_inputs_labels_for_multimodal
    seen = []

    def prepare(self, input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes=None):
        given = original(self, input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes)
        if given[4] is None:
            return given
        embeds = given[4][:, ::2]
        seen.append(tuple(embeds.shape))
        places = torch.arange(embeds.shape[1])[None] * 2
        return None, places, None, past_key_values, embeds, None if labels is None else given[5][:, ::2]

    if where == "class":
        monkeypatch.setattr(LlavaLlamaForCausalLM, "prepare_inputs_labels_for_multimodal", prepare)
    else:
        tiny_llava.prepare_inputs_labels_for_multimodal = types.MethodType(prepare, tiny_llava)
    positions = []
    tiny_llava.get_model().rotary_emb.register_forward_pre_hook(
        lambda module, args, kwargs: positions.append([*args, *kwargs.values()][-1]), with_kwargs=True
    )
    assert lengths(tiny_llava) == [9, 9]
    assert seen == [(1, 9, 64)] * 2
    assert positions[0].tolist() == positions[1].tolist() == [list(range(0, 18, 2))]
    loss = tiny_llava(IDS, images=pixels(1), labels=torch.tensor([[-100, -100, 8]])).loss
    assert loss.isnan()  # the label at the odd end is gone
    attach(tiny_llava, "fastv:budget=4,keep=4,layer=1")
    with pytest.raises(ValueError, match="does not say which are visual"):
        tiny_llava(IDS, images=pixels(1))


def test_a_tower_of_another_program(tiny_llava, monkeypatch):
    """As VisionZip's: attention of the last layer but one chooses tokens, inside the tower's forward."""

    @torch.no_grad()
    def forward(self, images):
        outputs = self.vision_tower(images, output_hidden_states=True, output_attentions=True)
        assert (len(outputs.hidden_states), len(outputs.attentions)) == (3, 2)
        best = outputs.attentions[self.select_layer].sum(dim=1)[:, 0, 1:].topk(4).indices
        return self.feature_select(outputs).gather(1, best[..., None].expand(-1, -1, 32))

    plain = tiny_llava.encode_images(pixels(2))
    tower = tiny_llava.get_vision_tower()
    tower.vision_tower.set_attn_implementation("eager")
    monkeypatch.setattr(CLIPVisionTower, "forward", forward)
    for _ in range(2):
        assert lengths(tiny_llava) == [6, 6]
    monkeypatch.undo()
    torch.testing.assert_close(tiny_llava.encode_images(pixels(2)), plain)


def test_feature_select_reads_what_it_likes(tiny_llava):
    tower = tiny_llava.get_vision_tower()
    tower.feature_select = lambda outputs: outputs.hidden_states[0][:, 1:7] + outputs.last_hidden_state[:, 1:7]
    assert lengths(tiny_llava) == [8, 8]


@pytest.mark.parametrize("place", ["model", "layer that is left out"])
def test_hooks_inside_the_tower_see_the_whole_of_it(tiny_llava, place):
    seen = []
    encoder = tiny_llava.get_vision_tower().vision_tower
    plain = tiny_llava(IDS, images=pixels(1)).logits
    if place == "model":
        encoder.register_forward_hook(lambda module, args, output: seen.append(len(output.hidden_states)))
    else:
        encoder.encoder.layers[-1].self_attn.k_proj.register_forward_hook(lambda *given: seen.append(3))
    assert torch.equal(tiny_llava(IDS, images=pixels(1)).logits, plain)
    assert seen == [3]


def test_attentions_asked_for_in_the_config(tiny_llava, clip_folder):
    """And hidden states are recorded once, also in a tower that was loaded later."""
    from types import SimpleNamespace

    tower = CLIPVisionTower(str(clip_folder), SimpleNamespace(mm_vision_select_layer=-2))
    tower.vision_tower.set_attn_implementation("eager")
    plain = tower(pixels(1))
    seen = []
    tower.vision_tower.config.output_attentions = True
    hook = tower.vision_tower.register_forward_hook(lambda module, args, output: seen.append(output))
    assert torch.equal(tower(pixels(1)), plain)
    hook.remove()
    assert torch.equal(tower(pixels(1)), plain)
    assert [len(output.attentions) for output in seen] == [2]
    assert isinstance(tower.vision_tower, CLIPVisionModel)
    assert len(tower.vision_tower(pixels(1), output_hidden_states=True).hidden_states) == 3


def test_the_level_vision_model_of_llavas_tower(make_tiny_llava):
    model, other = make_tiny_llava(), make_tiny_llava()
    inner = model.get_vision_tower().vision_tower
    assert inner.vision_model.encoder.layers[1] is inner.encoder.layers[1]
    assert inner.vision_model.embeddings is inner.embeddings
    assert not [name for name, _ in model.named_modules() if "vision_model" in name]
    torch.nn.init.normal_(inner.post_layernorm.weight)
    plain = {f"vision_tower.{name}": value for name, value in inner.state_dict().items()}
    for weights in (plain, {name.replace("tower.", "tower.vision_model.", 1): value for name, value in plain.items()}):
        torch.nn.init.zeros_(other.get_vision_tower().vision_tower.post_layernorm.weight)
        other.get_vision_tower().load_state_dict(dict(weights))
        assert torch.equal(other.get_vision_tower().vision_tower.post_layernorm.weight, inner.post_layernorm.weight)
    whole = with_vision_model_level(model.state_dict())
    assert "model.vision_tower.vision_tower.vision_model.post_layernorm.weight" in whole
    other.load_state_dict(whole)
