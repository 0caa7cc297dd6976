"""Loading: whose classes, what is refused, and how pictures and frames are prepared."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from llava.eval.media.frames import sample_frames
from llava.eval.models.hf_answerer import HFAnswerer
from llava.eval.models.hf_checkpoint import load_hf_checkpoint
from llava.eval.models.hf_inputs import join_frames
from llava.eval.models.load import fits_llava_classes, load_answerer
from tests.llava.eval.models.tiny import FAMILIES

pytest.importorskip("av", reason="videos need PyAV: pip install av")


def test_llavas_own_classes_are_taken_where_they_fit(hf_folder, llava_folder, tmp_path):
    assert {family for family in FAMILIES if fits_llava_classes(str(hf_folder(family)))} == {
        "llava_hf",
        "llava_next_hf",
    }
    assert fits_llava_classes(str(llava_folder))
    assert fits_llava_classes(str(tmp_path)), "an adapter has no config.json"
    assert not isinstance(load_answerer(str(llava_folder), device="cpu"), HFAnswerer)
    with pytest.raises(ValueError, match="is not a folder"):
        fits_llava_classes(str(tmp_path / "nothing"))


def test_the_host_may_be_chosen(hf_folder):
    folder = str(hf_folder("llava_hf"))
    assert isinstance(load_answerer(folder, backend="transformers", device="cpu"), HFAnswerer)
    assert isinstance(load_answerer(str(hf_folder("qwen2_vl")), device="cpu"), HFAnswerer)
    with pytest.raises(ValueError, match="Qwen2VLForConditionalGeneration"):
        load_answerer(str(hf_folder("qwen2_vl")), backend="llava", device="cpu")
    with pytest.raises(ValueError, match="host='vllm' is unknown; use auto, llava, transformers"):
        load_answerer(folder, backend="vllm")
    with pytest.raises(ValueError, match="need complete checkpoints; merge"):
        load_answerer(folder, model_base="base", backend="transformers")


def test_settings_say_what_decides(hf_checkpoint):
    settings = HFAnswerer(hf_checkpoint("qwen2_vl"), "flowcut:budget=6").settings()
    assert settings["host"] == "transformers Qwen2VLForConditionalGeneration"
    assert (settings["conv_mode"], settings["frames"], settings["max_pixels"]) == ("chat template", 3, None)
    assert settings["dtype"] == "float32"
    assert len(settings["model_hash"]) == len(settings["prepared_by"]) == 16
    assert json.loads(json.dumps(settings)) == settings


@pytest.fixture
def broken(hf_folder, tmp_path):
    """A copy to break."""
    return lambda family: shutil.copytree(hf_folder(family), tmp_path / family)


def test_missing_weights_are_refused(broken):
    folder = broken("video_llava")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "multi_modal" not in k}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match=r"lacks 4 weights of VideoLlavaForConditionalGeneration, such as .*noise"):
        load_hf_checkpoint(str(folder), device="cpu")
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="is damaged") as error:
        load_hf_checkpoint(str(folder), device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer.json"])
def test_missing_files_are_named(broken, name):
    folder = broken("video_llava")
    (folder / name).unlink()
    with pytest.raises(ValueError, match="lacks files of its tokenizer or processor") as error:
        load_hf_checkpoint(str(folder), device="cpu")
    assert "\n" not in str(error.value)


def test_a_prompt_is_needed(broken):
    folder = broken("video_llava")
    (folder / "chat_template.json").unlink()
    with pytest.raises(ValueError, match="has no chat template; say how to prompt it"):
        load_hf_checkpoint(str(folder), device="cpu")
    assert load_hf_checkpoint(str(folder), conv_mode="llava_v1", device="cpu").mode == "llava_v1"
    with pytest.raises(ValueError, match="conversation mode 'chat' is unknown"):
        load_hf_checkpoint(str(folder), conv_mode="chat", device="cpu")


def test_what_is_no_model_for_pictures_is_refused(llama_folder):
    with pytest.raises(ValueError, match="for which transformers knows no way to prepare pictures"):
        load_hf_checkpoint(str(llama_folder), device="cpu")


@pytest.mark.parametrize("family", ["qwen2_vl", "glm4v"])
def test_max_pixels(hf_folder, family):
    """40 x 120 pixels: 5 x 15 tokens of 8 x 8 pixels, or as few as fit."""
    picture = Image.new("RGB", (120, 40))
    for limit, most in ((None, 25), (100 * 64, 100), (12 * 64, 12)):
        checkpoint = load_hf_checkpoint(str(hf_folder(family)), device="cpu", max_pixels=limit)
        grid = checkpoint.show(picture).inputs["image_grid_thw"]
        assert int(grid.prod()) // 4 <= most
        assert (int(grid.prod()) // 4 == 75) == (limit == 100 * 64)
    with pytest.raises(ValueError, match="max_pixels=10 is less than one token"):
        load_hf_checkpoint(str(hf_folder(family)), device="cpu", max_pixels=10)
    with pytest.raises(ValueError, match="is for models such as Qwen2-VL"):
        load_hf_checkpoint(str(hf_folder("video_llava")), device="cpu", max_pixels=10000)


def test_video_llava_frames_are_cropped_and_never_flipped(hf_checkpoint, video):
    """Against Pillow: short side 24, centre crop, CLIP's mean and deviation."""
    inputs = hf_checkpoint("video_llava").show(video).inputs
    mean, deviation = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    assert list(inputs) == ["pixel_values_videos"]
    assert inputs["pixel_values_videos"].shape == (1, 3, 3, 24, 24)
    for frame, got in zip(sample_frames(video, 3).frames, inputs["pixel_values_videos"][0], strict=True):
        small = frame.resize((32, 24), Image.Resampling.BICUBIC).crop((4, 0, 28, 24))
        expected = (np.asarray(small) / 255 - mean) / deviation
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float32).permute(2, 0, 1))


