"""The tiny LLaVA: logits against the released code's, batches against single samples, training, gradients."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig

from llava import LlavaConfig, LlavaLlamaForCausalLM
from llava.model import LlavaMistralConfig, LlavaMistralForCausalLM

GOLDEN = Path(__file__).parents[2] / "golden"
IMAGE = -200
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}


def pixels(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 56, 56, generator=torch.Generator().manual_seed(seed))


def released_name(key: str) -> str:
    """From transformers' classic spelling to LLaVA's."""
    if key.startswith("vision_tower."):
        return "model.vision_tower." + key
    for i, linear in enumerate(("linear_1", "linear_2")):
        key = key.replace(f"multi_modal_projector.{linear}", f"model.mm_projector.{2 * i}")
    return key.removeprefix("language_model.")


@pytest.mark.parametrize("case", ["llava15a_b1_t16", "llava15a_b2_t16"])
def test_logits_and_answers_of_the_released_code(case, tmp_path):
    described = json.loads((GOLDEN / "manifest.json").read_text())[case]
    text, vision = described["config"]["text"], described["config"]["vision"]
    CLIPVisionConfig(**vision).save_pretrained(tmp_path / "vision_tower")
    config = LlavaConfig(
        **{name: value for name, value in text.items() if name != "rope_theta"},
        mm_vision_tower="vision_tower",
        mm_hidden_size=vision["hidden_size"],
        mm_projector_type="mlp2x_gelu",
        mm_vision_select_layer=-2,
        unfreeze_mm_vision_tower=True,
    )
    config._name_or_path = str(tmp_path)
    model = LlavaLlamaForCausalLM(config).eval()
    weights = load_file(GOLDEN / described["weights_file"])
    names = {released_name(key).replace("vision_tower.vision_model.", "vision_tower."): key for key in weights}
    model.load_state_dict({name: weights[key].float() for name, key in names.items()})

    gold = load_file(GOLDEN / described["data_file"])
    ids, images, mask = gold["input_ids"], gold["pixel_values"], gold.get("attention_mask")
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, images=images).logits
    lengths = model.splice_inputs(ids, images, attention_mask=mask).attention_mask.sum(dim=1)
    last = logits[torch.arange(len(ids)), lengths - 1]
    torch.testing.assert_close(last, gold["vanilla.last_logits"], atol=1e-4, rtol=0)
    answers = model.generate(
        ids, images=images, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None
    )
    assert torch.equal(answers, gold["vanilla.generated_ids"])


@pytest.fixture
def mixed():
    """Prompts of three kinds (two images, text only, one image), their images, and the ids padded on the right."""
    prompts = [[1, IMAGE, 8, IMAGE, 9], [1, 30, 40], [1, 20, 21, 22, IMAGE, 50, 51]]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)
    return prompts, [pixels(2), None, pixels(1, seed=7)], ids


@pytest.mark.parametrize("how", ["mask", "mask, padded left", "pads", "beams"])
def test_a_sample_in_a_batch_equals_the_sample_alone(tiny_llava, mixed, how):
    prompts, images, ids = mixed
    settings = GREEDY | ({"num_beams": 2} if how == "beams" else {})
    single = [
        tiny_llava.generate(torch.tensor([prompt]), images=image, **settings)[0]
        for prompt, image in zip(prompts, images, strict=True)
    ]
    assert len({tuple(answer.tolist()) for answer in single}) == 3
    assert all(len(answer) == 6 for answer in single)

    mask = None if how == "pads" else ids != 0
    if how == "mask, padded left":
        ids = torch.stack([row.roll(int((row == 0).sum())) for row in ids])
        mask = ids != 0
    together = torch.cat([image for image in images if image is not None])
    batch = tiny_llava.generate(ids, images=together, attention_mask=mask, **settings)
    assert torch.equal(batch, torch.stack(single))


def test_text_needs_no_images(tiny_llava, llama_folder):
    from transformers import LlamaForCausalLM

    plain = LlamaForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    ids = torch.tensor([[1, 30, 40, 50]])
    assert torch.equal(tiny_llava(ids).logits, plain(ids).logits)
    assert torch.equal(tiny_llava.generate(ids, **GREEDY), plain.generate(ids, **GREEDY)[:, 4:])


def test_the_image_is_heard(tiny_llava):
    ids = torch.tensor([[1, IMAGE, 8]])
    one, other = (tiny_llava(ids, images=pixels(1, seed)).logits[:, -1] for seed in (0, 1))
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_no_logits(tiny_llava, mixed, side):
    prompts, images, ids = mixed
    tiny_llava.config.tokenizer_padding_side = side
    together = torch.cat([image for image in images if image is not None])
    batch = tiny_llava(ids, attention_mask=ids != 0, images=together).logits
    for i, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        alone = tiny_llava(torch.tensor([prompt]), images=image).logits[0]
        row = batch[i, -len(alone) :] if side == "left" else batch[i, : len(alone)]
        torch.testing.assert_close(row, alone, atol=1e-5, rtol=0)


def test_errors_of_counting(tiny_llava, llama_folder):
    ids = torch.tensor([[1, IMAGE, 8]])
    with pytest.raises(ValueError, match="no images were given"):
        tiny_llava(ids)
    with pytest.raises(ValueError, match="no images were given"):
        tiny_llava.generate(ids)
    with pytest.raises(ValueError, match="1 <image> placeholders but 2 images"):
        tiny_llava(ids, images=pixels(2))
    with pytest.raises(ValueError, match="2 <image> placeholders but 1 images"):
        tiny_llava.generate(torch.tensor([[1, IMAGE, IMAGE]]), images=pixels(1))
    with pytest.raises(NotImplementedError, match="token ids"):
        tiny_llava.generate(inputs_embeds=torch.zeros(1, 2, 64))
    blind = LlavaLlamaForCausalLM.from_pretrained(llama_folder)
    with pytest.raises(ValueError, match="no vision tower"):
        blind(ids, images=pixels(1))


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(3, 56, 56), r"\[3, 56, 56\]"),
        (torch.zeros(1, 1, 56, 56), r"\[1, 1, 56, 56\]"),
        ([torch.zeros(56, 56)], r"\[56, 56\]"),
        (["photo.jpg"], "str"),
        ("photo.jpg", "str"),
    ],
)
def test_what_is_no_pixels_is_refused_in_one_line(tiny_llava, images, said):
    for call in (tiny_llava, lambda ids, images: tiny_llava.generate(ids, images=images, max_new_tokens=1)):
        with pytest.raises(ValueError, match=rf"^images={said} are not pixels; give .*image\[None\]$"):
            call(torch.tensor([[1, 5, -200, 7]]), images=images)


def test_generate_takes_the_first_images_as_llava_does(tiny_llava, caplog):
    ids = torch.tensor([[1, IMAGE, 8], [1, 9, 8]])
    first = tiny_llava.generate(ids, images=pixels(1), **GREEDY)
    assert not caplog.records
    assert torch.equal(tiny_llava.generate(ids[:1], images=pixels(3), **GREEDY), first[:1])
    assert "3 images were given for 1 <image> placeholders" in caplog.text
    # The row without a placeholder takes an image too, so that the second row gets the second image.
    swapped = tiny_llava.generate(ids.flip(0), images=pixels(2).flip(0), **GREEDY)
    assert torch.equal(swapped, first.flip(0))


def test_llavas_own_shape_of_the_splice(tiny_llava, mixed):
    _, images, ids = mixed
    together = torch.cat([image for image in images if image is not None])
    prepare = tiny_llava.prepare_inputs_labels_for_multimodal
    none_ids, places, mask, cache, embeds, labels = prepare(ids, None, ids != 0, None, ids, together)
    assert none_ids is places is cache is None
    assert embeds.shape == (3, 35, 64)
    assert mask.sum(dim=1).tolist() == [35, 3, 22]
    assert labels.shape == mask.shape
    # Without a mask there is one when (and only when) padding has to be hidden.
    one = prepare(ids[:1, :5], None, None, None, None, together[:2])
    assert one[2] is None
    assert one[5] is None
    # Nothing to splice: everything comes back.
    words = ids[1:2, :3]
    assert prepare(words, None, None, None, None, None) == (words, None, None, None, None, None)
    assert prepare(words[:, :1], None, None, None, None, together)[4] is None


def test_encode_images_takes_tensors_and_lists(tiny_llava):
    images = pixels(2)
    stacked = tiny_llava.encode_images(images)
    assert stacked.shape == (2, 16, 64)
    for listed, row in zip(tiny_llava.encode_images(list(images)), stacked, strict=True):
        torch.testing.assert_close(listed[0], row, atol=1e-5, rtol=0)
    tiles = tiny_llava.image_features([images, images[0]])
    torch.testing.assert_close(tiles[0], stacked.flatten(0, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(tiles[1], stacked[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("select_feature", ["patch", "cls_patch"])
def test_tower_gives_the_chosen_hidden_layer(tiny_llava, select_feature):
    tower = tiny_llava.get_vision_tower()
    tower.select_feature = select_feature
    states = tower.vision_tower(pixels(1), output_hidden_states=True).hidden_states
    assert len(states) == 3
    expected = states[1] if select_feature == "cls_patch" else states[1][:, 1:]
    assert torch.equal(tower(pixels(1)), expected)
    assert (tower.num_patches, tower.num_patches_per_side, tower.hidden_size) == (16, 4, 32)
    tower.select_feature = "cls"
    with pytest.raises(ValueError, match="Unexpected select feature: cls"):
        tower(pixels(1))


def test_shorter_features_of_a_pruned_tower_are_taken(tiny_llava):
    """A hook that keeps CLS and five patches, as a pruner does."""
    layer = tiny_llava.get_vision_tower().vision_tower.encoder.layers[0]
    ids = torch.tensor([[1, IMAGE, 8]])
    with torch.no_grad():
        assert tiny_llava(ids, images=pixels(1)).logits.shape[1] == 18
        hook = layer.register_forward_hook(lambda module, inputs, output: output[:, :6], prepend=True)
        assert tiny_llava(ids, images=pixels(1)).logits.shape[1] == 7
        hook.remove()
        assert tiny_llava(ids, images=pixels(1)).logits.shape[1] == 18


def test_a_hook_on_the_body_learns_where_the_visual_tokens_are(tiny_llava):
    seen = []
    hook = tiny_llava.get_model().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("image_index")), with_kwargs=True
    )
    tiny_llava(torch.tensor([[1, IMAGE, 8]]), images=pixels(1))
    tiny_llava.generate(torch.tensor([[1, IMAGE, 8]]), images=pixels(1), **GREEDY)
    hook.remove()
    assert seen[0].tolist() == seen[1].tolist() == [[-1, *[0] * 16, -1]]
    assert seen[2:] == [None] * 5


def loss_and_gradients(model, ids, images):
    model.zero_grad()
    loss = model(ids, labels=ids.masked_fill(ids < 2, -100), attention_mask=ids != 0, images=images).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("unfreeze", [True, False])
def test_gradients_reach_what_is_trainable(make_tiny_llava, mixed, unfreeze):
    _, images, ids = mixed
    model = make_tiny_llava(unfreeze=unfreeze).train()
    together = torch.cat([images[0], pixels(1), images[2]])  # the text-only sample brings a blank image
    _, gradients = loss_and_gradients(model, ids, together)
    assert gradients["model.mm_projector.0.weight"].abs().sum() > 0
    assert gradients["model.embed_tokens.weight"].abs().sum() > 0
    in_tower = [name for name in gradients if "vision_tower" in name]
    assert bool(in_tower) is unfreeze


def test_a_batch_of_text_alone_keeps_the_projector_in_the_graph(tiny_llava):
    ids = torch.tensor([[1, 30, 40]])
    _, gradients = loss_and_gradients(tiny_llava.train(), ids, torch.zeros(1, 3, 56, 56))
    assert gradients["model.mm_projector.0.weight"].abs().sum() == 0
    assert gradients["model.vision_tower.vision_tower.embeddings.class_embedding"].abs().sum() == 0


def test_gradient_checkpointing_changes_nothing(tiny_llava, mixed):
    _, images, ids = mixed
    together = torch.cat([image for image in images if image is not None])
    loss, gradients = loss_and_gradients(tiny_llava.train(), ids, together)
    tiny_llava.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loss_again, gradients_again = loss_and_gradients(tiny_llava, ids, together)
    assert loss == pytest.approx(loss_again)
    assert gradients.keys() == gradients_again.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_again[name], gradient)


def test_labels_are_those_of_the_text(tiny_llava):
    ids = torch.tensor([[1, IMAGE, 8, 9]])
    labels = torch.tensor([[-100, -100, -100, 9]])
    out = tiny_llava(ids, labels=labels, images=pixels(1))
    expected = torch.nn.functional.cross_entropy(out.logits[:, -2], torch.tensor([9]))
    assert out.loss.item() == pytest.approx(expected.item())


def test_length_is_cut_in_training_only(tiny_llava):
    tiny_llava.config.tokenizer_model_max_length = 10
    ids = torch.tensor([[1, IMAGE, 8]])
    assert tiny_llava(ids, images=pixels(1)).logits.shape[1] == 10
    cut_answer = tiny_llava.generate(ids, images=pixels(1), **GREEDY)
    tiny_llava.config.tokenizer_model_max_length = None
    assert torch.equal(cut_answer, tiny_llava.generate(ids, images=pixels(1), **GREEDY))


def test_asking_for_hidden_states_changes_nothing(tiny_llava):
    """transformers would hook the tower's layers a second time, and `hidden_states[-2]` would be another layer."""
    inputs = {"input_ids": torch.tensor([[1, IMAGE, 8]]), "images": pixels(1)}
    before = tiny_llava(**inputs).logits
    out = tiny_llava(**inputs, output_hidden_states=True)
    assert [state.shape[1] for state in out.hidden_states] == [18, 18, 18]
    after = tiny_llava(**inputs, return_dict=False)
    assert torch.equal(before, out.logits)
    assert torch.equal(before, after[0])


