"""Random conversations: cached as uncached, a batch as its rows, several turns as one, copies independent.

The reference is always the same conversation alone, unpadded, in one forward without a cache. The cut inside the
language model is a fixed one, because a real method may choose by the text that has come so far. More cases:
`CASES=200 pytest tests/flowcut/test_conversations.py`.
"""

import copy
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hosts import IMAGE, IMAGE_TOKEN, WITH_PROMPT, HFGemma3, Sample, all_hosts

from flowcut import Cut, FlowCut, attach
from flowcut.compat import CACHE

CASES = int(os.environ.get("CASES", "6"))
FAMILIES = [*WITH_PROMPT, "llava_siglip", "glm4v", "gemma3_wide"]


class WideGemma3(HFGemma3):
    """With a window that holds a whole conversation."""

    window = 4096


@dataclass(frozen=True)
class FixedCuts(FlowCut):
    """FlowCut in the encoder, and every second remaining token after some decoder layers, whatever the text says."""

    after: tuple[int, ...] = ()
    renumber: bool = False

    def cuts_language(self, two_stage):
        return bool(self.after)

    def language(self, view):
        if view.layer not in self.after:
            return None
        rows = [torch.arange(0, count, 2, device=view.q.device) for count in view.counts]
        return Cut.rows(rows, renumber=self.renumber)


@dataclass
class Segment:
    """What one turn adds to each row of a batch: ids and mask [B, S], and the media in the order of their rows."""

    ids: torch.Tensor
    mask: torch.Tensor
    samples: list[Sample]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    hosts = all_hosts(tmp_path_factory.mktemp("tower")) | {"gemma3_wide": WideGemma3()}
    return {name: (hosts[name], hosts[name].build()) for name in FAMILIES}


def text(draw: random.Random, least: int = 1) -> list[int]:
    return [draw.randrange(3, 90) for _ in range(draw.randint(least, 5))]


def turn(draw: random.Random) -> Sample:
    """Up to two images among text that has the last word."""
    prompt, images = [], []
    for _ in range(draw.choice([0, 1, 1, 2])):
        prompt += [*text(draw), IMAGE]
        images.append(draw.randrange(4))
    return Sample(prompt + text(draw), images)


