"""How questions are put to a served checkpoint, without a server."""

import pytest
from PIL import Image

from llava.eval.models.served_answerer import Manner, content_of, manner_of
from llava.eval.models.vllm_server import Served, Usage, error_of, usage_of
from llava.mm_utils import process_images

PICTURE = Image.new("RGB", (40, 24), (9, 200, 30))


def test_a_llava_is_asked_in_its_template_about_padded_pictures(hub_folder, checkpoint):
    manner = manner_of(hub_folder, default_mode="llava_v1")
    assert manner.mode == "llava_v1"
    assert manner_of(hub_folder, "vicuna_v1").mode == "vicuna_v1"
    sent = manner.picture(PICTURE)
    assert sent.size == (40, 40)
    whole, part = process_images([sent, PICTURE], checkpoint.image_processor, checkpoint.model.config)
    assert (whole == part).all()
    assert manner.prompt("Is it?", 2).count("<image>") == 2


def test_other_families_are_asked_in_the_server_s_template(hf_folder):
    manner = manner_of(str(hf_folder("qwen2_5_vl")), default_mode="llava_v1")
    assert manner == Manner()
    assert manner.prompt("Is it?", 1) is None
    assert manner.picture(PICTURE) is PICTURE
    body = Served("http://x", "m").body(None, content_of("Is it?", [PICTURE]), None, max_tokens=3)
    assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text"]
    assert "chat_template" not in body
    assert "mm_processor_kwargs" not in Served("http://x", "m").body(None, ["Is it?"], None)


def test_llava_s_own_layout_is_not_what_vllm_reads(llava_folder):
    with pytest.raises(ValueError, match="is in LLaVA's layout, which vLLM does not read"):
        manner_of(str(llava_folder))


def test_pictures_stand_where_the_text_says():
    mark = "<image-placeholder>"
    assert content_of(f"a{mark}b{mark}", [PICTURE, PICTURE]) == ["a", PICTURE, "b", PICTURE]
    assert content_of(f"{mark}b", [PICTURE]) == [PICTURE, "b"]
    with pytest.raises(ValueError, match="<image-placeholder> 1 times for 2 pictures"):
        content_of(f"a{mark}", [PICTURE, PICTURE])


def test_what_a_server_says():
    usage = {"prompt_tokens": 70, "completion_tokens": 3, "prompt_tokens_details": {"multimodal_tokens": {"image": 64}}}
    assert usage_of({"usage": usage}) == Usage(visual=64, text=6, new=3)
    with pytest.raises(ValueError, match="--enable-prompt-tokens-details"):
        usage_of({"usage": {"prompt_tokens": 70}})
    assert error_of('{"error": {"message": "too\\nlong"}}') == "too long"
    assert error_of("<html> bad\ngateway") == "<html> bad gateway"
