"""LLaVA-NeXT with random weights: greedy tokens equal a loop over patches that the library keeps with transformers."""

import numpy as np
import pytest
import torch
from conftest import ENGINE, answers, request
from PIL import Image
from qwen_models import OneStage
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaNextConfig, LlavaNextForConditionalGeneration
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape
from vllm import LLM
from vllm.config import ModelConfig
from vllm.multimodal import MULTIMODAL_REGISTRY

from flowcut import attach
from flowcut.registry import parse_pruner
from flowcut_vllm.llava_next import raster_order, tokens_of
from tests.llava.eval.models.tiny import write_tokenizer

SIDE = 6  # patches along a side of a tile
GRIDS = [[24, 48], [48, 24], [48, 48]]
SIZES = ((24, 48), (48, 48), (20, 90), (90, 30))
"""Height and width: the first two fill their tiles, the others leave padding."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("next")
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 2}
    text = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 24, "patch_size": 4, **vision},
        text_config={"model_type": "llama", "vocab_size": 100, "max_position_embeddings": 4096, **text},
        image_grid_pinpoints=GRIDS,
        image_token_index=99,
        image_seq_length=SIDE**2,
    )
    torch.manual_seed(0)
    model = LlavaNextForConditionalGeneration(config)
    for weight in model.parameters():
        if weight.ndim > 1:  # large ones, so that attention is sharp and answers depend on the picture
            torch.nn.init.normal_(weight, std=2 * weight.flatten(1).shape[1] ** -0.5)
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")  # named as in published checkpoints, which vLLM reads
    named = {name.replace("vision_tower.", "vision_tower.vision_model.", 1): weights[name] for name in weights}
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    write_tokenizer(folder, "llava_next_hf")
    size = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    LlavaNextImageProcessorPil(image_grid_pinpoints=GRIDS, **size).save_pretrained(folder)
    fields = '{"image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 4, '
    (folder / "processor_config.json").write_text(fields + '"vision_feature_select_strategy": "default"}')
    return str(folder)


class Loop:
    """transformers' class with its tower pruned, and tokens put in order one at a time."""

    def __init__(self, folder):
        self.model = LlavaNextForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)

    def image(self, image, pruner):
        """One image's tokens [n, D]: those of the unpruned model, if the budget allows as many."""
        inner, seen = self.model.model, []
        given = image["pixel_values"], image["image_sizes"]
        [stock] = inner.get_image_features(*given).pooler_output
        down, across = get_anyres_image_grid_shape(image["image_sizes"][0].tolist(), GRIDS, 24)
        tiles = 1 + down * across
        budget = max(pruner.tokens_of(tiles * SIDE**2), tiles)
        if budget >= len(stock):
            return stock
        # The library takes tokens on padding off after the projector, so they are still there in what it returns.
        watching = inner.multi_modal_projector.register_forward_hook(lambda *call: seen.append(call[-1]))
        with watching, attach(self.model, pruner) as handle:
            inner.get_image_features(*given)
            kept = handle.trace.final
        assert len(kept) == tiles
        assert sum(len(patches) for patches in kept) == budget
        found = []
        for number, patches in enumerate(kept):
            for patch, token in zip(patches.tolist(), seen[-1][number], strict=False):
                row, column = divmod(patch, SIDE)
                place = divmod(number - 1, across) if number else (-1, 0)
                found.append(((number > 0, place[0] * SIDE + row, place[1] * SIDE + column), token))
        return torch.stack([token for _, token in sorted(found, key=lambda pair: pair[0])])

    @torch.inference_mode()
    def answer(self, text, pictures, pruner):
        """The greedy tokens, and how many tokens each picture had."""
        inner, seen = self.model.model, []
        embeds = []
        pieces = f"USER : {'<image> ' * len(pictures)}{text} ASSISTANT :".split("<image> ")
        for number, piece in enumerate(pieces):
            ids = self.processor.tokenizer(piece, add_special_tokens=not number, return_tensors="pt").input_ids
            embeds.append(inner.get_input_embeddings()(ids[0]))
            if number < len(pictures):
                image = self.processor.image_processor(pictures[number], return_tensors="pt")
                seen.append(self.image(image, pruner))
                embeds.append(seen[-1])
        whole = torch.cat(embeds)[None]
        mask = torch.ones(whole.shape[:2], dtype=torch.long)
        tokens = self.model.generate(inputs_embeds=whole, attention_mask=mask, max_new_tokens=8, do_sample=False)
        return [token for token in tokens[0].tolist() if token != 2], [len(image) for image in seen]


@pytest.fixture(scope="module")
def loop(folder):
    return Loop(folder)


def pictures():
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES]


