"""Towers, projectors and image tokens, as training sets them up."""

from types import SimpleNamespace

import pytest
import torch

from llava.model.builder import load_tokenizer
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_projector.builder import build_vision_projector

LARGE = "openai/clip-vit-large-patch14-336"


def test_a_tower_of_several_scales_is_refused():
    with pytest.raises(ValueError, match="s2: true needs a tower of several scales"):
        build_vision_tower(tower_arguments(mm_vision_tower=LARGE, s2=True), delay_load=True)


def tower_arguments(**fields):
    return SimpleNamespace(**({"mm_vision_select_layer": -2} | fields))


@pytest.mark.parametrize(("name", "patches"), [(LARGE, 576), ("openai/clip-vit-large-patch14", 256)])
def test_the_usual_towers_are_known_without_network(name, patches):
    tower = build_vision_tower(tower_arguments(mm_vision_tower=name), delay_load=True)
    assert (tower.num_patches, tower.hidden_size, tower.config.num_hidden_layers) == (patches, 1024, 24)
    assert not tower.is_loaded
    with pytest.raises(ValueError, match="not loaded yet"):
        tower(torch.zeros(1, 3, 336, 336))


def test_a_tower_that_comes_with_the_checkpoint_has_clips_391_tensors():
    with torch.device("meta"):
        tower = CLIPVisionTower(LARGE, tower_arguments(unfreeze_mm_vision_tower=True), delay_load=True)
    assert tower.is_loaded
    assert len(tower.state_dict()) == 391
    assert tower.image_processor.crop_size["height"] == 336
    assert tower.image_processor.size["shortest_edge"] == 336


def test_a_tower_is_frozen_when_loaded(clip_folder):
    tower = build_vision_tower(tower_arguments(vision_tower=str(clip_folder)))
    assert tower.is_loaded
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert not tower(torch.zeros(1, 3, 56, 56)).requires_grad
    tower.requires_grad_(True)
    assert tower(torch.zeros(1, 3, 56, 56)).requires_grad
    assert tower(torch.zeros(1, 3, 56, 56, dtype=torch.float16)).dtype == torch.float16
    assert tower.dummy_feature.shape == (1, 32)


def test_towers_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="Unknown vision tower: someone/resnet"):
        build_vision_tower(tower_arguments(mm_vision_tower="someone/resnet"))
    with pytest.raises(ValueError, match="cannot be loaded") as error:
        build_vision_tower(tower_arguments(mm_vision_tower=str(tmp_path)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("linear", {"weight", "bias"}),
        ("mlp1x_gelu", {"0.weight", "0.bias"}),
        ("mlp2x_gelu", {"0.weight", "0.bias", "2.weight", "2.bias"}),
        ("identity", set()),
    ],
)
def test_projectors(kind, keys):
    projector = build_vision_projector(SimpleNamespace(mm_projector_type=kind, mm_hidden_size=4, hidden_size=6))
    assert set(projector.state_dict()) == keys
    assert projector(torch.zeros(2, 3, 4)).shape == (2, 3, 4 if kind == "identity" else 6)


def test_the_projectors_gelu_is_the_exact_one():
    projector = build_vision_projector(SimpleNamespace(mm_projector_type="mlp2x_gelu", mm_hidden_size=4, hidden_size=6))
    features = torch.randn(5, 4)
    inner = projector[0](features)
    expected = projector[2](inner * 0.5 * (1 + torch.erf(inner / 2**0.5)))
    torch.testing.assert_close(projector(features), expected)


def test_unknown_projector():
    with pytest.raises(ValueError, match="Unknown projector type: mlp0x_gelu"):
        build_vision_projector(SimpleNamespace(mm_projector_type="mlp0x_gelu", mm_hidden_size=4, hidden_size=6))


def model_arguments(clip_folder, adapter):
    return SimpleNamespace(
        vision_tower=str(clip_folder),
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        mm_projector_type="mlp2x_gelu",
        mm_patch_merge_type="flat",
        pretrain_mm_mlp_adapter=adapter and str(adapter),
    )