def test_a_new_model_has_no_uninitialised_weights(clip_folder):
    config = LlavaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=100,
        initializer_range=0.05,
        mm_vision_tower=str(clip_folder),
        mm_hidden_size=32,
        mm_projector_type="mlp2x_gelu",
        mm_vision_select_layer=-2,
        mm_patch_merge_type="spatial_unpad",
        unfreeze_mm_vision_tower=True,
    )
    model = LlavaLlamaForCausalLM(config)
    assert "CLIPVisionTower" in model._no_split_modules
    body = model.get_model()
    assert body.mm_projector[2].weight.std().item() == pytest.approx(0.05, rel=0.1)
    assert body.mm_projector[2].bias.abs().max() == 0
    assert body.image_newline.std().item() == pytest.approx(64**-0.5, rel=0.4)


def test_mistral_is_the_same_over_another_body(clip_folder):
    config = LlavaMistralConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        mm_vision_tower=str(clip_folder),
        mm_hidden_size=32,
        mm_projector_type="linear",
        mm_vision_select_layer=-2,
        unfreeze_mm_vision_tower=True,
    )
    model = LlavaMistralForCausalLM(config).eval()
    ids = torch.tensor([[1, IMAGE, 8, 0], [1, 4, IMAGE, 9]])
    batch = model.generate(ids, images=pixels(2), attention_mask=ids != 0, **GREEDY)
    assert torch.equal(batch[:1], model.generate(ids[:1, :3], images=pixels(2)[:1], **GREEDY))
    assert model(ids[1:], images=pixels(1)).logits.shape == (1, 19, 100)
