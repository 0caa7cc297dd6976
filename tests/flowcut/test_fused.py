"""Scores by torch.compile: the same tokens stay, in one kernel on a CPU; without a compiler one line says so."""

import logging
import shutil
from importlib.util import find_spec

import pytest
import torch

from flowcut import FlowCut, attach
from flowcut.methods import flow_score
from flowcut.pruner.fused import Fused, fused
from flowcut.pruner.padding import Padding
from tests.flowcut.recorded_clip import clip, features, near, recorded

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or find_spec("setuptools") is None,  # torch 2.6 imports the latter to compile
    reason="torch.compile needs a C++ compiler here",
)


@needs_compiler
@pytest.mark.slow
def test_golden_cases_keep_the_same_tokens():
    """Two of the recorded cases; all 12 with and without coupling were compared once, docs/LOG.md, 2026-11-28."""
    for name in ("clip12a_b1_t16", "clip12a_b3_t16"):
        case, gold = recorded(name)
        model, pixels, _ = clip(case)
        pruner = FlowCut(case["target"], batch_coupling="max")
        with torch.no_grad(), attach(model, pruner, signals=True, compile=True) as handle:
            near(features(model, pixels), gold["final.features"])
        assert fused(flow_score.layer_score).compiled is not None
        assert torch.equal(torch.stack(handle.trace.final), gold["final.keep_abs"])
        for layer, kept in handle.trace.kept.items():
            assert torch.equal(torch.stack(kept), gold[f"layer{layer:02d}.keep_abs"])
        near(torch.stack(handle.trace.signals[1]["cumulative"]), gold["layer01.cum_pre"])


@needs_compiler
@pytest.mark.slow
def test_a_layer_is_at_most_four_kernels():
    from torch._inductor.utils import run_and_get_code

    tokens = torch.randn(3, 1, 100, 4, 8).transpose(2, 3)
    arguments = (tokens[0][:, :, 0], tokens[1], 0.5), (tokens[2][:, :, 0], tokens[2], 1.0), tokens[2][:, :, 1:]
    torch._dynamo.reset()
    found, [code] = run_and_get_code(torch.compile(flow_score.layer_score, dynamic=True), *arguments, None, 99, True)
    torch.testing.assert_close(found.score, flow_score.layer_score(*arguments, None, 99, True).score)
    body = code[code.index("def call(") :].splitlines()
    launches = [line for line in body if line.strip().startswith(("cpp_fused", "extern_kernels."))]
    assert 1 <= len(launches) <= 4


def test_layers_rated_together_are_rated_as_each_alone():
    generator = torch.Generator().manual_seed(0)
    layers = []
    for _ in range(3):
        tokens = torch.randn(3, 2, 4, 21, 8, generator=generator)
        attention, semantic = (tokens[0][:, :, 0], tokens[1], 0.5), (tokens[2][:, :, 0], tokens[2], 1.0)
        layers.append((attention, semantic, tokens[2][:, :, 1:]))
    bias = Padding([21, 15], torch.device("cpu")).bias
    looks = flow_score.Looks(3, *layers[0])
    for number, layer in enumerate(layers):
        looks.add(number, *layer, bias)
    together = looks.rate(20, True)
    for number, layer in enumerate(layers):
        alone = flow_score.layer_score(*layer, bias, 20, True)
        for name, values in alone.signals(0, 20).items():
            torch.testing.assert_close(together.signals(number, 20)[name], values)
        torch.testing.assert_close(together.shares[:, number], alone.shares[:, 0])
    assert not together.shares[..., 1, 14:].any()


def test_without_a_compiler_one_line_says_so(caplog):
    def double(x):
        return x * 2

    def fails(graph, inputs):
        raise RuntimeError("no compiler here")

    function = Fused(double)
    function.compiled = torch.compile(double, backend=fails)
    with caplog.at_level(logging.WARNING, "flowcut"):
        assert function(torch.ones(2)).tolist() == function(torch.ones(2)).tolist() == [2, 2]
    [line] = [record.getMessage() for record in caplog.records if record.name.startswith("flowcut")]
    assert line.startswith("compile=True has no effect, because BackendCompilerFailed: ")
    assert "no compiler here" in line


def test_an_error_of_the_function_itself_is_not_taken_for_a_missing_compiler():
    function = Fused(lambda x: x.view(7))
    function.compiled = torch.compile(function.function, backend="eager")
    with pytest.raises(RuntimeError, match="invalid"):
        function(torch.ones(2))
