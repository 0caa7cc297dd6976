"""Columns of logits and labels: which token each one stands for, in padded and packed batches and in training."""

import warnings

import pytest
import torch
from hosts import IMAGE, IMAGE_TOKEN, WITH_PROMPT, HFLlava, Sample, all_hosts
from torch.nn.functional import cross_entropy

from flowcut import FastV, FlowCut, attach

BUDGET = 10
PRUNERS = {"flowcut": FlowCut(BUDGET), "fastv": FastV.keeping(BUDGET)}
PROMPTS = [
    (Sample([1, 5, IMAGE, 7, 8, 9], [0]), [11, 12, 13]),
    (Sample([1, IMAGE, 20, IMAGE, 21], [1, 2]), [14]),
    (Sample([1, 30, 31, 32], []), [15, 16, 17, 18]),
    (Sample([1, 2, 3, 4, 5, 6, IMAGE, 40], [3]), [17, 18, 19, 20]),
]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    return all_hosts(tmp_path_factory.mktemp("tower"))


def call(host, rows, samples):
    """Rows [(padding in front, ids, padding at the end)] with their images."""
    ids = torch.tensor([[0] * left + row + [0] * right for left, row, right in rows])
    mask = torch.tensor([[0] * left + [1] * len(row) + [0] * right for left, row, right in rows])
    types = {"mm_token_type_ids": (ids == IMAGE_TOKEN).int()} if getattr(host, "mrope", False) else {}
    return {"input_ids": ids, "attention_mask": mask, **host.types(ids), **host.media(samples), **types}