def test_a_pretrained_projector_is_read_whatever_stands_before_its_keys(make_tiny_llava, clip_folder, tmp_path):
    source, target = make_tiny_llava(), make_tiny_llava()
    weights = {f"base_model.{k}": v + 1 for k, v in source.state_dict().items() if "mm_projector" in k}
    torch.save(weights, tmp_path / "mm_projector.bin")
    target.requires_grad_(False)
    target.get_model().initialize_vision_modules(model_arguments(clip_folder, tmp_path / "mm_projector.bin"))
    for name, value in target.get_model().mm_projector.named_parameters():
        assert torch.equal(value, source.get_parameter(f"model.mm_projector.{name}") + 1)
        assert value.requires_grad
    torch.save({"lm_head.weight": torch.zeros(1)}, tmp_path / "other.bin")
    with pytest.raises(ValueError, match=r"holds no key with 'mm_projector\.'"):
        target.get_model().initialize_vision_modules(model_arguments(clip_folder, tmp_path / "other.bin"))


def test_a_projector_that_is_there_keeps_its_name(make_tiny_llava, clip_folder):
    """Training goes on from a checkpoint with the flag at its default, which is linear: what is saved has to load."""
    model = make_tiny_llava()
    assert model.config.mm_projector_type == "mlp2x_gelu"
    arguments = model_arguments(clip_folder, None)
    arguments.mm_projector_type = "linear"
    model.get_model().initialize_vision_modules(arguments)
    assert model.config.mm_projector_type == "mlp2x_gelu"
    assert (
        build_vision_projector(model.config).state_dict().keys() == model.get_model().mm_projector.state_dict().keys()
    )


def token_arguments(**chosen):
    flags = dict.fromkeys(("mm_use_im_patch_token", "mm_use_im_start_end", "tune_mm_mlp_adapter"), False)
    return SimpleNamespace(**(flags | {"pretrain_mm_mlp_adapter": None} | chosen))


def test_start_and_end_tokens_begin_as_the_mean(make_tiny_llava, llama_folder):
    model, tokenizer = make_tiny_llava(), load_tokenizer(str(llama_folder))
    means = [table.weight.mean(dim=0) for table in (model.get_input_embeddings(), model.lm_head)]
    model.initialize_vision_tokenizer(token_arguments(mm_use_im_start_end=True, tune_mm_mlp_adapter=True), tokenizer)
    assert tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"]) == [520, 521]
    for table, mean in zip((model.get_input_embeddings(), model.lm_head), means, strict=True):
        torch.testing.assert_close(table.weight[520:], mean.expand(2, -1))
    assert model.get_input_embeddings().weight.requires_grad
    assert not model.lm_head.weight.requires_grad


@pytest.mark.parametrize("rows", [2, 522])
def test_start_and_end_tokens_from_a_pretrained_adapter(make_tiny_llava, llama_folder, tmp_path, rows):
    model, tokenizer = make_tiny_llava(), load_tokenizer(str(llama_folder))
    stored = torch.randn(rows, 64)
    torch.save({"model.embed_tokens.weight": stored}, tmp_path / "mm_projector.bin")
    arguments = token_arguments(mm_use_im_start_end=True, pretrain_mm_mlp_adapter=str(tmp_path / "mm_projector.bin"))
    model.initialize_vision_tokenizer(arguments, tokenizer)
    assert torch.equal(model.get_input_embeddings().weight[520:], stored[-2:])


def test_an_adapter_with_other_rows_is_refused(make_tiny_llava, llama_folder, tmp_path):
    model, tokenizer = make_tiny_llava(), load_tokenizer(str(llama_folder))
    torch.save({"model.embed_tokens.weight": torch.zeros(3, 64)}, tmp_path / "mm_projector.bin")
    arguments = token_arguments(mm_use_im_start_end=True, pretrain_mm_mlp_adapter=str(tmp_path / "mm_projector.bin"))
    with pytest.raises(ValueError, match="expected 2 or 522 rows of 64"):
        model.initialize_vision_tokenizer(arguments, tokenizer)


def test_patch_token_alone_stays_frozen_with_the_adapter(make_tiny_llava, llama_folder):
    model, tokenizer = make_tiny_llava(), load_tokenizer(str(llama_folder))
    model.initialize_vision_tokenizer(token_arguments(mm_use_im_patch_token=True, tune_mm_mlp_adapter=True), tokenizer)
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings == 521
    assert not model.get_input_embeddings().weight.requires_grad
    assert not model.lm_head.weight.requires_grad