def segment(draw: random.Random, host: Any, samples: Sequence[Sample]) -> Segment:
    """The rows of a turn, each padded on a side of its own."""
    rows = [host.row(sample) for sample in samples]
    width = max(map(len, rows)) + (draw.choice([0, 0, 2]) if len(rows) > 1 else 0)
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        start = draw.choice([0, width - len(row), (width - len(row)) // 2]) if len(rows) > 1 else 0
        ids[number, start : start + len(row)] = torch.tensor(row)
        mask[number, start : start + len(row)] = 1
    return Segment(ids, mask, list(samples))


def call(host: Any, model: Any, so_far: Sequence[Segment], **more: Any) -> dict[str, Any]:
    """Keyword arguments of the forward that brings the last segment."""
    last, mask = so_far[-1], torch.cat([each.mask for each in so_far], dim=1)
    types = host.types(torch.cat([each.ids for each in so_far], dim=1))
    inputs = {"input_ids": last.ids, "attention_mask": mask, **types, **host.media(last.samples), **more}
    if getattr(host, "mrope", False):
        inputs["position_ids"] = mrope_positions(host, model, so_far)[..., -last.ids.shape[1] :]
    elif len(mask) > 1:  # a single row leaves them to the model, which counts columns
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)[:, -last.ids.shape[1] :]
    return inputs


def mrope_positions(host: Any, model: Any, so_far: Sequence[Segment]) -> torch.Tensor:
    """[3, B, S] of the whole conversation, which transformers works out in `generate` only."""
    ids = torch.cat([each.ids for each in so_far], dim=1)
    grids = []
    for row in range(len(ids)):
        grids += [host.media([each.samples[row]])["image_grid_thw"] for each in so_far if each.samples[row].images]
    if not grids:
        mask = torch.cat([each.mask for each in so_far], dim=1)
        return (mask.cumsum(1) - 1).clamp_min(0).expand(3, -1, -1)
    mask = torch.cat([each.mask for each in so_far], dim=1)
    types = (ids == IMAGE_TOKEN).int()
    return model.model.get_rope_index(
        ids, image_grid_thw=torch.cat(grids), attention_mask=mask, mm_token_type_ids=types
    )[0]


def alone(host: Any, model: Any, so_far: Sequence[Segment], row: int) -> torch.Tensor:
    """Logits [S, V] of a row's whole conversation, unpadded and without a cache."""
    real = [each.ids[row][each.mask[row].bool()] for each in so_far]
    ids = torch.cat(real)[None]
    samples = [each.samples[row] for each in so_far]
    images = [image for sample in samples for image in sample.images]
    whole = Segment(ids, torch.ones_like(ids), [Sample([], images)])
    return model(**call(host, model, [whole], use_cache=False)).logits[0]


def check(host: Any, model: Any, so_far: Sequence[Segment], logits: torch.Tensor) -> None:
    """Each row's text after its last image: columns counted from the end stand for the caller's."""
    last = so_far[-1]
    for row in range(len(last.ids)):
        expected, after = alone(host, model, so_far, row), 0
        for column in range(1, last.ids.shape[1] + 1):
            if not last.mask[row, -column]:
                continue
            if int(last.ids[row, -column]) == IMAGE_TOKEN:
                break
            after += 1
            torch.testing.assert_close(logits[row, -column], expected[-after], atol=2e-4, rtol=1e-3)


def disturb(draw: random.Random, cache: Any, so_far: list[Segment]) -> tuple[Any, list[Segment]]:
    """Do to the cache what callers do between turns, and the same to the conversation."""
    kind = draw.choice(["nothing", "copy", "repeat", "select", "reorder", "crop"])
    rows = list(range(len(so_far[0].ids)))
    if kind in ("copy", "crop") and any(cache.is_sliding):
        return cache, so_far  # transformers refuses to crop layers that forget what is out of their window
    if kind == "copy":
        kept = copy.deepcopy(cache)
        cache.crop(-1)
        cache.batch_select_indices(torch.tensor([0]))
        cache = kept
    elif kind == "repeat" and len(rows) > 1:
        cache.batch_repeat_interleave(2)
        rows = [row for row in rows for _ in range(2)]
    elif kind == "select" and len(rows) > 1:
        rows = draw.sample(rows, draw.randint(2, len(rows)))
        cache.batch_select_indices(torch.tensor(rows))
    elif kind == "reorder":
        rows = [draw.choice(rows) for _ in rows]
        cache.reorder_cache(torch.tensor(rows))
    so_far = [Segment(e.ids[rows], e.mask[rows], [e.samples[row] for row in rows]) for e in so_far]
    if kind == "crop":
        last = so_far[-1]
        after = int((last.ids == IMAGE_TOKEN).flip(1).long().cumsum(1).eq(0).sum(1).min())
        removed = draw.randint(0, after)
        cache.crop(-removed)
        width = last.ids.shape[1] - removed
        so_far[-1] = Segment(last.ids[:, :width], last.mask[:, :width], last.samples)
    return cache, so_far


def interrupt(draw: random.Random, host: Any, model: Any, inputs: dict[str, Any]) -> None:
    """A forward that is stopped by Ctrl-C inside of some layer."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    encoder = host.layers(model) if host.name != "video_llava" else model.model.image_tower.encoder.layers
    place = draw.choice([encoder[draw.randrange(8)], host.decoder(model).layers[draw.randrange(4)]])
    hook = place.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        model(**{**inputs, CACHE: None})
    hook.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_random_conversations(family, models):
    host, model = models[family]
    # A window counts columns of padding that stand between two turns of a batch, so such rows differ from lone ones.
    most = 1 if getattr(host, "window", 4096) < 100 else 3
    for case in range(CASES):
        draw = random.Random(f"{family} {case}")
        after, renumber = draw.choice([(), (0,), (1,), (0, 2), (1, 3)]), draw.random() < 0.5
        pruner = FixedCuts(draw.choice([3, 10, 20, 1000]), after=after, renumber=renumber)
        with torch.no_grad(), attach(model, pruner):
            so_far: list[Segment] = []
            cache: Any = None
            for _ in range(draw.randint(1, 3)):
                rows = len(so_far[0].ids) if so_far else min(draw.randint(1, 3), most)
                so_far.append(segment(draw, host, [turn(draw) for _ in range(rows)]))
                inputs = call(host, model, so_far, use_cache=True)
                if draw.random() < 0.2 and so_far[-1].samples[0].images and cache is None:
                    interrupt(draw, host, model, inputs)
                result = model(**inputs, **{CACHE: cache})
                check(host, model, so_far, result.logits)
                cache, so_far = disturb(draw, result[CACHE], so_far)
