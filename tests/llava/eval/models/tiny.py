"""Whole checkpoints of transformers' families with tiny random models: weights, tokenizer, processors, template."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.video_llava.image_processing_video_llava import VideoLlavaImageProcessor

from tests.flowcut.hosts import (
    GRIDS,
    IMAGE_TOKEN,
    PATCHES,
    TEXT,
    VISION,
    HFGemma3,
    HFInternVL,
    HFLlava,
    HFLlavaNext,
    HFOnevision,
    HFQwen2VL,
    HFQwen25VL,
    HFSmolVLM,
    HFVideoLlava,
)


class Idefics3(HFSmolVLM):
    """SmolVLM under its other name, whose processor needs no further package."""

    name = "idefics3"

    def config(self) -> Idefics3Config:
        return Idefics3Config(
            vision_config={**VISION, "patch_size": 2},
            text_config=LlamaConfig(**TEXT),
            image_token_id=IMAGE_TOKEN,
            scale_factor=2,
        )

    def new(self, config: Idefics3Config) -> Idefics3ForConditionalGeneration:
        return Idefics3ForConditionalGeneration(config)


_LLAVAS = (HFLlava(), HFLlavaNext(), HFOnevision(), HFVideoLlava())
FAMILIES = {host.name: host for host in (*_LLAVAS, HFQwen2VL(), HFQwen25VL(), HFInternVL(), Idefics3(), HFGemma3())}
VIDEO_FAMILIES = ("llava_onevision", "video_llava", "qwen2_vl", "qwen2_5_vl")
QWEN = ("qwen2_vl", "qwen2_5_vl")
_SIZES = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
# The published templates of these families, shortened to what questions need.
_QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_NAMES = {
    "internvl": {99: "<IMG_CONTEXT>", 97: "<img>", 96: "</img>", 98: "<video>"},
    "idefics3": {97: "<fake_token_around_image>", 96: "<global-img>", 95: "<end_of_utterance>"}
    | {80 + 3 * row + column: f"<row_{row + 1}_col_{column + 1}>" for row in range(3) for column in range(3)},
    "gemma3": {99: "<image_soft_token>", 97: "<start_of_image>", 96: "<end_of_image>"},
}
"""Special words of the families whose placeholders stand between others."""
_ROLES = {
    "internvl": {"context_image_token": 99, "start_image_token": 97, "end_image_token": 96, "video_token": 98},
    "gemma3": {"image_token": 99, "boi_token": 97, "eoi_token": 96},
}
_LLAVA_TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'video') %}<{{ part['type'] }}>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def write_tokenizer(folder: Path, family: str) -> None:
    """100 words, the families' special ones at the ids that the tiny models give them."""
    special = {0: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>", 97: "<|vision_start|>", 96: "<|vision_end|>"}
    special |= {99: "<|image_pad|>", 98: "<|video_pad|>"} if family in QWEN else {99: "<image>", 98: "<video>"}
    if family in QWEN:
        special |= {95: "<|im_start|>", 94: "<|im_end|>"}
    special |= _NAMES.get(family, {})
    words = "what is in this image how many cats two hello world red star yes no USER ASSISTANT : ? user assistant"
    names = iter([*words.split(), *(f"w{number}" for number in range(100))])
    vocabulary = {special.get(number) or next(names): number for number in range(100)}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()
    roles = {role: special[number] for role, number in _ROLES.get(family, {}).items()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token=None if family in QWEN else "<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=[word for number, word in special.items() if number >= 80],
        **roles,
        padding_side="right",
    )
    tokenizer.save_pretrained(folder)


def write_tiny_checkpoint(folder: Path, family: str) -> Path:
    """The checkpoint of a family as its files would lie on the Hub."""
    folder.mkdir(parents=True, exist_ok=True)
    host = FAMILIES[family]
    model = host.build()
    model.generation_config.repetition_penalty = 1.7  # as Qwen2.5-VL's has one; it must not count
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    write_tokenizer(folder, family)
    fields: dict[str, object] = {"image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 4}
    fields["vision_feature_select_strategy"] = "default"
    if family in QWEN:
        fields = {}
        small = {"min_pixels": 16 * 16, "max_pixels": 40 * 40, "patch_size": 4, "merge_size": 2}
        Qwen2VLImageProcessorPil(**small).save_pretrained(folder)
        video = json.loads((folder / "preprocessor_config.json").read_text())
        video["size"] = {"shortest_edge": 8 * 8, "longest_edge": 24 * 24}
        (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    elif family == "llava_next_hf":
        LlavaNextImageProcessorPil(image_grid_pinpoints=GRIDS, **_SIZES).save_pretrained(folder)
    elif family == "llava_onevision":
        size = {"size": {"height": 24, "width": 24}}
        LlavaOnevisionImageProcessorPil(image_grid_pinpoints=GRIDS, **size).save_pretrained(folder)
        fields = {"num_image_tokens": PATCHES, "vision_feature_select_strategy": "full"}
        fields |= {"image_token": "<image>", "video_token": "<video>"}
    elif family == "internvl":
        size = {"size": {"height": 24, "width": 24}, "min_patches": 1, "max_patches": 3}
        GotOcr2ImageProcessorPil(**size).save_pretrained(folder)
        fields = {"image_seq_length": PATCHES}
    elif family == "idefics3":
        size = {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 24}}
        Idefics3ImageProcessorPil(**size).save_pretrained(folder)
        fields = {"image_seq_len": PATCHES}
    elif family == "gemma3":
        Gemma3ImageProcessorPil(size={"height": 24, "width": 24}).save_pretrained(folder)
        fields = {"image_seq_length": PATCHES}
    elif family == "video_llava":
        VideoLlavaImageProcessor(**_SIZES).save_pretrained(folder)
    else:
        LlavaImageProcessorPil(**_SIZES).save_pretrained(folder)
    if fields:
        (folder / "processor_config.json").write_text(json.dumps(fields))
    template = _QWEN_TEMPLATE if family in QWEN else _LLAVA_TEMPLATE
    if family in _ROLES:
        placeholder = {"internvl": "<IMG_CONTEXT>", "gemma3": "<start_of_image>"}[family]
        template = template.replace("<{{ part['type'] }}>", placeholder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    return folder


def pictures(count: int, seed: int = 1) -> list[Image.Image]:
    """Noise of several shapes."""
    rng = np.random.default_rng(seed)
    sizes = [(28, 20 + 13 * number, 3) for number in range(count)]
    return [Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)) for size in sizes]