def prompt_about(text, count=1):
    return f"USER : {'<image> ' * count}{text} ASSISTANT :"


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("flowcut", {}),
        ("flowcut_plus", {}),
        ("divprune", {"max_num_batched_tokens": 256, "enable_chunked_prefill": True}),
    ],
    ids=["whole", "merging inside the encoder's layers", "another method, prefill in chunks"],
)
def test_budgets_and_pictures_mixed_in_one_queue(folder, loop, method, options):
    pruner = {"method": method, "budget": 20}
    engine = LLM(folder, hf_overrides={"flowcut": pruner}, dtype="float32", **{**ENGINE, **options})
    asked, expected, counts = [], [], []
    for number, budget in enumerate((20, 33, 0.25, 1000, 2, 100) * 2):
        some = [pictures()[(number + number // 6 + n) % 4] for n in range(1 + number % 2)]
        text = ("what is in this", "how many red star")[number % 2]
        asked.append(request(prompt_about(text, len(some)), some if len(some) > 1 else some[0], budget))
        own = OneStage(budget=budget) if method == "flowcut" else parse_pruner(f"{method}:budget={budget}")
        answer, lengths = loop.answer(text, some, own)
        expected.append(answer)
        counts.append(sum(lengths))
    found, outputs = answers(engine, asked)
    assert [list(output.prompt_token_ids).count(99) for output in outputs] == counts
    assert found == expected
    assert len({tuple(answer) for answer in found}) > 6, "answers that never differ would prove nothing"
    again, outputs = answers(engine, asked)  # now from the prefix cache
    assert again == expected
    assert options or any(output.num_cached_tokens for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["flowcut", "flowcut_plus"])
def test_two_tensor_parallel_ranks(folder, loop, method):
    """Each rank has one of the tower's two heads; both have to see both, or they keep other tokens."""
    options = {**ENGINE, "tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    pruner = {"method": method, "budget": 20}
    engine = LLM(folder, hf_overrides={"flowcut": pruner}, dtype="float32", **options)
    found, _ = answers(engine, [request(prompt_about("what is in this"), picture) for picture in pictures()])
    own = OneStage(budget=20) if method == "flowcut" else parse_pruner(f"{method}:budget=20")
    assert found == [loop.answer("what is in this", [picture], own)[0] for picture in pictures()]


@pytest.mark.parametrize("pruner", [OneStage(budget=33), parse_pruner("uniform:budget=33")], ids=["flowcut", "uniform"])
@torch.inference_mode()
def test_only_padding_tells_it_from_the_library(loop, pruner):
    """The library, attached to the whole model and one-stage, has the same tokens but for those on padding."""
    for picture, padded in zip(pictures(), (False, False, True, True), strict=True):
        image = loop.processor.image_processor(picture, return_tensors="pt")
        expected = loop.image(image, pruner)
        with attach(loop.model, pruner):
            [found] = loop.model.model.get_image_features(image["pixel_values"], image["image_sizes"]).pooler_output
        if padded:
            assert {tuple(token) for token in found.tolist()} <= {tuple(token) for token in expected.tolist()}
        else:
            assert torch.equal(found, expected)
        if pruner.name == "uniform":  # FlowCut keeps none on padding here
            assert (len(found) < len(expected)) == padded


@pytest.mark.parametrize(
    ("budget", "tokens"), [(33, 33), (1, 5), (0.25, 45), (149, 149), (150, 150), (151, 150), (0.9, 150)]
)
def test_an_image_of_five_tiles_has_its_budget_and_never_more_than_unpruned(budget, tokens):
    """36 patches a tile; 150 tokens unpruned. A share is one of 180 patches; every tile keeps a token."""
    assert tokens_of(OneStage(budget=budget), 5, 36, 150) == tokens


def test_tokens_are_in_raster_order_of_the_joined_grid():
    """Two tiles of 2 x 2 patches next to each other, with the whole image ahead; a token of no patch comes last."""
    kept = [torch.tensor([1, 3]), torch.tensor([-1, 1, 2]), torch.tensor([0, 2, 3])]
    # The grid's first row has patch 1 of the first tile and 0 of the second, its second row 2, and 2 and 3.
    assert raster_order(kept, (1, 2), 2).tolist() == [0, 1, 3, 5, 4, 6, 7, 2]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"vision_feature_select_strategy": "full"}, "puts CLS tokens among tiles"),
        ({"vision_feature_layer": [-2, -3]}, "reads several layers"),
    ],
)
def test_a_config_that_cannot_be_pruned_is_refused(folder, field, message):
    config = ModelConfig(folder, hf_overrides={"flowcut": {"budget": 8}, **field}, dtype="float32")
    with pytest.raises(ValueError, match=message):
        MULTIMODAL_REGISTRY.create_processor(config)
