"""The released code's numbers for the families that are cut twice, recorded in tests/golden/."""

import pytest
import test_golden
import torch
from test_golden import check_layers, names, near, recorded, weights
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from flowcut import FlowCut, attach
from flowcut.compat import CACHE
from llava import LlavaConfig, LlavaLlamaForCausalLM

IMAGE = -200
GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
GREEDY |= {"return_dict_in_generate": True, "output_logits": True}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def tiles(gold):
    return [gold[f"pixel_values.{n}"] for n in range(4) if f"pixel_values.{n}" in gold]


class Theirs:
    """transformers' LlavaNextForConditionalGeneration with a recorded case's weights."""

    TOKEN = 253  # never occurs in the recorded prompts

    def __init__(self, case, folder):
        vision = CLIPVisionConfig(**case["config"]["vision"])
        config = LlavaNextConfig(
            vision_config=vision,
            text_config=LlamaConfig(**case["config"]["text"]),
            image_token_id=self.TOKEN,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            image_grid_pinpoints=[[height, width] for width, height in case["image_grid_pinpoints_wh"]],
        )
        self.model = LlavaNextForConditionalGeneration(config).eval()
        self.model.load_state_dict({self.rename(name): tensor for name, tensor in weights(case).items()})

    rename = staticmethod(test_golden.Theirs.rename)

    def inputs(self, gold):
        sizes = gold["image_sizes_wh"].flip(1)
        pixels = torch.nn.utils.rnn.pad_sequence(tiles(gold), batch_first=True)
        features = self.model.model.get_image_features(pixels, sizes).pooler_output
        rows = []
        for row, feature in zip(gold["input_ids"].tolist(), features, strict=True):
            rows.append([t for x in row for t in ([self.TOKEN] * len(feature) if x == IMAGE else [x])])
        ids = torch.tensor(rows)
        mask = torch.ones_like(ids)
        return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "image_sizes": sizes}

    def generate(self, inputs):
        result = self.model.generate(**inputs, **GREEDY)
        prompt = inputs["input_ids"].shape[1]
        assert torch.equal(result.sequences[:, :prompt], inputs["input_ids"])
        return result.sequences[:, prompt:], torch.stack(result.logits, dim=1), result[CACHE]


class Ours(Theirs):
    """This project's LlavaLlamaForCausalLM with the same weights."""

    def __init__(self, case, folder):
        vision = CLIPVisionConfig(**case["config"]["vision"])
        CLIPVisionModel(vision).save_pretrained(folder)
        config = LlavaConfig(
            **case["config"]["text"],
            mm_vision_tower=str(folder),
            mm_vision_select_layer=-2,
            mm_patch_merge_type="spatial_unpad",
            image_aspect_ratio="anyres",
            image_grid_pinpoints=case["image_grid_pinpoints_wh"],
            mm_projector_type="mlp2x_gelu",
            mm_hidden_size=vision.hidden_size,
        )
        self.model = LlavaLlamaForCausalLM(config).eval()
        self.model.get_vision_tower().load_model()
        self.model.load_state_dict({self.rename(name): tensor for name, tensor in weights(case).items()})

    @staticmethod
    def rename(name):
        return "model.image_newline" if name == "image_newline" else test_golden.Ours.rename(name)

    def inputs(self, gold):
        mask = torch.ones_like(gold["input_ids"])
        sizes = gold["image_sizes_wh"].tolist()
        return {"input_ids": gold["input_ids"], "attention_mask": mask, "images": tiles(gold), "image_sizes": sizes}

    def generate(self, inputs):
        inputs = dict(inputs)
        result = self.model.generate(inputs.pop("input_ids"), **inputs, **GREEDY)
        return result.sequences, torch.stack(result.logits, dim=1), result[CACHE]


@pytest.mark.parametrize("host", [Theirs, Ours])
@pytest.mark.parametrize("name", names("llava_next"))
def test_llava_next(name, host, tmp_path):
    case, gold = recorded(name)
    llava = host(case, tmp_path)
    inputs = llava.inputs(gold)
    near(llava.model(**inputs).logits[:, -1], gold["vanilla.last_logits"], 1e-3)
    language = llava.model.model if host is Ours else llava.model.model.language_model
    seen = []
    language.register_forward_pre_hook(lambda m, a, kw: seen.append(kw["inputs_embeds"]), with_kwargs=True)
    with attach(llava.model, FlowCut(case["target"], batch_coupling="max"), signals=True) as handle:
        logits = llava.model(**inputs).logits
        trace = handle.trace
        check_layers(trace, gold, prefix="vision.")
        near(seen[0], gold["inputs_embeds"])
        first = 0
        for image, tokens in enumerate(trace.tokens):
            assert torch.equal(tokens - tokens.new_tensor([first, 0]), gold[f"visual_tokens.{image}"])
            first += case["tiles"][image]
            for mine, theirs in {"attention": "attn", "semantic": "semantic", "score": "score"}.items():
                near(trace.language.signals[1][mine][image], gold[f"llm.{theirs}.{image}"][0])
            near(trace.language.signals[1]["value"][image], gold[f"llm.value_norm.{image}"])
        assert torch.equal(torch.stack(trace.language.final), gold["llm.keep"])
        assert [len(tokens) for tokens in trace.remaining] == [case["target"]] * case["batch"]
        near(logits, gold["prefill_logits"], 1e-3)
        if case["generation"]:
            ids, generated, cache = llava.generate(inputs)
            assert torch.equal(ids, gold["generated_ids"])
            near(generated, gold["generated_logits"], 1e-3)
            new = ids.shape[1] - 1
            assert [cache.get_seq_length(layer) - new for layer in range(4)] == gold["llm.kv_lengths"].tolist()


