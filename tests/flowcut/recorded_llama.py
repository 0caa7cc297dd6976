"""Runs of published code on a bare Llama, recorded in tests/golden/llm/, replayed in the language model of a LLaVA."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from flowcut import Handle, Pruner, attach
from flowcut.compat import CACHE
from llava import LlavaConfig, LlavaLlamaForCausalLM

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = json.loads((GOLDEN / "manifest.json").read_text())


def names(family: str) -> list[str]:
    return [name for name, case in CASES.items() if case["family"] == family]


def near(mine: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=tolerance, check_dtype=False)


@dataclass
class Replay:
    """A model with a case's weights, what was recorded, and what a pruner did with it."""

    case: dict[str, Any]
    gold: dict[str, Tensor]
    model: Any
    handle: Handle | None = None
    entering: dict[int, Tensor] | None = None

    @property
    def language(self) -> Any:
        return self.handle.trace.language

    def run(self, pruner: Pruner) -> None:
        """Prefill and five greedy steps with a pruner; every number that all families recorded is compared."""
        case, gold, model = self.case, self.gold, self.model
        embeds = gold["inputs_embeds"][None].float()
        index = torch.full(embeds.shape[:2], -1)
        index[:, case["image_start"] : case["image_start"] + case["n_visual"]] = 0
        with torch.no_grad():
            near(model(inputs_embeds=embeds).logits[0, -1], gold["vanilla.last_logits"], 1e-3)
            with attach(model, pruner, signals=True) as handle:
                self.handle, self.entering, turned = handle, {}, {}
                hooks = [
                    layer.register_forward_pre_hook(_Watch(number, self.entering, turned), with_kwargs=True)
                    for number, layer in enumerate(model.model.layers)
                ]
                result = model(inputs_embeds=embeds, image_index=index, use_cache=True)
                near(result.logits[0], gold["prefill_logits"], 1e-3)
                self.entering, states = {}, self.entering
                rows, cache, steps = [result.logits[0, -1]], result[CACHE], []
                for step, token in enumerate(gold["generated_ids"][:-1]):
                    place = torch.tensor([[case["seq_len"] + step]])
                    following = model(input_ids=token.view(1, 1), **{CACHE: cache}, position_ids=place)
                    rows.append(following.logits[0, -1])
                    steps.append(dict(turned))
                for hook in hooks:
                    hook.remove()
        self.entering = states
        assert torch.equal(torch.stack(rows).argmax(dim=1), gold["generated_ids"])
        near(torch.stack(rows), gold["generated_logits"], 1e-3)
        layers = range(len(model.model.layers))
        assert [cache.get_seq_length(layer) for layer in layers] == gold["cache_len_end"].tolist()
        for layer in layers:
            for step, cosine in enumerate(seen[layer] for seen in steps):
                near(cosine, self.cosine(gold["decode_position_ids"][layer, step].view(1, 1)), 1e-5)

    def cosine(self, places: Tensor) -> Tensor:
        return self.model.model.rotary_emb(torch.zeros(1), position_ids=places)[0]


class _Watch:
    """Notes what a layer is given, and the cosines it turns its queries with."""

    def __init__(self, layer: int, entering: dict[int, Tensor], turned: dict[int, Tensor]):
        self.layer, self.entering, self.turned = layer, entering, turned

    def __call__(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if args[0].shape[1] > 1:
            self.entering[self.layer] = args[0][0].clone()
        self.turned[self.layer] = kwargs["position_embeddings"][0].clone()


def replay(name: str, folder: Path) -> Replay:
    """The recorded case, and a LLaVA (whose tower, in `folder`, takes no part) with its weights."""
    case = CASES[name]
    tower = CLIPVisionConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=1)
    CLIPVisionModel(tower).save_pretrained(folder)
    config = LlavaConfig(**case["config"], mm_vision_tower=str(folder), mm_vision_select_layer=-1, mm_hidden_size=8)
    model = LlavaLlamaForCausalLM(config).eval()
    model.get_vision_tower().load_model()
    weights = {key: tensor.float() for key, tensor in load_file(GOLDEN / case["weights_file"]).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all("vision" in key or "projector" in key for key in missing)
    return Replay(case, load_file(GOLDEN / case["data_file"]), model)
