"""What `generate` can do on a pruned model, as docs/generate.md lists it: right, or refused in one line."""

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import pytest
import torch
from hosts import IMAGE, IMAGE_TOKEN, TEXT, WITH_PROMPT, Sample, all_hosts
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import Cache, QuantizedLayer

from flowcut import DART, Cut, FastV, FlowCut, Pruner, PyramidDrop, SparseVLM, attach
from flowcut.compat import CACHE

BUDGET = 10
PROMPT = Sample([1, 5, 6, 11, 12, 13, IMAGE, 7, 5, 6], [0])
SETTINGS = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [IMAGE_TOKEN, IMAGE_TOKEN - 1]}
PRUNERS = {
    "flowcut": FlowCut(BUDGET),
    "fastv": FastV.keeping(BUDGET),
    "sparsevlm": SparseVLM(BUDGET, layers=(0, 1, 2), keep=(24, 16, BUDGET)),
    "pdrop": PyramidDrop(BUDGET, layers=(1, 2, 3), keep=(24, 16, BUDGET)),
    "dart": DART(BUDGET, keep=BUDGET),
}
FAMILIES = ["llava_hf", "llava_next_hf", "qwen2_vl", "qwen2_5_vl", "llava"]


@dataclass(frozen=True)
class EverySecond(Pruner):
    """Keeps the same tokens whatever the text says, so that turns can be compared with one long prompt."""

    renumber: bool = False

    def language(self, view):
        if view.layer != 1:
            return None
        return Cut.rows([torch.arange(count)[::2] for count in view.counts], renumber=self.renumber)


class OneStage(FlowCut):
    """FlowCut in the encoder alone, also where it is published in two stages."""

    def cuts_language(self, two_stage):
        return False


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    return all_hosts(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def models(hosts):
    built = {}

    def get(name):
        if name not in built:
            built[name] = hosts[name].build()
        return hosts[name], built[name]

    return get


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def assistant():
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**{**TEXT, "num_hidden_layers": 1})).eval()


def run(models, family, pruner, **settings):
    """-> the greedy answer, and the answer with other settings."""
    host, model = models(family)
    inputs = host.inputs([PROMPT], "left")
    with attach(model, PRUNERS[pruner]):
        plain = model.generate(**inputs, **SETTINGS)
        return plain, model.generate(**inputs, **{**SETTINGS, **settings})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pruner", PRUNERS)
def test_guesses_choose_nothing(models, family, pruner):
    """Prompt lookup brings guesses in the very first forward; "5 6" at the prompt's end stands in it before."""
    plain, guessed = run(models, family, pruner, prompt_lookup_num_tokens=3)
    assert torch.equal(plain, guessed)


def test_the_first_forward_really_brings_guesses(models):
    host, model = models("llava_hf")
    lengths = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True, prepend=True
    )
    model.generate(**host.inputs([PROMPT], "left"), **SETTINGS, prompt_lookup_num_tokens=3)
    hook.remove()
    assert lengths[0] == len(host.row(PROMPT)) + 3


@pytest.mark.parametrize("pruner", ["flowcut", "fastv", "sparsevlm"])
def test_an_assistant_model(models, assistant, pruner):
    plain, assisted = run(models, "llava_hf", pruner, assistant_model=assistant)
    assert torch.equal(plain, assisted)


@pytest.mark.parametrize("family", ["llava_hf", "llava_next_hf", "qwen2_vl"])
@pytest.mark.parametrize("pruner", PRUNERS)
def test_without_a_cache(models, family, pruner):
    """The answer so far chooses nothing either, although every step reads all of it again."""
    plain, uncached = run(models, family, pruner, use_cache=False)
    assert torch.equal(plain, uncached)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pruner", ["flowcut", "fastv"])
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"prefill_chunk_size": 16}, "prefill_chunk_size=16 would split a prompt .* pass prefill_chunk_size=None"),
        ({"cache_implementation": "static"}, "no static cache"),
    ],
)
def test_refused_in_one_line(models, family, pruner, settings, reason):
    if family == "llava" and pruner == "flowcut" and "cache_implementation" in settings:
        plain, static = run(models, family, pruner, **settings)  # the prompt is short before generate() sees it
        assert torch.equal(plain, static)
        return
    with pytest.raises(ValueError, match=reason) as refusal:
        run(models, family, pruner, **settings)
    assert "\n" not in str(refusal.value)


