"""Tiny models with random weights, made once per test session. Nothing here needs the network."""

import io
import json
import os
import random
from functools import partial
from pathlib import Path

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; tiny models gain nothing from several threads
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the programs that tests start


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: one that starts last would leave the other workers idle."""
    slow = {item.path for item in items if "slow" in item.keywords}
    items.sort(key=lambda item: item.path not in slow)


TEXT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER ASSISTANT Human Assistant what is in this image how many cats "
    "two hello world red star yes no"
)


def write_tokenizer(folder: Path, legacy: bool = False) -> Path:
    """A SentencePiece tokenizer with LLaMA's settings (byte fallback, dummy prefix) and about 520 tokens."""
    import sentencepiece

    draw = random.Random(0)
    lines = [" ".join(draw.choices(TEXT.split(), k=8)) + draw.choice([".", "?", "!", ":", ""]) for _ in range(3000)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=520,
        hard_vocab_limit=False,
        byte_fallback=True,
        add_dummy_prefix=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    settings = {
        **names,
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": legacy,
        "padding_side": "right",
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    return folder


@pytest.fixture(scope="session")
def make_tokenizer_folder(tmp_path_factory):
    """`make_tokenizer_folder(legacy=False)` writes the tiny tokenizer into a folder of its own."""
    return lambda legacy=False: write_tokenizer(tmp_path_factory.mktemp("tokenizer"), legacy)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    """A folder with the tiny LLaMA-like tokenizer alone."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory) -> Path:
    """A plain Llama checkpoint: hidden 64, 2 layers, 4 heads, with the tiny tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = write_tokenizer(tmp_path_factory.mktemp("llama"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=520,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """A CLIP vision model: hidden 32, 2 layers, 56-pixel images of 4 x 4 patches, with its image processor's file."""
    from transformers import CLIPVisionConfig, CLIPVisionModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
        projection_dim=16,
    )
    CLIPVisionModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}).save_pretrained(folder)
    return folder


def build_tiny_llava(
    llama_folder: Path, clip_folder: Path, unfreeze: bool = True, family: str = "llama", merge: str = "flat", **config
):
    """The plain Llama with the CLIP tower and a fresh two-layer projector; 16 visual tokens per image, in eval mode.

    unfreeze: whether the tower counts as trained, so that checkpoints carry it. family: "mistral" for random weights of
    that family instead. merge: `mm_patch_merge_type`. `config` sets further config fields.
    """
    from types import SimpleNamespace

    from transformers import LlamaConfig

    from llava.model import LlavaConfig, LlavaLlamaForCausalLM, LlavaMistralConfig, LlavaMistralForCausalLM

    torch.manual_seed(2)
    settings: LlavaConfig | LlavaMistralConfig = LlavaConfig.from_pretrained(llama_folder)
    if family == "mistral":
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        llama = LlamaConfig.from_pretrained(llama_folder)
        settings = LlavaMistralConfig(
            **{name: getattr(llama, name) for name in sizes}, num_key_value_heads=2, pad_token_id=0, rope_theta=1e6
        )
    for name, value in ({"mm_use_im_patch_token": False, "image_aspect_ratio": "pad"} | config).items():
        setattr(settings, name, value)
    if family == "mistral":
        model = LlavaMistralForCausalLM(settings)
    else:
        model = LlavaLlamaForCausalLM.from_pretrained(llama_folder, config=settings, dtype=torch.float32)
    arguments = SimpleNamespace(
        vision_tower=str(clip_folder),
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        mm_projector_type="mlp2x_gelu",
        mm_patch_merge_type=merge,
        pretrain_mm_mlp_adapter=None,
        unfreeze_mm_vision_tower=unfreeze,
    )
    model.get_model().initialize_vision_modules(arguments)
    # Wide weights: a freshly drawn projector would hardly let the image be heard.
    for parameter in model.get_model().mm_projector.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="session")
def make_tiny_llava(llama_folder, clip_folder):
    """`make_tiny_llava(unfreeze=True, **config)` builds a new tiny LLaVA; see `build_tiny_llava`."""
    return partial(build_tiny_llava, llama_folder, clip_folder)


@pytest.fixture
def tiny_llava(make_tiny_llava):
    """A `LlavaLlamaForCausalLM` of hidden 64 whose checkpoints carry the vision tower."""
    return make_tiny_llava()


@pytest.fixture(scope="session")
def llava_folder(make_tiny_llava, llama_folder, tmp_path_factory) -> Path:
    """A LLaVA checkpoint in the layout of v1.5 with the vision tower inside."""
    from llava.model.builder import load_tokenizer, save_llava_checkpoint

    folder = tmp_path_factory.mktemp("tiny-llava-v1.5")
    save_llava_checkpoint(make_tiny_llava(), load_tokenizer(str(llama_folder)), folder)
    return folder


@pytest.fixture(scope="session")
def hub_folder(llava_folder, tmp_path_factory) -> str:
    """The same checkpoint in transformers' layout, which vLLM reads."""
    from llava.convert import convert

    folder = tmp_path_factory.mktemp("served") / "tiny-hf"
    convert(str(llava_folder), None, "hf", str(folder))
    return str(folder)


QUERIES = ("what is in this image", "how many cats", "red star yes no", "hello world two cats in this image")


@pytest.fixture
def question_folder(tmp_path) -> Path:
    """For evaluation: questions.jsonl with eight questions of different length, and images/ of different shapes."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    rows = []
    for number in range(8):
        size = (56, 30 + 10 * number, 3)
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(tmp_path / "images" / f"{number}.png")
        text = QUERIES[number % len(QUERIES)] + "?" * (number // len(QUERIES))
        rows.append({"question_id": number, "image": f"{number}.png", "text": text, "category": "default"})
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def flags(question_folder, llava_folder):
    """Flags of model_vqa_loader for that folder; further ones as arguments."""

    def make(answers: str = "answers.jsonl", *more: str) -> list[str]:
        return [
            *("--model-path", str(llava_folder)),
            *("--question-file", str(question_folder / "questions.jsonl")),
            *("--image-folder", str(question_folder / "images")),
            *("--answers-file", str(question_folder / answers)),
            *("--temperature", "0", "--max_new_tokens", "5", "--device", "cpu"),
            *more,
        ]

    return make


@pytest.fixture(scope="session")
def checkpoint(llava_folder):
    """The tiny LLaVA loaded for `llava.eval.models`."""
    from llava.eval.models.llava_checkpoint import load_checkpoint

    return load_checkpoint(str(llava_folder), device="cpu")