@torch.no_grad()
@pytest.mark.parametrize("family", WITH_PROMPT)
@pytest.mark.parametrize("pruner", PRUNERS)
def test_columns_counted_from_the_end(hosts, family, pruner):
    """Prompts padded on the left, completions on the right: the last columns are the completions', as in one row."""
    host = hosts[family]
    model = host.build()
    samples, longest = [sample for sample, _ in PROMPTS], max(len(answer) for _, answer in PROMPTS)
    prompts = [host.row(sample) for sample in samples]
    rows = [
        (max(map(len, prompts)) - len(prompt), prompt + answer, longest - len(answer))
        for prompt, (_, answer) in zip(prompts, PROMPTS, strict=True)
    ]
    right = [(0, row, max(map(len, prompts)) + longest - len(row)) for _, row, _ in rows]
    with attach(model, PRUNERS[pruner]):
        last = model(**call(host, rows, samples), logits_to_keep=longest + 1).logits
        assert last.shape[1] == longest + 1
        every = model(**call(host, rows, samples)).logits
        padded = model(**call(host, right, samples)).logits
        for number, (sample, answer) in enumerate(PROMPTS):
            alone = model(**call(host, [(0, rows[number][1], 0)], [sample])).logits[0, -len(answer) - 1 :]
            end = len(answer) + 1
            for batch in (last, every[:, -longest - 1 :]):
                torch.testing.assert_close(batch[number, :end], alone, atol=1e-4, rtol=1e-4)
            after = right[number][2]
            shown = padded[number, : padded.shape[1] - after][-end:]
            torch.testing.assert_close(shown, alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava_hf", "qwen2_vl"])
def test_padding_after_every_row(hosts, family):
    """All rows end in padding, such as where lengths are rounded up: it counts among the last columns."""
    host = hosts[family]
    model = host.build()
    samples = [sample for sample, _ in PROMPTS]
    prompts = [host.row(sample) for sample in samples]
    rows = [(0, prompt, max(map(len, prompts)) + 3 - len(prompt)) for prompt in prompts]
    with attach(model, FlowCut(BUDGET)):
        every = model(**call(host, rows, samples)).logits
        last = model(**call(host, rows, samples), logits_to_keep=4).logits
    assert torch.equal(last, every[:, -4:])


@torch.no_grad()
@pytest.mark.parametrize("pruner", PRUNERS)
def test_logits_of_single_columns(hosts, pruner):
    """They are refused where tokens are dropped, in the encoder or inside, and given where none is."""
    host, model = hosts["llava_hf"], hosts["llava_hf"].build()
    inputs, at = host.inputs([Sample([1, 5, IMAGE, 7, 8], [0])], "left"), torch.tensor([3])
    vanilla = model(**inputs, logits_to_keep=at).logits
    with attach(model, PRUNERS[pruner]) as handle:
        with pytest.raises(ValueError, match="as a tensor of positions cannot follow dropped tokens; pass a number"):
            model(**inputs, logits_to_keep=at)
        handle.pruner = type(handle.pruner)(1000)
        assert torch.equal(model(**inputs, logits_to_keep=at).logits, vanilla)


def packed(host, prompts):
    """Two samples in one row, told apart by their position ids."""
    rows = [host.row(sample) for sample in prompts]
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    ids = torch.tensor([[token for row in rows for token in row]])
    return {"input_ids": ids, "position_ids": positions, **host.media(prompts), "use_cache": False}


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava_hf", "llava_siglip", "llava_next_hf", "llava_onevision"])
def test_packed_samples_keep_their_boundaries(hosts, family):
    host = hosts[family]
    model = host.build()
    prompts = [Sample([1, 5, IMAGE, 7, 8], [0]), Sample([1, 20, 21, IMAGE, 22, 23], [2])]

    class OneStage(FlowCut):
        def cuts_language(self, two_stage):
            return False

    with attach(model, OneStage(BUDGET)):
        together = model(**packed(host, prompts)).logits[0]
        alone = [model(**call(host, [(0, host.row(one), 0)], [one])).logits[0] for one in prompts]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_packed_samples_with_axes_keep_their_boundaries(hosts, family):
    """M-RoPE's position ids with the text's count as a fourth axis in front, by which transformers tells samples."""
    host = hosts[family]
    model = host.build()
    prompts = [Sample([1, 5, IMAGE, 7, 8], [0]), Sample([1, 20, 21, IMAGE, 22, 23], [2])]
    inputs, positions = [call(host, [(0, host.row(one), 0)], [one]) for one in prompts], []
    for each in inputs:
        counted = torch.arange(each["input_ids"].shape[1])[None, None]
        names = ("input_ids", "image_grid_thw", "mm_token_type_ids")
        axes, _ = model.model.get_rope_index(**{name: each[name] for name in names})
        positions.append(torch.cat([counted, axes]))

    class OneStage(FlowCut):
        def cuts_language(self, two_stage):
            return False

    ids, places = torch.cat([each["input_ids"] for each in inputs], dim=1), torch.cat(positions, dim=2)
    with attach(model, OneStage(BUDGET)):
        together = model(input_ids=ids, position_ids=places, use_cache=False, **host.media(prompts)).logits[0]
        alone = [model(**each).logits[0] for each in inputs]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_lengths_of_packed_samples_are_refused(hosts):
    host, model = hosts["llava_hf"], hosts["llava_hf"].build()
    inputs = host.inputs([Sample([1, 5, IMAGE, 7, 8], [0])], "left")
    lengths = torch.tensor([0, inputs["input_ids"].shape[1]], dtype=torch.int32)
    with attach(model, FlowCut(BUDGET)), pytest.raises(ValueError, match="cu_seq_lens_q counts all tokens"):
        model(**inputs, cu_seq_lens_q=lengths)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava_hf", "llava_next_hf"])
def test_packed_samples_are_refused_inside_the_language_model(hosts, family):
    host = hosts[family]
    model = host.build()
    prompts = [Sample([1, 5, IMAGE, 7, 8], [0]), Sample([1, 20, 21, IMAGE, 22, 23], [2])]
    with attach(model, FastV.keeping(BUDGET)), pytest.raises(ValueError, match="packed samples") as refusal:
        model(**packed(host, prompts))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("family", WITH_PROMPT)
@pytest.mark.parametrize("pruner", PRUNERS)
def test_labels_and_logits_outside_of_the_model(hosts, family, pruner):
    """The model's own loss, from kept labels and from restored logits."""
    host = hosts[family]
    model = host.build()
    inputs = host.labelled(host.samples())
    labels = inputs.pop("labels")
    with torch.no_grad(), attach(model, PRUNERS[pruner]) as handle:
        expected = model(**inputs, labels=labels).loss
        logits = model(**inputs).logits
        kept, whole = handle.kept_labels(labels), handle.restore_logits(logits)
        assert handle.kept_columns.shape == logits.shape[:2] == kept.shape
        assert whole.shape[:2] == labels.shape
    for predicted, targets in ((logits, kept), (whole, labels)):
        loss = cross_entropy(predicted[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
        torch.testing.assert_close(loss, expected)


def test_text_alone_has_no_dropped_columns(hosts):
    host, model = hosts["llava_hf"], hosts["llava_hf"].build()
    with torch.no_grad(), attach(model, FlowCut(BUDGET)) as handle:
        model(**host.inputs(host.samples(), "right"))
        assert handle.kept_columns is not None
        ids = torch.tensor([[1, 5, 6]])
        logits = model(input_ids=ids).logits
        assert handle.kept_columns is None
        assert torch.equal(handle.kept_labels(ids), ids)
        assert handle.restore_logits(logits) is logits


def test_labels_of_another_forward_are_refused(hosts):
    host, model = hosts["llava_hf"], hosts["llava_hf"].build()
    with torch.no_grad(), attach(model, FlowCut(BUDGET)) as handle:
        logits = model(**host.inputs(host.samples(), "right")).logits
        with pytest.raises(ValueError, match="labels have 3 columns, but the last forward had"):
            handle.kept_labels(torch.zeros(1, 3, dtype=torch.long))
        with pytest.raises(ValueError, match="leave out logits_to_keep"):
            handle.restore_logits(logits[:, -1:])


class Data(torch.utils.data.Dataset):
    def __init__(self, host):
        self.items = [host.labelled([sample]) for sample in host.samples()[:2]]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, number):
        return self.items[number]


def one(items):
    return items[0]


@pytest.mark.parametrize("pruner", PRUNERS)
def test_trainer_with_label_smoothing_and_metrics(pruner, tmp_path):
    """transformers' Trainer, unchanged: its smoothed loss is that of the kept labels, and metrics see equal lengths."""
    from transformers import Trainer, TrainingArguments

    host = HFLlava()
    model, seen = host.build(), []
    handle = attach(model, PRUNERS[pruner], full_logits=True)
    arguments = TrainingArguments(
        tmp_path,
        label_smoothing_factor=0.1,
        max_steps=2,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        use_cpu=True,
        report_to="none",
        logging_steps=1,
        remove_unused_columns=False,
        learning_rate=0.0,
        save_strategy="no",
        dataloader_pin_memory=False,
    )

    def metrics(prediction):
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        seen.append((logits.shape, prediction.label_ids.shape))
        return {}

    data = Data(host)
    trainer = Trainer(model, arguments, data_collator=one, train_dataset=data, compute_metrics=metrics)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # Trainer gathers all outputs but these, and image outputs hold None, with a pruner and without.
    trainer.evaluate(data, ignore_keys=["cache", "past_key_values", "image_outputs", "image_hidden_states"])
    assert seen[0][0][:2] == seen[0][1]
    handle.remove()
    with torch.no_grad(), attach(model.eval(), PRUNERS[pruner]) as handle:
        expected = []
        for item in data.items:
            labels = item["labels"]
            logits = model(**{name: value for name, value in item.items() if name != "labels"}).logits
            # For models like this one Trainer's smoother does not shift the labels, but divides by the number of
            # shifted ones, with a pruner and without.
            targets = labels.gather(1, handle.kept_columns).flatten()
            total = cross_entropy(logits.flatten(0, 1), targets, label_smoothing=0.1, reduction="sum")
            expected.append(float(total) / int((labels[:, 1:] >= 0).sum()))
    assert sorted(losses) == pytest.approx(sorted(expected), abs=1e-3)


@pytest.mark.parametrize("pruner", PRUNERS)
def test_prompts_that_leave_nothing_to_prune_are_warned_of(hosts, pruner):
    host, model = hosts["llava_hf"], hosts["llava_hf"].build()
    inputs = host.inputs([Sample([1, 5, IMAGE, 7], [0])], "left")
    with torch.no_grad():
        features = model.model.get_image_features(inputs["pixel_values"])
        embeddings = model.get_input_embeddings()(inputs["input_ids"])
        merged = embeddings.masked_scatter(
            (inputs["input_ids"] == IMAGE_TOKEN)[..., None], torch.cat(list(features.pooler_output))
        )
        vanilla = model(**inputs).logits
        with attach(model, PRUNERS[pruner]):
            with pytest.warns(UserWarning, match="came as inputs_embeds without images"):
                assert torch.allclose(model(inputs_embeds=merged).logits, vanilla, atol=1e-5)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                pruned = model(inputs_embeds=embeddings, pixel_values=inputs["pixel_values"]).logits
                assert torch.equal(pruned, model(**inputs).logits)
                model(inputs_embeds=embeddings[:, :1])  # a decoding step
            given = {"input_ids": inputs["input_ids"], "mm_encoder_outputs": {"image": features}}
            with pytest.warns(UserWarning, match="encoded without this pruner"):
                assert model(**given).logits.shape == vanilla.shape
