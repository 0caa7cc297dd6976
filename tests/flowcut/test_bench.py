"""The benchmark on tiny models: what it reports, not how long anything takes."""

import json
import math

import pytest
import torch

from flowcut import FlowCut, attach, scores
from flowcut.bench.__main__ import RUNS, main, parse
from flowcut.bench.geometries import GEOMETRIES
from flowcut.bench.memory import LiveBytes, peak_memory_mb
from flowcut.bench.model import Bench
from flowcut.bench.replay import Replay
from flowcut.bench.synthetic import RATIOS, pictures
from flowcut.cost import encoder_flops, prefill_flops
from flowcut.pruner import Pruner

TINY = ["tiny", "tiny-next", "tiny-video", "tiny-qwen", "tiny-qwen3", "tiny-qwen3.5", "tiny-glm"]
CELLS = ["tiny-internvl", "tiny-smolvlm", "tiny-gemma"]
QUICK = ["--threads", "1", "--warmup", "0", "--repeats", "1", "--new-tokens", "3", "--text-tokens", "10"]


@pytest.fixture(autouse=True)
def _one_thread():
    """Two threads on models this small wait for each other, the longer the busier the machine is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def arguments(command, geometry="tiny", *more):
    return [command, "--geometry", geometry, *QUICK, *more]


def report(capsys, *words):
    assert main(arguments(*words)) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    assert all(any(line.startswith(run) for line in table) for run in RUNS)
    return json.loads(last)


def benched(*words):
    args, pruner = parse(arguments(*words))
    return Bench(args, pruner), pruner


@pytest.mark.parametrize(
    ("command", "geometry"),
    [
        ("encode", "tiny"),
        ("encode", "tiny-qwen"),
        ("prefill", "tiny-video"),
        *(("generate", size) for size in TINY + CELLS),
    ],
)
def test_report(capsys, command, geometry):
    told = report(capsys, command, geometry, "--batch", "2")
    assert (told["command"], told["geometry"], told["batch"], told["device"]) == (command, geometry, 2, "cpu")
    assert told["budget"] == GEOMETRIES[geometry].budget
    assert told["ratio"] == pytest.approx(told["pruned_s"] / told["vanilla_s"]) == pytest.approx(1 / told["speedup"])
    assert told["overhead"] == pytest.approx(told["pruned_s"] / told["unscored_s"] - 1)
    assert told["ratio_over_flops"] == pytest.approx(told["ratio"] / told["flops_ratio"])
    assert 0 < told["flops_ratio"] < 1
    assert told["images_per_s"]["vanilla"] == pytest.approx(2 / told["vanilla_s"])
    assert all(0 < told["spread"][run]["min_s"] <= told[f"{run}_s"] for run in RUNS)
    assert all(told["peak_memory_mb"][run] > 0 for run in ("vanilla", "pruned"))
    assert (told["threads"], told["dtype"], told["attention"]) == (1, "float32", "sdpa")
    assert {"device_name", "torch", "transformers", "warmup", "repeats", "seed"} <= set(told)
    assert all(0 < told["first_token_s"][run] < told[f"{run}_s"] for run in RUNS if command == "generate")


@pytest.mark.parametrize("geometry", TINY + CELLS)
def test_tokens_are_those_of_the_trace(capsys, geometry):
    words = "generate", geometry, "--batch", "3"
    told = report(capsys, *words)
    case, pruner = benched(*words)
    with torch.inference_mode():
        case.prepare("vanilla", None)
        with attach(case.model, pruner) as handle:
            case.call("pruned")
    assert told["tokens_per_layer"] == [handle.trace.path(row) for row in range(len(handle.trace.entering[0]))]
    visual = [len(tokens) for tokens in handle.trace.remaining]
    assert [path[-1] for path in told["decoder_tokens_per_layer"]] == [
        sum(visual[row * len(visual) // 3 : (row + 1) * len(visual) // 3]) for row in range(3)
    ]


@pytest.mark.parametrize(
    ("geometry", "pruner"),
    [
        *((size, "flowcut") for size in TINY),
        ("tiny-next", "fastv:budget=120"),
        ("tiny-qwen", "random"),
        ("tiny-qwen", "flowcut-qwen2-vl-released"),
    ],
)
def test_unscored_keeps_as_many(geometry, pruner):
    case, pruner = benched("generate", geometry, "--batch", "2", "--pruner", pruner, "--layers-slice", "4")
    with torch.inference_mode():
        case.prepare("vanilla", None)
        pruned = case.prepare("pruned", pruner)
        unscored = case.prepare("unscored", Replay.of(pruned, case.device))
    assert unscored.trace.entering == pruned.trace.entering
    assert unscored.trace.leaving == pruned.trace.leaving
    assert case.decoder_paths(unscored.trace) == case.decoder_paths(pruned.trace)
    assert (unscored.trace.language is None) == (pruned.trace.language is None)


def test_flops_of_the_encoder(capsys):
    told = report(capsys, "encode", "tiny", "--batch", "3")
    config = benched("encode")[0].model.config
    assert len(set(map(tuple, told["tokens_per_layer"]))) > 1, "images are to differ in their schedules"
    pruned = sum(encoder_flops(config, path) for path in told["tokens_per_layer"])
    assert told["flops_ratio"] == pytest.approx(pruned / (3 * encoder_flops(config, [36] * 8)))
    assert told["decoder_tokens_per_layer"] == []


def test_flops_of_the_prefill(capsys):
    config = benched("prefill")[0].model.config.text_config
    told = report(capsys, "prefill", "tiny", "--layers-slice", "3", "--budget", "5")
    assert told["decoder_tokens_per_layer"] == [[5] * 3]
    assert told["flops_ratio"] == pytest.approx(prefill_flops(config, [15] * 3) / prefill_flops(config, [46] * 3))
    told = report(capsys, "prefill", "tiny-next")
    assert told["decoder_tokens_per_layer"] == [[20, 20, 8, 8]]
    # 36 of the whole image, 12 x 12 of its tiles, 12 ends of rows
    unpruned = prefill_flops(config, [10 + 36 + 12 * 13] * 4)
    assert told["flops_ratio"] == pytest.approx(prefill_flops(config, [30, 30, 18, 18]) / unpruned)


def test_attention_sharpens_with_depth():
    case, _ = benched("encode")
    ratios = []

    class Probe(Pruner):
        def vision(self, view):
            row = scores.softmax_row(view.global_token(view.q), view.k, view.scaling).mean(dim=1)
            weights = scores.normalise(row[:, 1:])
            ratios.append(float(scores.entropy(weights).mean()) / math.log(weights.shape[1]))

    with torch.inference_mode(), attach(case.model, Probe(10**9)):
        case.encode(case.media(2, 1))  # what the weights were fitted to
    assert ratios[0] == pytest.approx(RATIOS[0], abs=0.02)
    assert ratios[-1] == pytest.approx(RATIOS[1], abs=0.05)
    assert ratios == pytest.approx(torch.linspace(*RATIOS, 8).tolist(), abs=0.05)


def test_pictures_do_not_depend_on_their_number():
    assert torch.equal(pictures(3, 28, seed=4)[:2], pictures(2, 28, seed=4))


def test_live_bytes():
    weight = torch.ones(1000, 1000)

    def work():
        first = weight @ weight  # 4 MB
        first.view(-1).add_(1)
        del first
        second = weight.t() + 1  # 4 MB; the transposed view owns nothing
        return second.relu()  # 4 MB

    assert peak_memory_mb(work, torch.device("cpu")) == pytest.approx(8.0)
    with LiveBytes() as memory:
        kept = work()
    assert memory.live == kept.untyped_storage().nbytes()
    del kept
    assert memory.live == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encode", "--geometry", "llava-2"], "'llava-next-7b'"),
        (["encode", "--budget", "0"], "budget=0"),
        (["encode", "--batch", "0"], "--batch: 0 is not a whole number >= 1"),
        (["encode", "--repeats", "many"], "--repeats: many"),
        (["encode", "--dtype", "float64"], "bfloat16"),
        (["encode", "--attention", "flash"], "eager"),
        (["encode", "--pruner", "flowcat"], "unknown pruner 'flowcat:budget=64'"),
        (["encode", "--pruner", "none"], "keeps every token"),
        (["encode", "--pruner", "flowcut:budget=3", "--budget", "4"], "has a budget already"),
        (["prefill", "--geometry", "tiny", "--layers-slice", "9"], "more than the 8 layers"),
        (["prefill", "--geometry", "tiny-next", "--layers-slice", "1"], "language_layer=1"),
        (["encode", "--geometry", "tiny", "--pruner", "fastv"], "vision encoder alone"),
        ([], "command"),
    ],
)
def test_bad_input_is_one_line(capsys, words, message):
    assert main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert [line for line in lines if not line.startswith("[transformers]")] == lines[-1:]
    assert lines[-1].startswith("flowcut.bench: ")


def test_no_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["encode", "--device", "cuda"]) == 2
    assert "--device cpu" in capsys.readouterr().err


def test_threads_are_given_back(capsys):
    torch.set_num_threads(2)
    report(capsys, "encode")
    assert torch.get_num_threads() == 2


def test_a_budget_that_drops_nothing(capsys):
    told = report(capsys, "encode", "tiny", "--pruner", "flowcut:interval=3", "--budget", "36")
    assert told["flops_ratio"] == 1
    assert told["pruner"] == "flowcut:interval=3,budget=36"
    assert FlowCut(36).budget == told["budget"]
