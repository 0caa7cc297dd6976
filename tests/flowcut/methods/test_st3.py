"""ST3 against a decoder that keeps no cache: it computes everything again, with a mask of what was dropped when."""

import copy
import math
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from flowcut import ST3, FlowCut, attach, parse_pruner
from flowcut.compat import CACHE
from flowcut.cost import kv_cache_bytes
from flowcut.hooks.cache_notes import notes_on
from flowcut.methods.annealing import Annealing
from scripts.kv_cache import each_cache
from tests.flowcut.hosts import GREEDY, IMAGE, Clip, HFLlava, Sample, all_hosts
from tests.flowcut.naive_llama import TEXT_IN_FRONT, Sequence, prompt, queries_and_keys, tiny_llava

KEEP = (20, 9)
PRUNER = ST3(9, start=1, stride=2, keep=KEEP, anneal_to=0.2, anneal_tokens=7, anneal_every=2)
PROMPTS = [prompt(0, 30, 5), prompt(1, 22, 2), prompt(3, 9, 30)]  # the last image is within the budget
# Tokens of each forward after the prompt, for each row; in the fourth one the rows differ in length.
LATER = [[20], [21], [22]]
FORWARDS = [[[5], [6], [7]], [[8], [9], [10]], [[11], [12], [13]], [[14, 15, 16], [17, 18], [19]], *[LATER] * 5]


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
            logits = [
                torch.cat([had, one[real.bool()]]) for had, one, real in zip(logits, output.logits, new, strict=True)
            ]
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


LONG = {**GREEDY, "max_new_tokens": 12}
SHORT = ST3(9, start=1, stride=1, keep=(24, 16, 9), anneal_to=0.0, anneal_tokens=9, anneal_every=3)


@dataclass(frozen=True)
class AnnealedFlowCut(Annealing, FlowCut):
    """FlowCut in the encoder, and what it keeps leaves the cache too."""


@dataclass(frozen=True)
class Watched(ST3):
    """Notes what is dropped of the cache: (layer, scores, entries that stay)."""

    seen: list = field(default_factory=list)

    def cached(self, view):
        cut = super().cached(view)
        if cut is not None:
            self.seen.append((view.layer, self.cached_score(view), cut.keep))
        return cut


def built(name, folder):
    host = all_hosts(folder)[name]
    return host, host.build()


@torch.no_grad()
def answers(host, model, pruner, samples, **settings):
    """-> new tokens [B, 12] and the cache."""
    with attach(model, pruner) if pruner is not None else nullcontext():
        output = model.generate(**host.inputs(samples, "left"), **LONG, return_dict_in_generate=True, **settings)
    return output.sequences[:, -12:], output[CACHE]


@pytest.mark.parametrize("family", ["llava_next_hf", "qwen2_vl", "gemma3", "llava"])
def test_a_batch_equals_its_rows_and_so_do_beams(family, tmp_path):
    """Gemma 3 has layers with a window, Qwen2-VL positions with three axes."""
    host, model = built(family, tmp_path)
    pruner = AnnealedFlowCut(9, anneal_to=0.0, anneal_tokens=9, anneal_every=3) if family != "llava_next_hf" else SHORT
    for settings in ({}, {"num_beams": 2}):
        together, cache = answers(host, model, pruner, host.samples()[:2], **settings)
        alone = [answers(host, model, pruner, [sample], **settings)[0] for sample in host.samples()[:2]]
        assert torch.equal(together, torch.cat(alone))
    lengths = [cache.get_seq_length(layer) for layer in range(4)]
    window = [getattr(layer, "is_sliding", False) for layer in cache.layers]
    assert all(lengths[layer] < lengths[0] or window[layer] for layer in (1, 2, 3))
    assert not all(window[1:])


@pytest.mark.parametrize("family", ["llava_hf", "llava"])
def test_what_drops_nothing_changes_nothing(family, tmp_path):
    host, model = built(family, tmp_path)
    samples = host.samples()
    plain, cache = answers(host, model, None, samples)
    for pruner in (ST3(1000, start=1, stride=1), AnnealedFlowCut(1000), AnnealedFlowCut(1000, anneal_to=1.0)):
        same, held = answers(host, model, pruner, samples)
        assert torch.equal(plain, same)
        assert all(torch.equal(one.keys, other.keys) for one, other in zip(cache.layers, held.layers, strict=True))
    once, cache = answers(host, model, FlowCut(9), samples)
    same, held = answers(host, model, AnnealedFlowCut(9, anneal_to=1.0), samples)
    assert torch.equal(once, same)
    assert all(torch.equal(one.keys, other.keys) for one, other in zip(cache.layers, held.layers, strict=True))


def test_what_leaves_has_the_lowest_score():
    host = HFLlava()
    pruner = Watched(9, start=1, stride=2, keep=KEEP, anneal_to=0.0, anneal_tokens=9, anneal_every=3)
    answers(host, host.build(), pruner, host.samples()[:1])
    assert {layer for layer, *_ in pruner.seen} == {1, 2, 3}
    for _, score, keep in pruner.seen:
        gone = torch.ones_like(score, dtype=torch.bool).scatter(1, keep, False)
        assert gone.any()
        if keep.numel():
            assert score.masked_fill(gone, torch.inf).min() >= score[gone].max()