@pytest.mark.parametrize("kind", [Qwen2VLImageProcessorPil, Glm4vImageProcessorPil])
def test_frames_joined_by_two_are_patches_through_time(kind):
    """Against loops over time, merge groups, channels, frames, rows and columns."""
    frames = [np.random.default_rng(seed).integers(0, 255, (16, 24, 3), dtype=np.uint8) for seed in range(3)]
    processor = kind(patch_size=4, merge_size=2, do_resize=False, do_rescale=False, do_normalize=False)
    single = processor([Image.fromarray(frame) for frame in frames], return_tensors="pt")["pixel_values"]
    joined = join_frames(single.view(3, 24, -1), 2)
    assert joined.shape == (2, 24, 3 * 2 * 16)
    for time, pair in enumerate([(0, 1), (2, 2)]):
        patch = 0
        for group_row in range(2):
            for group_column in range(3):
                for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
                    y, x = (2 * group_row + row) * 4, (2 * group_column + column) * 4
                    expected = [frames[f][y : y + 4, x : x + 4, c] for c in range(3) for f in pair]
                    assert joined[time, patch].tolist() == np.stack(expected).flatten().tolist()
                    patch += 1


def test_qwen_videos_have_their_own_size_and_times(hf_checkpoint, video):
    """Three of 20 frames at 10 a second, which is 1.5 a second; two make a step in time."""
    inputs = hf_checkpoint("qwen2_5_vl").show(video).inputs
    assert inputs["video_grid_thw"].tolist() == [[2, 4, 6]]
    assert inputs["second_per_grid_ts"].item() == pytest.approx(2 / 1.5)
    batch = hf_checkpoint("qwen2_vl").batch([""], [hf_checkpoint("qwen2_vl").show(video)])
    assert "second_per_grid_ts" not in batch


def test_qwen3_prompts_tell_the_time_of_each_step(hf_checkpoint, video):
    """Frames 0, 9 and 19 at 10 a second; a step is two frames, the last one repeated, at the mean of their times."""
    checkpoint = hf_checkpoint("qwen3_vl")
    shown = checkpoint.show(video)
    frame = f"<|vision_start|>{'<|video_pad|>' * (shown.rows[0] // 4)}<|vision_end|>"
    expected = f"a <0.5 seconds>{frame}<1.9 seconds>{frame} b"
    assert checkpoint.preparation.expand("a <|video_pad|> b", [shown]) == expected


def test_qwen3_5_answers(hf_folder, video):
    """With the tokenizer as it was written; see tiny.py. A batch as its rows, pictures and videos."""
    folder = hf_folder("qwen3_5")
    checkpoint = load_hf_checkpoint(str(folder), device="cpu", frames=3)
    checkpoint.preparation.processor.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    answer, texts = (
        HFAnswerer(checkpoint, "flowcut:budget=6"),
        ["what is in this image", "two", "hello"],
    )
    shown = [[Image.new("RGB", (40, 28), "red")], [video], []]
    together = [reply.text for reply in answer(texts, shown)]
    assert together == [answer([text], [own])[0].text for text, own in zip(texts, shown, strict=True)]
    assert len(set(together)) > 1


def test_glm_videos(hf_checkpoint, video):
    """Each step has the placeholders of a picture, then its first frame's second; types tell it from pictures."""
    checkpoint = hf_checkpoint("glm4v")
    shown = checkpoint.show(video)
    frame = f"<|begin_of_image|>{'<|image|>' * (shown.rows[0] // 4)}<|end_of_image|>"
    prompt = checkpoint.preparation.expand("<|begin_of_video|><|video|><|end_of_video|> two", [shown])
    assert prompt == f"<|begin_of_video|>{frame}0{frame}1<|end_of_video|> two"
    types = checkpoint.batch([prompt], [shown])["mm_token_type_ids"]
    assert sorted(set(types.flatten().tolist())) == [0, 2]
    together, [alone] = (HFAnswerer(checkpoint, "random:budget=3")(["two"] * n, [[video]] * n) for n in (2, 1))
    assert {reply.text for reply in together} == {alone.text}
    assert (alone.tokens[0], alone.visual_tokens) == (sum(shown.rows), 2 * 3)


def test_videos_and_models_for_pictures(hf_checkpoint, video, tmp_path):
    with pytest.raises(ValueError, match="shown to a model that takes pictures only"):
        hf_checkpoint("llava_hf").show(video)
    with pytest.raises(ValueError, match="frames=0 is not a number of frames"):
        load_hf_checkpoint("anything", frames=0)
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        hf_checkpoint("video_llava").reader("bad.mp4", tmp_path)


def test_a_processor_that_lacks_a_package_is_told_in_one_line(hf_folder, monkeypatch):
    """As SmolVLM's does without num2words."""

    def lacks(self, *args, **kwargs):
        raise ImportError("Package `num2words` is required to run SmolVLM processor.")

    monkeypatch.setattr("transformers.models.idefics3.processing_idefics3.Idefics3Processor.__init__", lacks)
    with pytest.raises(ValueError, match=r"the processor of .* lacks a package: Package `num2words` is required"):
        load_hf_checkpoint(str(hf_folder("idefics3")), device="cpu")
