"""Pixels and token ids, against values computed by hand or by other means."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava import mm_utils
from llava.model.builder import load_tokenizer

PINPOINTS = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
PROCESSOR = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})


def noise(width: int, height: int) -> Image.Image:
    blocks = np.random.default_rng(width + height).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height))


@pytest.mark.parametrize(
    ("size", "best", "tiles"),
    [
        ((336, 336), (336, 672), 3),
        ((640, 480), (672, 672), 5),
        ((1000, 300), (1008, 336), 4),
        ((300, 1000), (336, 1008), 4),
        ((672, 672), (672, 672), 5),
        ((1920, 1080), (672, 672), 5),
    ],
)
def test_anyres_table(size, best, tiles):
    assert mm_utils.select_best_resolution(size, PINPOINTS) == best
    assert mm_utils.get_anyres_image_grid_shape(size, str(PINPOINTS), 336) == (best[0] // 336, best[1] // 336)
    pixels = mm_utils.process_anyres_image(noise(*size), PROCESSOR, PINPOINTS)
    assert pixels.shape == (tiles, 3, 336, 336)


def test_tiles_put_the_canvas_together_again():
    canvas = mm_utils.resize_and_pad_image(noise(1000, 300), (1008, 336))
    assert canvas.size == (1008, 336)
    assert canvas.getpixel((500, 0)) == (0, 0, 0)  # 1008 x 303 in the middle of 336 rows
    assert canvas.getpixel((500, 16)) != (0, 0, 0)
    tiles = mm_utils.divide_to_patches(canvas, 336)
    assert np.array_equal(np.concatenate([np.asarray(tile) for tile in tiles], axis=1), np.asarray(canvas))
    rows = mm_utils.divide_to_patches(noise(700, 672), 336)
    assert len(rows) == 6
    assert rows[2].getpixel((335, 0)) == (0, 0, 0)  # past the right edge


def test_expand2square():
    wide = noise(41, 20)
    square = mm_utils.expand2square(wide, (1, 2, 3))
    assert square.size == (41, 41)
    assert square.getpixel((0, 9)) == (1, 2, 3)
    assert np.array_equal(np.asarray(square)[10:30], np.asarray(wide))
    assert mm_utils.expand2square(square, (0, 0, 0)) is square


@pytest.mark.parametrize("size", [(640, 480), (333, 500), (100, 60)])
def test_padded_pixels_equal_plain_pil_arithmetic(size):
    image = noise(*size)
    (pixels,) = mm_utils.process_images([image], PROCESSOR, SimpleNamespace(image_aspect_ratio="pad"))
    side = max(size)
    canvas = Image.new("RGB", (side, side), (122, 116, 104))
    canvas.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    values = np.asarray(canvas.resize((336, 336), Image.Resampling.BICUBIC)) / 255
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    expected = torch.tensor((values - mean) / std).permute(2, 0, 1).float()
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)


def test_grey_pictures_are_taken():
    pixels = mm_utils.process_images([noise(40, 30).convert("L")], PROCESSOR, SimpleNamespace(image_aspect_ratio="pad"))
    assert pixels.shape == (1, 3, 336, 336)


def test_square_crops_and_unequal_shapes_make_a_list():
    both = [noise(640, 480), noise(300, 1000)]
    assert mm_utils.process_images(both, PROCESSOR, SimpleNamespace()).shape == (2, 3, 336, 336)
    anyres = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=PINPOINTS)
    assert [len(pixels) for pixels in mm_utils.process_images(both, PROCESSOR, anyres)] == [5, 4]


def test_load_image_from_base64():
    buffer = io.BytesIO()
    noise(9, 7).save(buffer, "PNG")
    assert mm_utils.load_image_from_base64(base64.b64encode(buffer.getvalue())).size == (9, 7)


def test_text_around_images_is_tokenised_piece_by_piece(tokenizer_folder):
    tokenizer = load_tokenizer(str(tokenizer_folder))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_folder / "tokenizer.model"))
    before, middle, after = "hello USER:", "and ", "\nwhat is this? ASSISTANT:"
    ids = mm_utils.tokenizer_image_token(f"{before}<image>{middle}<image>{after}", tokenizer)
    pieces = [reference.encode(text) for text in (before, middle, after)]
    assert ids == [1, *pieces[0], -200, *pieces[1], -200, *pieces[2]]
    # The dummy prefix alone stands between the image and the newline.
    assert tokenizer.convert_ids_to_tokens(pieces[2][:2]) == ["▁", "<0x0A>"]

    leading = mm_utils.tokenizer_image_token("<image>\nhello", tokenizer, return_tensors="pt")
    assert leading.dtype == torch.long
    assert leading.tolist() == [1, -200, *reference.encode("\nhello")]
    with pytest.raises(ValueError, match="Unsupported tensor type: np"):
        mm_utils.tokenizer_image_token("hello", tokenizer, return_tensors="np")


def test_a_tokenizer_without_bos_loses_nothing():
    def tokenizer(text):
        return SimpleNamespace(input_ids=[ord(letter) for letter in text])

    tokenizer.bos_token_id = None
    assert mm_utils.tokenizer_image_token("ab<image>cd", tokenizer) == [97, 98, -200, 99, 100]


def test_model_name():
    assert mm_utils.get_model_name_from_path("/models/llava-v1.5-7b/") == "llava-v1.5-7b"
    assert mm_utils.get_model_name_from_path("runs/llava-task/checkpoint-500") == "llava-task_checkpoint-500"


@pytest.mark.parametrize("with_prompt", [True, False])
def test_keywords_stop_each_row_for_itself(tokenizer_folder, with_prompt):
    tokenizer = load_tokenizer(str(tokenizer_folder))
    prompt = tokenizer("hello </s> hello", return_tensors="pt").input_ids
    stop = mm_utils.KeywordsStoppingCriteria(["</s>"], tokenizer, prompt)
    front = prompt.repeat(2, 1) if with_prompt else prompt.new_zeros(2, 0)
    word = tokenizer("cats").input_ids[1:2]
    answers = torch.tensor([word * 3, [*word, word[0], 2]])
    done = [stop(torch.cat([front, answers[:, :length]], dim=1), None).tolist() for length in (1, 2, 3)]
    assert done == [[False, False], [False, False], [False, True]]
