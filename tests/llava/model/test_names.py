"""Names that code written for LLaVA imports."""

import importlib

import pytest
import torch


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("llava", ["LlavaLlamaForCausalLM"]),
        (
            "llava.model",
            ["LlavaLlamaForCausalLM", "LlavaConfig", "LlavaMistralForCausalLM", "LlavaMistralConfig"],
        ),
        ("llava.model.builder", ["load_pretrained_model"]),
        ("llava.model.llava_arch", ["LlavaMetaModel", "LlavaMetaForCausalLM", "unpad_image"]),
        ("llava.model.multimodal_encoder.builder", ["build_vision_tower"]),
        ("llava.model.multimodal_encoder.clip_encoder", ["CLIPVisionTower"]),
        ("llava.model.multimodal_projector.builder", ["build_vision_projector", "IdentityMap"]),
        ("llava.model.utils", ["auto_upgrade"]),
        ("llava.eval.run_llava", ["eval_model", "image_parser", "load_image", "load_images"]),
        ("llava.utils", ["build_logger", "disable_torch_init", "server_error_msg", "moderation_msg"]),
        ("llava.train.llava_trainer", ["LLaVATrainer", "LengthGroupedSampler", "split_to_even_chunks"]),
        ("llava.train.train", ["LazySupervisedDataset", "find_all_linear_names", "maybe_zero_3", "rank0_print"]),
    ],
)
def test_they_are_there(module, names):
    found = importlib.import_module(module)
    for name in names:
        assert getattr(found, name) is not None


def test_a_missing_family_says_why():
    with pytest.raises(ImportError, match="MPT models are not supported"):
        importlib.import_module("llava.model").LlavaMptForCausalLM  # noqa: B018


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [((640, 480), (6, 42), (0, 48)), ((300, 1000), (0, 48), (17, 31)), ((48, 48), (0, 48), (0, 48))],
)
def test_unpad(size, rows, columns):
    """Sides of the picture on a 48 x 48 grid, by hand: 480 * 48 / 640 = 36, and 300 * 48 / 1000 = 14.4."""
    from llava.model.llava_arch import unpad_image

    grid = torch.arange(48 * 48).view(1, 48, 48)
    assert torch.equal(unpad_image(grid, size), grid[:, slice(*rows), slice(*columns)])
