"""What can be looked at: the encoders inside of transformers' own models, as those models use them."""

import pytest
import torch

from flowcut.flow.subject import load_subject
from tests.llava.eval.models.tiny import pictures, write_tiny_checkpoint


@pytest.mark.parametrize(("family", "special"), [("llava_onevision", 0), ("video_llava", 1)])
def test_an_encoder_inside_of_a_host(family, special, tmp_path):
    subject = load_subject(str(write_tiny_checkpoint(tmp_path / family, family)))
    [image] = pictures(1)
    pixels = subject.pixels(image)
    assert subject.encoder.num_prefix_tokens == special
    assert pixels.shape == (1, 3, 24, 24)
    assert subject.grid(pixels) == (6, 6)
    picture = subject.picture(pixels)
    assert picture.shape == (24, 24, 3)
    mean, std = (torch.tensor(getattr(subject.processor, name)) for name in ("image_mean", "image_std"))
    seen = (torch.from_numpy(picture).float() / 255 - mean) / std
    torch.testing.assert_close(seen.permute(2, 0, 1), pixels[0], atol=0.02, rtol=0)


def test_what_is_read_is_what_the_host_reads(tmp_path):
    subject = load_subject(str(write_tiny_checkpoint(tmp_path / "host", "video_llava")))
    config = subject.reader.checkpoint.model.config
    layers = subject.encoder.depth
    assert subject.feature_layer == layers + 1 + config.vision_feature_layer - 1


def test_merged_patches_are_refused(tmp_path):
    with pytest.raises(ValueError, match="merges patches 4 by 4"):
        load_subject(str(write_tiny_checkpoint(tmp_path / "host", "qwen2_vl")))


def test_an_encoder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip_vision_model"}')
    with pytest.raises(ValueError, match="has no weights"):
        load_subject(str(tmp_path))
