"""Encoders of five layers on a grid of 4 x 4 patches, each in a folder as transformers saves it."""

from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

SIZES = {"hidden_size": 24, "num_hidden_layers": 5, "num_attention_heads": 3, "image_size": 28, "patch_size": 7}


def build(kind: str):
    import transformers

    torch.manual_seed(3)
    wide = {"intermediate_size": 32, **SIZES}
    configs = {
        "CLIPVisionModel": lambda: transformers.CLIPVisionConfig(**wide),
        "SiglipVisionModel": lambda: transformers.SiglipVisionConfig(**wide),
        "Dinov2WithRegistersModel": lambda: transformers.Dinov2WithRegistersConfig(**SIZES, num_register_tokens=2),
    }
    model = getattr(transformers, kind)(configs[kind]()).eval()
    with torch.no_grad():  # fresh weights attend almost evenly
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and any(part in name for part in ("q_proj", "k_proj", "query", "key")):
                parameter.mul_(20)
    return model


@pytest.fixture(scope="session")
def make_encoder():
    """`make_encoder(kind)` gives a tiny encoder: CLIPVisionModel, SiglipVisionModel or Dinov2WithRegistersModel."""
    built = cache(build)
    return lambda kind: deepcopy(built(kind))


@pytest.fixture(scope="session")
def encoder_folders(make_encoder, tmp_path_factory):
    """Class name -> folder with the tiny encoder and the file of its image processor."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folders = {}
    for kind in ("CLIPVisionModel", "SiglipVisionModel", "Dinov2WithRegistersModel"):
        folders[kind] = tmp_path_factory.mktemp(kind)
        make_encoder(kind).save_pretrained(folders[kind])
        sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
        CLIPImageProcessorPil(**sizes).save_pretrained(folders[kind])
    return folders


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory):
    """a.png and b.jpg, of different shapes, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(folder / "a.png")
    Image.fromarray(random.integers(0, 255, (30, 50, 3), dtype=np.uint8)).save(folder / "b.jpg")
    (folder / "notes.txt").write_text("no picture")
    return folder
