"""The training benchmark on tiny models: what it reports, not how long anything takes."""

import json

import pytest
import torch

from flowcut import attach, parse_pruner
from llava.train.bench import RUNS, TrainingBench, build_parser, check, main

QUICK = ["--warmup", "1", "--repeats", "2", "--text-tokens", "8", "--threads", "1", "--device", "cpu"]
PRUNER = "flowcut:budget=5,last_layer=-2"  # the tiny tower has two layers


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def report(llava_folder, capsys):
    def report(*more):
        assert main([*QUICK, "--model", str(llava_folder), "--pruner", PRUNER, *more]) == 0
        *table, last = capsys.readouterr().out.strip().splitlines()
        assert all(any(line.startswith(run) for line in table) for run in RUNS)
        return json.loads(last)

    return report


@pytest.mark.parametrize("more", [(), ("--dtype", "bfloat16", "--batch", "2", "--gradient-checkpointing")])
def test_report_of_a_checkpoint(report, more, llava_folder):
    told = report(*more)
    assert told["visual_tokens"] == {"unpruned": 16, "pruned": 5}
    assert told["ratio"] == pytest.approx(told["pruned_s"] / told["unpruned_s"]) == pytest.approx(1 / told["speedup"])
    assert told["ratio_of_pairs"]["min"] <= told["ratio_of_pairs"]["median"] <= told["ratio_of_pairs"]["max"]
    assert all(0 < told["spread"][run]["min_s"] <= told[f"{run}_s"] for run in RUNS)
    # so small a model has its peak in the optimizer, which does not care about tokens
    assert told["peak_memory_mb"]["pruned"] == pytest.approx(told["peak_memory_mb"]["unpruned"], rel=0.5)
    assert told["peak_memory_mb"]["pruned"] > 0.5
    assert told["memory_ratio"] == told["peak_memory_mb"]["pruned"] / told["peak_memory_mb"]["unpruned"]
    assert (told["dtype"], told["batch"]) == (("bfloat16", 2) if more else ("float32", 1))
    assert (told["model"], told["decoder_layers"], told["threads"], told["device"]) == (llava_folder.name, 2, 1, "cpu")
    assert told["device_name"]


def test_stage_1_trains_the_projector_alone(report):
    first, second = report("--stage", "1"), report()
    assert first["trained_parameters"] == 32 * 64 + 64 + 64 * 64 + 64
    assert second["trained_parameters"] > first["trained_parameters"]


def test_published_sizes_with_fewer_layers(capsys):
    more = ["--geometry", "tiny", "--layers-slice", "3", "--pruner", "flowcut:budget=8"]
    assert main([*QUICK, *more]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["model"], told["decoder_layers"]) == ("tiny", 3)
    assert told["visual_tokens"] == {"unpruned": 36, "pruned": 8}


def test_activations_of_dropped_tokens_take_no_memory(capsys):
    # with many samples, activations outweigh gradients and optimizer: 12 tokens a sample in place of 40
    more = ["--geometry", "tiny", "--layers-slice", "2", "--pruner", "flowcut:budget=8", "--batch", "32"]
    assert main([*QUICK, *more, "--text-tokens", "4", "--warmup", "0", "--repeats", "1"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["memory_ratio"] < 0.75


def test_steps_leave_the_weights_and_need_every_gradient(llava_folder):
    args = build_parser().parse_args([*QUICK, "--model", str(llava_folder), "--pruner", PRUNER])
    bench = TrainingBench(args)
    before = {name: value.clone() for name, value in bench.model.state_dict().items()}
    losses = [float(bench.step()) for _ in range(2)]
    with attach(bench.model, parse_pruner(PRUNER)):
        assert float(bench.step()) != losses[0]
    assert losses[0] == losses[1]
    assert all(torch.equal(value, before[name]) for name, value in bench.model.state_dict().items())
    state = bench.optimizer.state
    trained = [parameter for parameter in bench.model.parameters() if parameter.requires_grad]
    assert all(state[parameter]["step"] == 3 for parameter in trained)
    frozen = {name.split(".")[1] for name, value in bench.model.named_parameters() if not value.requires_grad}
    assert frozen == {"vision_tower"}


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--pruner", "none"), "nothing to compare"),
        (("--pruner", "flowcat:budget=2"), "unknown pruner"),
        (("--repeats", "0"), "--repeats 0: give a whole number of at least 1"),
        (("--model", "/absent"), "/absent is not a folder"),
    ],
)
def test_what_cannot_be_used_is_one_line(capsys, more, reason):
    with pytest.raises(SystemExit) as exit:
        main([*QUICK, *more])
    assert exit.value.code == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1
    assert reason in printed[0]


def test_defaults_are_the_papers(llava_folder):
    args = build_parser().parse_args([])
    assert check(args).budget == 192
    assert (args.stage, args.model) == (2, "playground/embedded")
