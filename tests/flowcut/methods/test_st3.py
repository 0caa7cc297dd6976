"""ST3 against a decoder that keeps no cache: it computes everything again, with a mask of what was dropped when."""

import copy
import math

import pytest
import torch

from flowcut import ST3, FlowCut, attach, parse_pruner
from flowcut.compat import CACHE
from flowcut.cost import kv_cache_bytes
from flowcut.hooks.cache_notes import notes_on
from flowcut.methods.annealing import Annealing
from tests.flowcut.hosts import GREEDY, Clip, HFLlava
from tests.flowcut.naive_llama import TEXT_IN_FRONT, Sequence, queries_and_keys, prompt, tiny_llava

KEEP = (20, 9)
PRUNER = ST3(9, start=1, stride=2, keep=KEEP, anneal_to=0.2, anneal_tokens=7, anneal_every=2)
PROMPTS = [prompt(0, 30, 5), prompt(1, 22, 2), prompt(3, 9, 30)]  # the last image is within the budget
# Tokens of each forward after the prompt, for each row; in the fourth one the rows differ in length.
FORWARDS = [[[5], [6], [7]], [[8], [9], [10]], [[11], [12], [13]], [[14, 15, 16], [17, 18], [19]], *[[[20], [21], [22]]] * 5]


@torch.no_grad()
def loop(model, given, chunks):
    """-> logits [S, V] of the prompt's last token and of all later ones, and for each layer the image's tokens left.

    `gone[layer][column]` is the first column that no longer sees an entry of that layer.
    """
    image = list(range(TEXT_IN_FRONT, TEXT_IN_FRONT + given.image))
    states0 = given.embeds
    never, layers = 10**6, model.model.layers
    gone = [{column: never for column in image} for _ in layers]
    entered = [None] * len(layers)
    start, came, rows = len(given.embeds), 0, []
    for chunk in [[], *chunks]:
        if chunk:
            states0 = torch.cat([states0, model.get_input_embeddings()(torch.tensor(chunk))])
            came += len(chunk)
        length, states, here = len(states0), states0, set(image)
        ends = range(start, length) if chunk else range(start - 1, start)
        for number, layer in enumerate(layers):
            if entered[number] is None:
                entered[number] = len(here)
            columns = torch.arange(length)
            sees = columns[None] <= columns[:, None]
            for column in image:
                sees[:, column] &= (columns < gone[number][column]) & (column in here)
            sequence = Sequence(states, columns, [])
            queries, keys = queries_and_keys(model, number, sequence)
            logits = queries[:, -1:] @ keys.transpose(1, 2) / math.sqrt(queries.shape[-1])
            row = logits.masked_fill(~sees[-1:], -torch.inf).softmax(dim=-1).mean(dim=0)[0]
            mask = torch.zeros(length, length).masked_fill(~(sees | torch.eye(length, dtype=torch.bool)), -torch.inf)
            embeddings = model.model.rotary_emb(states, position_ids=columns[None])
            states = layer(states[None], attention_mask=mask[None, None], position_embeddings=embeddings)[0]
            if not chunk and given.image > PRUNER.budget and number in (0, 2):
                best = sorted(here, key=lambda column: -float(row[column]))[: KEEP[number // 2]]
                here = set(best)
                for later in range(number + 1, len(layers)):
                    gone[later] = {column: never if column in here else -1 for column in image}
            elif chunk:
                left = [column for column in image if gone[number][column] == never and column in here]
                step = min(came // 2 * 2, 7)
                share = 0.2 + 0.8 * (1 + math.cos(math.pi * step / 7)) / 2
                keep = len(left) if number == 0 or given.image <= PRUNER.budget else math.ceil(entered[number] * share)
                for column in sorted(left, key=lambda column: -float(row[column]))[keep:]:
                    gone[number][column] = length
                here = {column for column in here if number + 1 < len(layers) and gone[number + 1][column] >= 0}
        rows.append(model.lm_head(model.model.norm(states))[list(ends)])
        start = length
    left = [[column - TEXT_IN_FRONT for column in image if kept[column] == never] for kept in gone]
    return torch.cat(rows), left


def padded(chunks, side):
    width = max(map(len, chunks))
    fill = [[0] * (width - len(chunk)) for chunk in chunks]
    ids = [chunk + pad if side == "right" else pad + chunk for chunk, pad in zip(chunks, fill, strict=True)]
    return torch.tensor(ids), torch.tensor([[int(token > 0) for token in row] for row in ids])


@torch.no_grad()
def cached(model, pruner, side, forwards=FORWARDS):
    """-> for each row the logits of its prompt's last token and of its later tokens, and the cache."""
    width = max(len(one.embeds) for one in PROMPTS)
    embeds, index = torch.zeros(len(PROMPTS), width, 32), torch.full((len(PROMPTS), width), -1)
    mask = torch.zeros(len(PROMPTS), width, dtype=torch.long)
    for row, one in enumerate(PROMPTS):
        place = slice(0, len(one.embeds)) if side == "right" else slice(width - len(one.embeds), width)
        embeds[row, place], mask[row, place] = one.embeds, 1
        index[row, place] = torch.where(one.index >= 0, row, -1)
    counted = (mask.cumsum(dim=1) - 1).clamp_min(0)
    with attach(model, pruner) as handle:
        call = {"inputs_embeds": embeds, "image_index": index}
        output = model(**call, attention_mask=mask, position_ids=counted, use_cache=True)
        last = [len(one.embeds) - given + len(kept) for one, given, kept in sizes(handle)]
        logits = [output.logits[row, n - 1 if side == "right" else -1][None] for row, n in enumerate(last)]
        for chunks in forwards:
            ids, new = padded(chunks, side)
            mask = torch.cat([mask, new], dim=1)
            counted = (mask.cumsum(dim=1) - 1).clamp_min(0)[:, -ids.shape[1] :]
            call = {"input_ids": ids, "attention_mask": mask, "position_ids": counted, CACHE: output[CACHE]}
            output = model(**call, use_cache=True)
            logits = [torch.cat([had, one[real.bool()]]) for had, one, real in zip(logits, output.logits, new, strict=True)]
    return logits, output[CACHE]


def sizes(handle):
    kept = handle.trace.language.final
    return [(one, one.image, left) for one, left in zip(PROMPTS, kept, strict=True)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llava(tmp_path_factory.mktemp("tower"))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_cache_that_loses_entries_equals_computing_everything_again(model, side):
    logits, cache = cached(model, PRUNER, side)
    for row, given in enumerate(PROMPTS):
        expected, left = loop(model, given, [chunks[row] for chunks in FORWARDS])
        assert torch.allclose(logits[row], expected, atol=1e-4, rtol=1e-4)
        for layer, tokens in enumerate(left):
            images = notes_on(cache).images_of(layer)
            assert images.token[row][images.image[row] == row].tolist() == tokens
    assert len(left[1]) == 9  # within the budget: nothing was dropped
    assert [layer.keys.shape[2] for layer in cache.layers][1:] != [cache.layers[0].keys.shape[2]] * 3