def qwen(case):
    vision, text = case["config"]["vision"], dict(case["config"]["text"])
    rope = {"rope_type": "default", "rope_theta": text.pop("rope_theta"), "mrope_section": text.pop("mrope_section")}
    config = Qwen2VLConfig(
        vision_config=vision,
        text_config={**text, "rope_parameters": rope},
        **{name: case["config"][name] for name in ("image_token_id", "video_token_id")},
        vision_start_token_id=case["config"]["vision_start_token_id"],
        vision_end_token_id=case["config"]["vision_end_token_id"],
        tie_word_embeddings=False,
    )
    model = Qwen2VLForConditionalGeneration(config).eval()
    state = {}
    for name, tensor in weights(case).items():
        name = name.replace("visual.", "model.visual.") if name.startswith("visual.") else name
        name = name.replace("model.", "model.language_model.", 1) if not name.startswith(("model.v", "lm_")) else name
        state[name] = tensor
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", names("qwen2_vl"))
def test_qwen2_vl(name, implementation):
    case, gold = recorded(name)
    model = qwen(case)
    model.set_attn_implementation(implementation)
    ids = gold["input_ids"]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": gold["pixel_values"],
        "image_grid_thw": gold["image_grid_thw"],
        "mm_token_type_ids": (ids == case["config"]["image_token_id"]).int(),
    }
    near(model(**inputs).logits[:, -1], gold["vanilla.last_logits"], 1e-3)
    near(torch.cat(model.model.get_image_features(gold["pixel_values"], gold["image_grid_thw"]).pooler_output),
         gold["vanilla.image_embeds"])  # fmt: skip
    positions = []
    for layer in (0, 2):
        model.model.language_model.layers[layer].self_attn.register_forward_pre_hook(
            lambda m, a, kw: positions.append(kw["position_embeddings"]), with_kwargs=True
        )
    with attach(model, FlowCut.released_qwen2_vl(case["target"]), signals=True) as handle:
        features = model.model.get_image_features(gold["pixel_values"], gold["image_grid_thw"]).pooler_output
        near(torch.cat(list(features)), gold["vision.image_embeds"])
        logits = model(**inputs).logits
        trace = handle.trace
        seen = 0
        for key, theirs in gold.items():
            if not key.startswith("vision.block"):
                continue
            layer, what = int(key[12:14]), key.rsplit(".", 1)[1]
            mine = {"attn": "attention", "value_norm": "value", "score": "score", "cum_pre": "cumulative"}.get(what)
            if mine is not None:
                near(trace.signals[layer][mine][0], theirs)
            elif what == "keep_abs":
                assert torch.equal(trace.kept[layer][0], theirs)
            else:
                continue
            seen += 1
        assert seen
        assert [leaving[0] for leaving in trace.leaving] == gold["vision.tokens_after"].tolist()
        rotary = model.model.language_model.rotary_emb
        for given, name in zip(positions, ("llm.position_ids", "llm.position_ids_layer2"), strict=True):
            for mine, theirs in zip(given, rotary(logits, position_ids=gold[name]), strict=True):
                near(mine, theirs)
        language = trace.language
        for mine, theirs in {"attention": "attn", "semantic": "semantic"}.items():
            near(language.signals[1][mine][0], gold[f"llm.{theirs}"][0])
        near(language.signals[1]["value"][0], gold["llm.value_norm"])
        near(language.signals[1]["score"][0], gold["llm.score"][0])
        assert torch.equal(language.final[0], gold["llm.keep"])
        near(logits, gold["prefill_logits"], 1e-3)
        result = model.generate(**inputs, **GREEDY)
        assert torch.equal(result.sequences[:, ids.shape[1] :], gold["generated_ids"])
        near(torch.stack(result.logits, dim=1), gold["generated_logits"], 1e-3)
        cache = result[CACHE]
        assert [cache.get_seq_length(layer) - 7 for layer in range(4)] == gold["llm.kv_lengths"].tolist()
