"""The released code's own numbers, recorded in tests/golden/."""

import pytest
import torch
from hosts import padded
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlavaForConditionalGeneration
from transformers import LlavaConfig as HFLlavaConfig

from flowcut import FasterVLM, FlowCut, VisionZip, attach
from llava import LlavaConfig, LlavaLlamaForCausalLM
from tests.flowcut.recorded_clip import CASES, clip, features, names, near, recorded, weights

IMAGE = -200
SIGNALS = {
    "cls_attn": "attention",
    "semantic": "semantic",
    "value_norm": "value",
    "score": "score",
    "cum_pre": "cumulative",
    "entropy": "entropy",
    "prune_raw": "prune_number",
}


def check_layers(trace, gold, prefix=""):
    """Every per-layer number of a recorded case against the trace of a run with signals."""
    seen = 0
    for name, theirs in gold.items():
        if not name.startswith(f"{prefix}layer"):
            continue
        layer, what = int(name.removeprefix(f"{prefix}layer")[:2]), name.rsplit(".", 1)[1]
        if what == "keep_abs":
            assert torch.equal(torch.stack(trace.kept[layer]), theirs)
        elif what in SIGNALS:
            mine = trace.signals[layer][SIGNALS[what]]
            near(torch.stack(mine) if isinstance(mine, list) else mine, theirs)
        else:
            continue
        seen += 1
    assert seen
    tokens = gold[f"{prefix}tokens_after"].tolist()
    run = len(trace.leaving)  # this project's tower leaves out the last layer, which nobody reads
    assert run >= len(tokens) - 1
    assert [leaving[0] for leaving in trace.leaving] == tokens[:run]
    assert torch.equal(torch.stack(trace.final), gold[f"{prefix}final.keep_abs"])


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", names("clip"))
def test_clip(name, implementation):
    case, gold = recorded(name)
    model, pixels, vanilla = clip(case)
    model.set_attn_implementation(implementation)
    near(features(model, pixels), vanilla)
    with attach(model, FlowCut(case["target"], batch_coupling="max"), signals=True) as handle:
        near(features(model, pixels), gold["final.features"])
    check_layers(handle.trace, gold)


@pytest.mark.parametrize("name", [name for name in names("clip") if CASES[name]["batch"] > 1])
def test_each_image_of_a_batch_equals_itself_alone(name):
    case, _ = recorded(name)
    model, pixels, _ = clip(case)
    with attach(model, FlowCut(case["target"])) as handle:
        together, kept = features(model, pixels), handle.trace.kept
        for number, image in enumerate(pixels):
            near(features(model, image[None])[0], together[number])
            assert set(handle.trace.kept) == set(kept)
            assert all(torch.equal(handle.trace.kept[layer][0], kept[layer][number]) for layer in kept)


@pytest.mark.parametrize("name", names("fastervlm"))
def test_fastervlm(name):
    case, gold = recorded(name)
    model, pixels, _ = clip(case)
    with attach(model, FasterVLM(case["target"]), signals=True) as handle:
        near(features(model, pixels), gold["features"])
    assert torch.equal(torch.stack(handle.trace.final), gold["keep"])
    near(torch.stack(handle.trace.signals[case["score_layer"]]["score"]), gold["score"])


@pytest.mark.parametrize("name", names("visionzip"))
def test_visionzip(name):
    case, gold = recorded(name)
    model, pixels, _ = clip(case)
    pruner = VisionZip(case["dominant"] + case["contextual"], contextual=case["contextual"])
    with attach(model, pruner, signals=True) as handle:
        near(features(model, pixels), gold["features"])
    kept = torch.stack(handle.trace.final)
    assert bool((kept[:, 0] == -1).all())  # CLS, then the dominant patches, then those that others were merged into
    assert torch.equal(kept[:, 1 : case["dominant"]], gold["dominant_patches"])
    assert torch.equal(kept[:, case["dominant"] :], gold["target_patches"])
    for row in range(len(kept)):  # every patch went somewhere: dominant ones alone, the others into a target
        members = handle.trace.members(row)
        dominant, merged = members[: case["dominant"]], members[case["dominant"] :]
        assert [part.tolist() for part in dominant] == [[], *gold["dominant_patches"][row, :, None].tolist()]
        assert all(target in part for target, part in zip(gold["target_patches"][row], merged, strict=True))
        assert torch.equal(torch.cat(members).sort().values, torch.arange(len(handle.trace.sources[row])))
    # the recorded score sums over heads
    heads = case["config"]["num_attention_heads"]
    near(torch.stack(handle.trace.signals[case["score_layer"]]["score"]) * heads, gold["score"])


def configs(case):
    return CLIPVisionConfig(**case["config"]["vision"]), case["config"]["text"]


