"""Laws of generation: with and without a cache, further questions and images on the same cache, beams."""

from dataclasses import dataclass, field

import pytest
import torch
from hosts import GREEDY, IMAGE, Sample
from laws import BUDGET, OURS, built, close, hosts, merges_in_language, same, some_speaking_pairs
from torch.nn.utils.rnn import pad_sequence

from flowcut import Cut, FlowCut, Pruner, attach, detach, flowcut
from flowcut.compat import CACHE

pytestmark = pytest.mark.usefixtures("no_gradients")


@dataclass(frozen=True)
class Recorded(Pruner):
    """Another pruner with its choice inside the language model held fast, whatever the text says."""

    original: Pruner = None
    kept: dict = field(default_factory=dict)
    renumber: bool = False
    cuts: dict = field(default_factory=dict)

    @property
    def reads_hidden(self):
        return self.original.reads_hidden

    @property
    def merges_before_mlp(self):
        return self.original.merges_before_mlp

    @property
    def keeps_groups(self):
        return self.original.keeps_groups

    @property
    def keeps_position_ids(self):
        return self.original.keeps_position_ids

    def cuts_language(self, two_stage):
        return self.original.cuts_language(two_stage)

    def vision(self, view):
        return self.original.vision(view)

    def language(self, view):
        if self.cuts:  # merged states are in no trace
            return self.cuts.get(view.layer)
        if view.layer not in self.kept:
            return None
        pairs = zip(view.positions, view.counts, self.kept[view.layer], strict=True)
        rows = [torch.searchsorted(here[:count].contiguous(), kept) for here, count, kept in pairs]
        return Cut(pad_sequence(rows, batch_first=True), tuple(map(len, rows)), renumber=self.renumber)


@dataclass(frozen=True)
class Noted(Recorded):
    """Another pruner whose last cuts inside the language model are noted."""

    def language(self, view):
        self.cuts[view.layer] = self.original.language(view)
        return self.cuts[view.layer]


def recorded(pruner, host, trace):
    if isinstance(pruner, Noted):
        return Recorded(pruner.budget, original=pruner.original, cuts=pruner.cuts)
    language = trace.language.kept if trace is not None and trace.language is not None else {}
    renumbers = isinstance(pruner, FlowCut) or getattr(pruner, "positions", None) == "renumbered"
    renumber = renumbers and not getattr(host, "mrope", False)
    return Recorded(pruner.budget, original=pruner, kept=language, renumber=renumber)


@some_speaking_pairs
def test_cache(host, pruner, implementation):
    """Decoding step by step equals decoding without a cache, and a batch equals each of its rows."""
    model, samples = built(host.name, implementation), host.samples()
    pruner = Noted(BUDGET, original=pruner) if merges_in_language(pruner) else pruner
    with attach(model, pruner) as handle:
        cached = host.generate(model, samples)
        one_stage = handle.trace.language is None
        if one_stage and host.name not in OURS:
            assert torch.equal(cached, host.generate(model, samples, use_cache=False))
        assert torch.equal(cached, torch.cat([host.generate(model, [sample]) for sample in samples]))
        host.outputs(model, samples, handle)
        trace = handle.trace
    with attach(model, recorded(pruner, host, trace)) as handle:
        # A decoding step's logits are those of a forward over the whole text so far.
        follow = [
            Sample([*sample.prompt, *row[:-1].tolist()], sample.images, sample.videos)
            for sample, row in zip(samples, cached, strict=True)
        ]
        logits = host.outputs(model, follow, handle)
    for row in logits:
        row[:, GREEDY["suppress_tokens"]] = -torch.inf
    assert [int(row[-1].argmax()) for row in logits] == cached[:, -1].tolist()