@torch.no_grad()
def test_images_of_two_turns_are_annealed_by_their_own_age(tmp_path):
    """And a copy of the cache goes on by itself."""
    host, model = built("llava_hf", tmp_path)
    pruner = AnnealedFlowCut(9, anneal_to=0.0, anneal_tokens=20, anneal_every=1)
    turns = [Sample([1, 5, IMAGE, 7, 8], [0]), Sample([20, 21, IMAGE, 22], [1])]
    whole, cache, before, grown = [], None, None, [0, 0]
    with attach(model, pruner):
        for turn in (turns[0], Sample([9], []), Sample([10], []), turns[1], Sample([11], []), Sample([12, 13], [])):
            whole = [*whole, *host.row(turn)]
            inputs = {**host.inputs([turn], "left"), "attention_mask": torch.ones(1, len(whole), dtype=torch.long)}
            cache = model(**inputs, **{CACHE: cache}, use_cache=True)[CACHE]
            before = copy.deepcopy(cache) if turn is turns[1] else before
            grown = [count + host.text(turn) + 9 * len(turn.images) for count in grown]
            grown = [0, 0] if turn is turns[0] else [grown[0], 0] if turn is turns[1] else grown
            shown = notes_on(cache).images_of(2)
            # The forward that brings an image anneals none; entries that a later one finds due leave then.
            due = [pruner.entries(9, age) for age in grown]
            left = [int((shown.image == image).sum()) for image in (0, 1)]
            if not turn.images:
                assert left == [due[0], due[1] if len(shown.initial) > 1 else 0]
    assert [before.get_seq_length(0), cache.get_seq_length(0)] == [9 + 4 + 2 + 9 + 3, 9 + 4 + 2 + 9 + 3 + 3]
    assert before.get_seq_length(2) > cache.get_seq_length(2)
    assert int((notes_on(before).images_of(2).image == 1).sum()) == 9


@torch.no_grad()
def test_bytes_of_the_real_cache_follow_from_the_schedule():
    host, held = HFLlava(), []
    model, [sample] = host.build(), host.samples()[:1]
    for pruner in (ST3(24, start=1, stride=1, anneal_to=0.1, anneal_tokens=8, anneal_every=3), SHORT):
        path, text = pruner.schedule(36, 4).entering, host.text(sample)
        with attach(model, pruner), each_cache(model.model.language_model, held):
            model.generate(**host.inputs([sample], "left"), **LONG)
        expected = [[text + grown + count for count in pruner.left(path, grown)] for grown in range(12)]
        assert held == [kv_cache_bytes(model.config.text_config, lengths, 4) for lengths in expected]
        held.clear()


def test_seven_billion_parameters():
    """Two layers read all 576 tokens, then every fourth one drops some; the mean is the budget."""
    schedule = ST3(192).schedule(576, 32)
    assert schedule.after == (1, 5, 9, 13, 17, 21, 25, 29)
    assert abs(schedule.inputs - 192) < 1
    ratio = schedule.kept[0] / 576
    assert [abs(kept - 576 * ratio**step) <= step + 1 for step, kept in enumerate(schedule.kept, start=1)] == [True] * 8
    pruner = parse_pruner("st3:budget=192")
    assert [pruner.entries(576, grown) for grown in (0, 7, 8, 32, 64, 500)] == [576, 576, 557, 317, 58, 58]
    assert pruner.left([576, 576, 300], 64) == [576, 58, 30]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": 0}, "start=0 is not a number of layers >= 1"),
        ({"stride": 0}, "stride=0 is not a number of layers >= 1"),
        ({"positions": "kept"}, "positions='kept' is not allowed; choose original or renumbered"),
        ({"keep": (0,)}, "keep=0 is not one number of tokens >= 1 for each of the 1 cuts"),
        ({"anneal_to": 1.5}, "anneal_to=1.5 is not a share between 0 and 1; 1 anneals nothing"),
        ({"anneal_every": 0}, "anneal_every=0 is not a number of tokens >= 1"),
        ({"anneal_tokens": 0}, "anneal_tokens=0 is not a number of tokens >= 1"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        ST3(64, **fields)


def test_misfits():
    with pytest.raises(ValueError, match="ST3 cuts inside a language model, and this is a vision encoder alone"):
        attach(Clip().build(), ST3(64))
    with pytest.raises(ValueError, match="keep=9 is not one number of tokens >= 1 for each of the 3 cuts"):
        attach(HFLlava().build(), ST3(9, start=1, stride=1, keep=(9,)))


@torch.no_grad()
def test_what_cannot_follow_is_refused_in_one_line():
    host = HFLlava()
    model, sample = host.build(), host.samples()[0]
    with pytest.raises(ValueError, match=r"Watched removes .* leave out prompt_lookup_num_tokens and assistant_model"):
        answers(host, model, Watched(9, start=1), [sample], prompt_lookup_num_tokens=2)
    with pytest.raises(ValueError, match="would reach into a prompt whose visual tokens were dropped; remove at most"):
        answers(host, model, SHORT, [sample])[1].crop(-4)
    cache = DynamicCache(config=model.config.text_config)
    cache.layers = [Foreign() for _ in cache.layers]
    with pytest.raises(ValueError, match="ST3 removes entries from the KV cache, which a Foreign does not support"):
        answers(host, model, SHORT, [sample], **{CACHE: cache})


class Foreign(DynamicLayer):
    """A layer of a cache that may hold its entries in another form."""
