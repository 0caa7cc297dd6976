"""Operator calls that pruning adds, which decide at batch 1 on a GPU. Counts do not depend on the machine."""

import json

import pytest
import torch

from flowcut import attach, parse_pruner
from flowcut.bench.__main__ import main, parse
from flowcut.bench.counting import count, counting
from flowcut.bench.model import Bench


def encoder(batch):
    words = ["encode", "--geometry", "deep", "--threads", "1", "--batch", str(batch)]
    args, pruner = parse(words)
    return Bench(args, pruner)


@pytest.fixture(scope="module")
def benches():
    return {batch: encoder(batch) for batch in (1, 4)}


def counted(bench, text):
    """-> calls of the bare encoder, of the pruned one, and the handle."""
    vanilla = count(lambda: bench.call("vanilla"))
    with attach(bench.model, parse_pruner(text)) as handle:
        pruned = count(lambda: bench.call("pruned"))
    return vanilla, pruned, handle


def per_layer(vanilla, pruned):
    return (pruned.work.total() - vanilla.work.total()) / 24


def test_views_and_allocations_are_no_work_and_inner_parts_are_counted():
    weight = torch.ones(3, 4)

    def work():
        flat = weight.t().reshape(2, 6).view(3, 4)  # a transpose cannot be viewed so: one copy
        torch.empty(3)
        torch.nn.functional.linear(flat, weight)  # one product

    calls = count(work)
    assert dict(calls.work) == {"clone": 1, "mm": 1}
    assert calls.operators > 2


@pytest.mark.parametrize(
    ("work", "waits"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: bool(x.any()), 1),
        (lambda x: float(x[0]), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 1], 1),
        (lambda x: x.cpu(), 1),
        (lambda x: torch.tensor([1, 2], device=x.device), 1),
        (lambda x: torch.from_numpy(x.numpy() * 0), 1),
        (lambda x: x[torch.tensor([0, 1])], 0),
        (lambda x: x.masked_fill(x > 1, 0).argsort(), 0),
        (lambda x: torch.tensor([1, 2]).to(x.device, non_blocking=True), 0),
    ],
)
def test_waits(work, waits):
    assert count(lambda: work(torch.arange(4.0))).waits.total() == waits


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    "pruner", ["flowcut:budget=16,batch_coupling=max", "flowcut-paper:budget=16,batch_coupling=max"]
)
def test_flowcut_adds_twelve_working_calls_a_layer(benches, batch, pruner):
    """Measured 10.6; 30 to 40 before docs/LOG.md, 2026-11-28."""
    vanilla, pruned, handle = counted(benches[batch], pruner)
    assert len(handle.trace.kept) == 11
    assert per_layer(vanilla, pruned) <= 11
    assert pruned.waits.total() <= len(handle.trace.kept)


@pytest.mark.parametrize("batch", [1, 4])
def test_without_the_entropy_the_host_never_waits(benches, batch):
    vanilla, pruned, _ = counted(benches[batch], "flowcut:budget=16,adaptive=False")
    assert pruned.waits.total() == vanilla.waits.total() == 0
    assert per_layer(vanilla, pruned) <= 12


def test_rows_of_different_length_add_twelve_working_calls_a_layer_and_no_wait(benches):
    """They are padded, since little of them is padding; measured 11.8, and 67 and 24 before (docs/LOG.md)."""
    vanilla, pruned, handle = counted(benches[4], "flowcut:budget=16")
    assert any(len(set(counts)) > 1 for counts in handle.trace.leaving)
    assert per_layer(vanilla, pruned) <= 12
    assert pruned.waits.total() <= len(handle.trace.kept)


@pytest.mark.parametrize("name", ["fastervlm", "visionzip", "random", "uniform", "divprune"])
def test_a_method_with_one_cut_adds_nothing_before_it(benches, name):
    """Working calls of each layer up to the cut are those of the bare encoder."""
    bench = benches[1]

    def before_each_layer():
        with counting() as calls:
            seen: list[int] = []
            hooks = [
                layer.register_forward_pre_hook(lambda *_: seen.append(calls.work.total()))
                for layer in bench.model.encoder.layers
            ]
            bench.call("run")
        for hook in hooks:
            hook.remove()
        return seen

    vanilla = before_each_layer()
    with attach(bench.model, parse_pruner(f"{name}:budget=16")):
        assert before_each_layer()[:23] == vanilla[:23]  # the cut comes after layer 22


def test_report(capsys):
    words = ["--geometry", "tiny", "--threads", "1", "--warmup", "0", "--repeats", "1", "--batch", "2"]
    assert main(["ops", *words]) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    told = json.loads(last)
    assert (told["command"], told["layers"], told["selections"], told["batch"]) == ("ops", 8, 3, 2)
    added = told["pruned"]["work"] - told["vanilla"]["work"]
    assert told["added_per_layer"]["work"] == pytest.approx(added / 8)
    assert sum(told["work_added"].values()) >= added
    assert told["waits_per_selection"] <= 1
    assert set(told["host"]) == {"576", "36"}
    assert all(host["ratio"] > 0 for host in told["host"].values())
    assert any(line.startswith("added") for line in table)


def test_a_method_of_the_language_model_is_refused(capsys):
    assert main(["ops", "--geometry", "deep", "--pruner", "fastv"]) == 2
    assert "vision encoder alone" in capsys.readouterr().err