def test_text_alone_may_be_read_in_pieces(models):
    host, model = models("llava_hf")
    text = host.inputs([Sample([1, 5, 6, 7, 8, 9], [])], "left")
    vanilla = model.generate(**text, **SETTINGS)
    with attach(model, PRUNERS["fastv"]):
        assert torch.equal(model.generate(**text, **SETTINGS, prefill_chunk_size=3), vanilla)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pruner", ["flowcut", "fastv"])
def test_what_is_returned_besides(models, family, pruner):
    plain, result = run(
        models,
        family,
        pruner,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_hidden_states=True,
    )
    assert torch.equal(plain, result.sequences)
    chosen = torch.stack(result.scores, dim=1).argmax(dim=-1)
    assert torch.equal(chosen, plain[:, -chosen.shape[1] :])


@pytest.mark.parametrize("pruner", ["flowcut", "fastv"])
def test_streaming_and_a_thread(models, pruner):
    class Streamer:
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            pass

    host, model = models("llava_hf")
    inputs, streamer = host.inputs([PROMPT], "left"), Streamer()
    with attach(model, PRUNERS[pruner]):
        plain = model.generate(**inputs, **SETTINGS)
        thread = Thread(target=model.generate, kwargs={**inputs, **SETTINGS, "streamer": streamer})
        thread.start()
        thread.join()
    assert streamer.tokens == plain[0].tolist()


class Coarse(QuantizedLayer):
    """A quantised layer whose quantisation loses nothing, with the last four entries kept apart as they are."""

    def __init__(self):
        super().__init__(nbits=4, residual_length=4, q_group_size=16)

    def _quantize(self, tensor, axis):
        return tensor.clone()

    def _dequantize(self, tensor):
        return tensor


@pytest.mark.parametrize("family", ["llava_hf", "llava_next_hf", "qwen2_vl"])
@pytest.mark.parametrize("pruner", PRUNERS)
def test_quantised_cache(models, family, pruner):
    plain, quantised = run(models, family, pruner, **{CACHE: Cache(layer_class_to_replicate=Coarse)})
    assert torch.equal(plain, quantised)


def test_a_second_image_on_a_quantised_cache_is_refused(models):
    """PyramidDrop scores with the keys of the next layer, which such a cache keeps in another form."""
    host, model = models("llava_hf")
    inputs = host.inputs([PROMPT], "left")
    twice = torch.cat([inputs["attention_mask"]] * 2, dim=1)
    with attach(model, PRUNERS["pdrop"]):
        cache = model(**inputs, **{CACHE: Cache(layer_class_to_replicate=Coarse)})[CACHE]
        with pytest.raises(ValueError, match="reads the next layer needs its earlier keys, which a Coarse does not"):
            model(**{**inputs, "attention_mask": twice}, **{CACHE: cache})


@pytest.mark.parametrize("family", WITH_PROMPT)
@pytest.mark.parametrize(
    "pruner",
    [OneStage(BUDGET), EverySecond(BUDGET), EverySecond(BUDGET, renumber=True)],
    ids=["encoder", "decoder", "renumbered"],
)
@pytest.mark.parametrize("what", ["conversation", "types", "new"])
def test_second_turn(models, family, pruner, what):
    """On the cache of the first turn: the whole conversation again (with M-RoPE's token types or without), or what is
    new alone.
    """
    second_turn(*models(family), pruner, what)


@pytest.mark.parametrize("what", ["conversation", "types", "new"])
def test_second_turn_on_a_recurrent_state(models, what):
    """Qwen3.5, whose language model mostly keeps a state instead of keys and values."""
    second_turn(*models("qwen3_5"), OneStage(BUDGET), what)


def test_a_ragged_second_turn_on_a_recurrent_state_is_refused(models):
    """Two rows of one length that lose 38 and 26 tokens; where they lose as many, each is as if alone."""
    host, model = models("qwen3_5")
    first = [Sample([1, 5, 6], []), Sample([1, 7, 8], [])]
    even = [Sample([20, IMAGE, 21], [0]), Sample([22, IMAGE, 23], [0])]
    ragged = [Sample([20, IMAGE, 21], [2]), Sample([22, IMAGE, 23, *range(30, 42)], [0])]

    def turns(samples, *rows):
        one, two = ([samples_of[row] for row in rows] for samples_of in (first, samples))
        cache = model(**host.inputs(one, "left"), use_cache=True)[CACHE]
        inputs = host.inputs(two, "left")
        before = torch.ones(len(rows), 3, dtype=torch.long)
        whole = {"attention_mask": torch.cat([before, inputs["attention_mask"]], dim=1)}
        places = torch.arange(3, 3 + inputs["input_ids"].shape[1]).expand(3, len(rows), -1)
        return model(**{**inputs, **whole, CACHE: cache, "position_ids": places}).logits[:, -2:]

    with torch.no_grad(), attach(model, OneStage(BUDGET)):
        together = turns(even, 0, 1)
        alone = torch.cat([turns(even, 0), turns(even, 1)])
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
        with pytest.raises(ValueError, match="rows of this batch lose different numbers of tokens"):
            turns(ragged, 0, 1)
        assert turns(ragged, 0).isfinite().all()