@some_speaking_pairs
def test_second_question_on_the_same_cache(host, pruner):
    model, question = built(host.name), [50, 51, 52]
    pruner = Noted(BUDGET, original=pruner) if merges_in_language(pruner) else pruner
    for sample in host.samples():
        inputs = host.inputs([sample], "left")
        with attach(model, pruner) as handle:
            first = model(**inputs, use_cache=True)
            trace, cache = handle.trace, first[CACHE]
            before = cache.get_seq_length() if host.name in OURS else inputs["input_ids"].shape[1]
            place = {}
            if getattr(host, "mrope", False):  # which transformers does not work out for itself in a call like this
                start = before + (model.model.rope_deltas if sample.images or sample.videos else 0)
                place = {"position_ids": (torch.arange(len(question)) + start).view(1, 1, -1).expand(3, 1, -1)}
            second = model(
                input_ids=torch.tensor([question]),
                attention_mask=torch.ones(1, before + len(question), dtype=torch.long),
                **{CACHE: cache},
                use_cache=True,
                **place,
            )
        seeing = bool(sample.images or sample.videos)
        with attach(model, recorded(pruner, host, trace if seeing else None)) as handle:
            whole = Sample([*sample.prompt, *question], sample.images, sample.videos)
            expected = host.outputs(model, [whole], handle)[0]
        assert close([second.logits[0]], [expected[-len(question) :]])


@some_speaking_pairs
def test_text_alone_after_an_image(host, pruner):
    """Nothing of an image call is left over: text alone is what it is without a pruner."""
    model = built(host.name)
    [text] = [sample for sample in host.samples() if not (sample.images or sample.videos)]
    vanilla = host.outputs(model, [text])
    with attach(model, pruner) as handle:
        host.outputs(model, host.samples(), handle)
        assert same(vanilla, host.outputs(model, [text], handle))


@pytest.mark.parametrize("host", [name for name, host in hosts().items() if host.speaks], indirect=True)
def test_one_line(host):
    model = built(host.name)
    assert flowcut(model, target_num=BUDGET) is model
    arrived = []
    counting = (
        host.decoder(model).layers[-1].register_forward_pre_hook(lambda _, args: arrived.append(args[0].shape[1]))
    )
    host.outputs(model, host.samples()[:1], None)
    counting.remove()
    detach(model)
    frames = sum(len(host.frames(video)) for video in host.samples()[0].videos)
    assert arrived == [host.text(host.samples()[0]) + BUDGET * (len(host.samples()[0].images) + frames)]


@some_speaking_pairs
def test_beams(host, pruner):
    model, settings = built(host.name), {"num_beams": 3, "num_return_sequences": 2}
    lengths = []
    counting = (
        host.decoder(model).layers[-1].register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    )
    with attach(model, pruner) as handle:
        together = host.generate(model, host.samples(), **settings)
        left = {len(tokens) for tokens in handle.trace.remaining}
        beams, lengths = max(lengths), lengths[:0]
        alone = torch.cat([host.generate(model, [sample], **settings) for sample in host.samples()])
        host.outputs(model, host.samples(), handle)
        assert left == {len(tokens) for tokens in handle.trace.remaining}
    counting.remove()
    assert torch.equal(together, alone)
    with attach(model, pruner) as handle:
        host.outputs(model, host.samples(), handle)
        assert beams == max(host.lengths(host.samples(), handle))  # every beam was cut, not the first alone


@pytest.mark.parametrize("host", ["llava_hf", "llava_next_hf", "llava_siglip"], indirect=True)
@pytest.mark.parametrize("pruner", ["flowcut", "fastv", "visionzip", "pdrop"], indirect=True)
def test_second_image_on_the_same_cache(host, pruner):
    """Two turns with an image each, on one cache, equal one forward over both with the same choices."""
    model = built(host.name)
    first, second = Sample([1, 5, IMAGE, 7, 8], [0]), Sample([20, IMAGE, 21, 22], [2])
    whole = Sample(first.prompt + second.prompt, [0, 2])
    with attach(model, pruner) as handle:
        cache, kept = None, {}
        for turn, seen in ((first, first), (second, whole)):
            inputs = host.inputs([turn], "left")
            inputs["attention_mask"] = host.inputs([seen], "left")["attention_mask"]
            result = model(**inputs, **{CACHE: cache}, use_cache=True)
            cache = result[CACHE]
            for layer, rows in (handle.trace.language.kept if handle.trace.language else {}).items():
                kept[layer] = kept.get(layer, []) + rows
    choices = recorded(pruner, host, None)
    choices.kept.update(kept)
    with attach(model, choices) as handle:
        expected = host.outputs(model, [whole], handle)[0]
    assert close([result.logits[0, -2:]], [expected[-2:]])