def rows(ids, mask, patches, token):
    """Prompts without padding, every image placeholder written `patches` times as `token`."""
    real = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
    return [[t for x in row for t in ([token] * patches if x == IMAGE else [x])] for row in real]


class Theirs:
    """transformers' LlavaForConditionalGeneration with a recorded case's weights."""

    TOKEN = 255  # never occurs in the recorded prompts

    def __init__(self, case, folder):
        vision, text = configs(case)
        config = HFLlavaConfig(
            vision_config=vision,
            text_config=LlamaConfig(**text),
            image_token_id=self.TOKEN,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
        )
        self.model = LlavaForConditionalGeneration(config).eval()
        self.model.load_state_dict({self.rename(name): tensor for name, tensor in weights(case).items()})
        self.patches = (vision.image_size // vision.patch_size) ** 2

    @staticmethod
    def rename(name):
        name = name.replace("vision_tower.vision_model.", "vision_tower.")
        if name.startswith("language_model.lm_head."):
            return name.removeprefix("language_model.")
        return "model." + name.replace("language_model.model.", "language_model.")

    def logits(self, gold):
        prompts = rows(gold["input_ids"], mask_of(gold), self.patches, self.TOKEN)
        ids, mask = padded(prompts, "right")
        return self.model(input_ids=ids, attention_mask=mask, pixel_values=gold["pixel_values"]).logits

    def generate(self, gold, **settings):
        prompts = rows(gold["input_ids"], mask_of(gold), self.patches, self.TOKEN)
        ids, mask = padded(prompts, "left")
        result = self.model.generate(input_ids=ids, attention_mask=mask, pixel_values=gold["pixel_values"], **settings)
        assert torch.equal(result.sequences[:, : ids.shape[1]], ids)
        return result.sequences[:, ids.shape[1] :], torch.stack(result.logits, dim=1)


class Ours(Theirs):
    """This project's LlavaLlamaForCausalLM with the same weights."""

    def __init__(self, case, folder):
        vision, text = configs(case)
        CLIPVisionModel(vision).save_pretrained(folder)
        config = LlavaConfig(
            **text,
            mm_vision_tower=str(folder),
            mm_vision_select_layer=-2,
            mm_patch_merge_type="flat",
            mm_projector_type="mlp2x_gelu",
            mm_hidden_size=vision.hidden_size,
        )
        self.model = LlavaLlamaForCausalLM(config).eval()
        self.model.get_vision_tower().load_model()
        self.model.load_state_dict({self.rename(name): tensor for name, tensor in weights(case).items()})

    @staticmethod
    def rename(name):
        name = name.replace("vision_tower.vision_model.", "model.vision_tower.vision_tower.")
        name = name.replace("multi_modal_projector.linear_1", "model.mm_projector.0")
        return name.replace("multi_modal_projector.linear_2", "model.mm_projector.2").removeprefix("language_model.")

    def logits(self, gold):
        inputs = {"input_ids": gold["input_ids"], "attention_mask": mask_of(gold), "images": gold["pixel_values"]}
        return self.model(**inputs).logits

    def generate(self, gold, **settings):
        left = {name.removeprefix("left."): tensor for name, tensor in gold.items() if name.startswith("left.")}
        inputs = left or {"input_ids": gold["input_ids"], "attention_mask": mask_of(gold)}
        result = self.model.generate(inputs.pop("input_ids"), images=gold["pixel_values"], **inputs, **settings)
        return result.sequences, torch.stack(result.logits, dim=1)


def mask_of(gold):
    return gold["attention_mask"] if "attention_mask" in gold else torch.ones_like(gold["input_ids"])


@pytest.mark.parametrize("host", [Theirs, Ours])
@pytest.mark.parametrize("name", names("llava15"))
def test_llava(name, host, tmp_path):
    case, gold = recorded(name)
    llava = host(case, tmp_path)
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    settings |= {"return_dict_in_generate": True, "output_logits": True}
    assert torch.equal(llava.generate(gold, **settings)[0], gold["vanilla.generated_ids"])
    with attach(llava.model, FlowCut(case["target"], batch_coupling="max"), signals=True) as handle:
        logits = llava.logits(gold)
        check_layers(handle.trace, gold, prefix="vision.")
        ids, generated = llava.generate(gold, **settings)
    assert logits.shape == gold["prefill_logits"].shape
    real = gold["embeds_mask"].bool() if "embeds_mask" in gold else torch.ones(logits.shape[:2], dtype=torch.bool)
    near(logits[real], gold["prefill_logits"][real], 1e-3)
    assert torch.equal(ids, gold["generated_ids"])
    near(generated, gold["generated_logits"], 1e-3)