def second_turn(host, model, pruner, what):
    mrope = getattr(host, "mrope", False)
    inputs, more = host.inputs([PROMPT], "left"), torch.tensor([[50, 51, 52]])
    with attach(model, pruner):
        first = model.generate(**inputs, **SETTINGS, return_dict_in_generate=True)
        whole = torch.cat([first.sequences, more], dim=1)
        types = {"mm_token_type_ids": (whole == IMAGE_TOKEN).int()} if mrope else host.types(whole)
        given = torch.cat([first.sequences[:, -1:], more], dim=1) if what == "new" else whole
        second = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(whole),
            **(types if what == "types" else {}),
            **{CACHE: copy.deepcopy(first[CACHE])},
            **SETTINGS,
        )
        again = {**inputs, "input_ids": whole, "attention_mask": torch.ones_like(whole), **types}
        expected = model.generate(**again, **SETTINGS)
    assert torch.equal(second[:, given.shape[1] :], expected[:, whole.shape[1] :])


@pytest.mark.parametrize("family", ["llava_hf", "internvl", "smolvlm", "gemma3"])
@pytest.mark.parametrize("what", ["conversation", "new"])
def test_an_image_in_the_second_turn(models, family, what):
    """The whole conversation's ids with the new image alone, on the cache of the first turn: as all of it at once."""
    host, model = models(family)
    first, second = Sample([1, 5, IMAGE, 7, 8], [1]), Sample([50, IMAGE, 51, 52], [3])
    with attach(model, OneStage(BUDGET)):
        begun = model.generate(**host.inputs([first], "left"), **SETTINGS, return_dict_in_generate=True)
        said = begun.sequences[0].tolist()
        whole = torch.tensor([said + host.row(second)])
        given = whole[:, len(said) - 1 :] if what == "new" else whole
        types, mask = host.types(whole), torch.ones_like(whole)
        cache = copy.deepcopy(begun[CACHE])
        after = model.generate(
            input_ids=given, attention_mask=mask, **types, **host.media([second]), **{CACHE: cache}, **SETTINGS
        )
        both = host.media([Sample([], first.images + second.images)])
        expected = model.generate(input_ids=whole, attention_mask=mask, **types, **both, **SETTINGS)
    assert torch.equal(after[:, given.shape[1] :], expected[:, whole.shape[1] :])


def test_a_cache_that_lost_its_notes_is_refused(models):
    host, model = models("llava_hf")
    inputs = host.inputs([PROMPT], "left")
    with attach(model, FlowCut(BUDGET)):
        cache = model(**inputs, use_cache=True)[CACHE]
        bare = type(cache)([(layer.keys, layer.values) for layer in cache.layers])
        mask = torch.ones(1, inputs["input_ids"].shape[1] + 1, dtype=torch.long)
        with pytest.raises(ValueError, match=r"no record of dropped ones; copy a cache with copy\.deepcopy"):
            model(input_ids=torch.tensor([[5]]), attention_mask=mask, **{CACHE: bare})


def test_a_crop_into_the_pruned_prompt_is_refused_and_harmless(models):
    host, model = models("llava_hf")
    inputs = host.inputs([PROMPT], "left")
    with attach(model, FlowCut(BUDGET)):
        cache = model(**inputs, use_cache=True)[CACHE]
        before = cache.get_seq_length()
        with pytest.raises(ValueError, match=r"crop\(-4\) would reach into .* remove at most the last 3 tokens"):
            cache.crop(-4)
        assert cache.get_seq_length() == before
        cache.crop(-3)
        assert cache.get_seq_length() == before - 3
        cache.reset()
        fresh = model(**inputs, use_cache=True, **{CACHE: cache}).logits
        assert torch.equal(fresh, model(**inputs).logits)


def test_the_page_names_every_case():
    """docs/generate.md has a row for each setting tested here."""
    page = Path(__file__, "../../../docs/generate.md").resolve().read_text()
    rows = "\n".join(line for line in page.splitlines() if line.startswith("|"))
    for setting in ("prompt_lookup_num_tokens", "assistant_model", "use_cache=False", "prefill_chunk_size", "static"):
        assert re.search(re.escape(setting), rows), setting
