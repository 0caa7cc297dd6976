"""The efficiency bench on the tiny model: its numbers recomputed from its raw trials. No time is asserted."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flowcut.cost import encoder_flops, prefill_flops, projector_flops
from llava.eval.efficiency import __main__ as program
from llava.eval.efficiency import trials as trials_module
from llava.eval.efficiency.answer_costs import ModelSizes
from llava.eval.efficiency.power import PowerMeter, check_power
from llava.eval.efficiency.report import Power, Variant, speed_up
from llava.eval.efficiency.trials import Comparison, order_of_trials
from llava.eval.models.llava_checkpoint import load_checkpoint
from llava.eval.questions import read_questions

STAGES = ("encode", "projector", "prefill", "decode", "total", "ttft", "reading", "wall")
PRUNER = "fastervlm:budget=5"


@pytest.fixture
def command(question_folder, llava_folder):
    return [
        *("--model-path", str(llava_folder), "--question-file", str(question_folder / "questions.jsonl")),
        *("--image-folder", str(question_folder / "images"), "--device", "cpu", "--max-new-tokens", "3"),
    ]


def run(command, capsys, *more):
    """-> the report of the last line, and all lines printed."""
    program.main([*command, *more])
    lines = capsys.readouterr().out.splitlines()
    return json.loads(lines[-1]), lines


def test_a_report_follows_from_its_turns(command, capsys, tmp_path, llava_folder):
    out = tmp_path / "new" / "report.json"
    flags = ["--pruner", PRUNER, "--batch", "1", "3", "--attention", "sdpa", "eager", "--questions", "8"]
    printed, lines = run(command, capsys, *flags, "--warm-up", "2", "--price-per-hour", "7.2", "--out", str(out))
    found = json.loads(out.read_text())
    assert [{**row, "raw": None} for row in found["rows"]] == [{**row, "raw": None} for row in printed["rows"]]
    variants = [(row["pruner"], row["batch"], row["attention"]) for row in found["rows"]]
    attention = ("sdpa", "eager")
    assert variants == [(name, size, kind) for name in ("none", PRUNER) for size in (1, 3) for kind in attention]
    assert len(lines) == 1 + 1 + len(variants) + 1
    rows = {variant: row for variant, row in zip(variants, found["rows"], strict=True)}
    sizes = ModelSizes.of(load_checkpoint(str(llava_folder), device="cpu").model)
    for (pruner, batch, kind), row in rows.items():
        raw = {stage: np.array(row["raw"][stage]) for stage in STAGES}
        assert (row["questions"], len(raw["total"])) == {1: (8, 8), 3: (6, 2)}[batch]
        check_sums(raw)
        for stage in STAGES:
            assert row["ms"][stage] == {
                "mean": pytest.approx(raw[stage].mean(), abs=1e-4),
                **{
                    name: pytest.approx(np.quantile(raw[stage], share), abs=1e-4)
                    for name, share in (("p25", 0.25), ("median", 0.5), ("p75", 0.75))
                },
            }
            before = np.array(rows["none", batch, kind]["raw"][stage])
            ratio = np.median(before) / np.median(raw[stage])
            quartiles = np.quantile(before / raw[stage], (0.25, 0.5, 0.75))
            faster = row["speed_up"][stage]
            assert faster["ratio"] == pytest.approx(ratio, abs=1e-4)
            assert [faster["p25"], faster["median"], faster["p75"]] == pytest.approx(quartiles, abs=1e-4)
        assert row["loop_seconds"] == pytest.approx(raw["wall"].sum() * batch / 1000, abs=1e-3)
        assert row["price_per_1000_questions"] == pytest.approx(
            7.2 / 3600 * raw["wall"].mean(), rel=1e-3
        )  # a question of x ms costs as much as 1000 questions of x s
        tokens = 16 if pruner == "none" else 5
        assert (row["tokens"]["llm"], row["tokens"]["encoder_inputs"]) == (tokens, 16)
        gflops = (encoder_flops(sizes.vision, [16]) + projector_flops(tokens, 32, 64)) / 1e9
        # attention is quadratic in the questions' lengths, whose mean is all that the row tells
        text = row["tokens"]["text"]
        assert row["gflops"]["total"] == pytest.approx(
            gflops + prefill_flops(sizes.language, [text + tokens] * 2) / 1e9, rel=0.02, abs=1e-4
        )
        assert row["peak_memory_mb"] > 0
        assert row["answer_tokens"] > 0
    alone, together = (rows["none", size, "eager"]["peak_memory_mb"] for size in (1, 3))
    assert alone < together
    assert rows[PRUNER, 3, "eager"]["peak_memory_mb"] < together
    assert (found["questions"], found["warm_up"], found["dtype"], found["device_type"]) == (8, 2, "float32", "cpu")
    assert found["threads"] == torch.get_num_threads()
    assert {"versions", "hardware", "commit", "command", "date", "data_hash", "model_hash"} <= set(found)


def check_sums(raw):
    assert all((times >= 0).all() for times in raw.values())
    stages = raw["encode"] + raw["projector"] + raw["prefill"]
    assert (stages <= raw["ttft"] + 1e-3).all()
    assert raw["ttft"] + raw["decode"] == pytest.approx(raw["total"], abs=1e-3)
    assert (raw["total"] + raw["reading"] <= raw["wall"] + 1e-3).all()


def test_a_text_alone_has_no_encoding(command, capsys, question_folder):
    lines = [{"question_id": number, "image": None, "text": "how many cats"} for number in range(2)]
    (question_folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, _ = run(command, capsys, "--pruner", PRUNER, "--warm-up", "0")
    for row in found["rows"]:
        assert (row["ms"]["encode"]["mean"], row["ms"]["projector"]["mean"], row["speed_up"]["encode"]) == (0, 0, None)
        assert (row["gflops"]["encoder"], row["tokens"]["llm"], row["tokens"]["encoder_inputs"]) == (0, 0, None)
        assert row["ms"]["prefill"]["median"] > 0
        assert (row["power"], row["price_per_1000_questions"]) == (None, None)


def test_every_way_answers_with_its_own_attention_and_batch(checkpoint, question_folder, monkeypatch):
    """And the model comes back with the attention that it had."""
    questions, _ = read_questions(question_folder / "questions.jsonl")
    variants = [Variant("none", 2, "eager"), Variant("none", 2, "sdpa"), Variant("none", 4, "eager")]
    comparison = Comparison(checkpoint, questions, question_folder / "images", variants, 2)
    model, seen = checkpoint.model, []
    answer = comparison.answerers["none"].answer

    def watched(texts, pictures):
        tower = model.get_vision_tower().vision_tower
        assert tower.config._attn_implementation == model.config._attn_implementation
        seen.append((model.config._attn_implementation, tuple(texts)))
        return answer(texts, pictures)

    monkeypatch.setattr(comparison.answerers["none"], "answer", watched)
    results = comparison.measure(warm_up=3, power=False)
    assert model.config._attn_implementation == "sdpa"
    assert model.get_vision_tower().vision_tower.config._attn_implementation == "sdpa"
    texts = [question.text for question in questions]
    pairs, fours = ([tuple(texts[at : at + size]) for at in range(0, 8, size)] for size in (2, 4))
    warm = [*(("eager", pair) for pair in pairs[:2]), *(("sdpa", pair) for pair in pairs[:2]), ("eager", fours[0])]
    assert seen[:5] == warm
    memory = [("eager", pairs[0]), ("sdpa", pairs[0]), ("eager", fours[0])]
    assert seen[-3:] == memory
    assert sorted(seen[5:-3]) == sorted(
        [*((kind, pair) for kind in ("eager", "sdpa") for pair in pairs), *(("eager", four) for four in fours)]
    )
    assert [len(result.trials) for result in results.values()] == [4, 4, 2]
    eager, sdpa, _ = results.values()
    assert [reply.text for reply in eager.replies] == [reply.text for reply in sdpa.replies]
    assert eager.answer_tokens == [len(checkpoint.tokenizer.tokenize(reply.text)) for reply in eager.replies]


def test_ways_of_a_size_take_turns_and_sizes_advance_together():
    small, large = [Variant(name, 2, "sdpa") for name in "abc"], [Variant("a", 3, "sdpa"), Variant("b", 3, "eager")]
    trials = list(order_of_trials([*small, *large], 7))
    assert [(first, group[0].batch) for first, group in trials] == [(0, 2), (0, 3), (2, 2), (4, 2), (3, 3)]
    groups = [group for _, group in trials if group[0].batch == 2]
    assert [group[0].pruner for group in groups] == ["a", "b", "c"]
    assert all(sorted(group) == sorted(small) for group in groups)
    assert [group[0] for _, group in trials if group[0].batch == 3] == large


def test_speed_up_by_hand():
    assert speed_up([1, 2, 4], [2, 8, 4]) == {"ratio": 2, "p25": 1.5, "median": 2, "p75": 3}
    assert speed_up([0, 0, 4], [0, 0, 4]) is None


def test_power_is_sampled_and_shared_out(checkpoint, question_folder, monkeypatch):
    assert Power(250, 36).row() == {"watts": 250, "joules_per_question": 36, "kwh_per_1000_questions": 0.01}
    with PowerMeter(iter([100_000.0, *[300_000.0] * 10**6]).__next__, interval=0.001) as meter:
        while len(meter.samples) < 4:
            time.sleep(0.001)
    assert meter.watts == pytest.approx((100 + 300 * (len(meter.samples) - 1)) / len(meter.samples))
    questions, _ = read_questions(question_folder / "questions.jsonl")
    variants = [Variant("none", 4, "sdpa")]
    comparison = Comparison(checkpoint, questions, question_folder / "images", variants, 2)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda device: 50_000)
    monkeypatch.setattr(trials_module, "POWER_SECONDS", 5)
    clock = iter(range(10**6))
    monkeypatch.setattr(trials_module, "perf_counter", lambda: next(clock))  # a second each time it is asked
    power = comparison.measure(warm_up=0, power=True)[variants[0]].power
    # begin; the loop's test; in each of two turns three; the test that ends it; the end
    assert (power.watts, power.joules_per_question) == (50, 50 * 9 / 8)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch", "0"], "--batch 0 is invalid; give whole numbers of at least 1"),
        (["--questions", "4", "--batch", "2", "8"], "--questions 4 do not fill a batch of 8; ask at least as many"),
        (["--questions", "0"], "--questions 0 do not fill a batch of 1"),
        (["--batch", "9"], "has 8 questions, not the 9 of a batch; lower --batch"),
        (["--warm-up", "-1"], "--warm-up -1 is invalid"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0 is invalid"),
        (["--price-per-hour", "-2"], "--price-per-hour -2 is not a price; give a number above 0"),
        (["--price-per-hour", "nan"], "--price-per-hour nan is not a price"),
        (["--pruner", "nonsense:budget=4"], "nonsense"),
        (["--out", "."], r"--out \. is a folder; give the file to write"),
        (["--out", "/dev/null/report.json"], "cannot be written"),
        (["--question-file", "/no/such.jsonl"], "does not exist"),
        (["--image-folder", "/no/such"], "the bench needs questions without faults"),
        (["--attention", "flash_attention_2"], "flash_attention_2 needs a CUDA GPU and the package flash-attn"),
    ],
)
def test_bad_input_is_one_line(command, flags, message):
    with pytest.raises(SystemExit, match=message) as stopped:
        program.main([*command, "--pruner", "random:budget=5", *flags])
    assert "\n" not in str(stopped.value)


def test_a_bad_row_is_one_line(command, question_folder):
    with (question_folder / "questions.jsonl").open("a") as file:
        file.write('{"question_id": 9}\n')
    with pytest.raises(SystemExit, match="line 9: has no image and no text; correct it"):
        program.main(command)


def test_flash_attention_is_refused_where_it_cannot_run(monkeypatch):
    cuda, flash = torch.device("cuda"), ["sdpa", "flash_attention_2"]
    monkeypatch.setattr(program, "is_flash_attn_2_available", lambda: False)
    with pytest.raises(ValueError, match=r"pip install 'llava-flowcut\[flash\]'"):
        program.check_attention(flash, cuda, torch.float16)
    program.check_attention(["sdpa", "eager"], cuda, torch.float16)
    monkeypatch.setattr(program, "is_flash_attn_2_available", lambda: True)
    with pytest.raises(ValueError, match="does not take float32; give --dtype"):
        program.check_attention(flash, cuda, torch.float32)
    program.check_attention(flash, cuda, torch.bfloat16)


def test_power_is_refused_or_left_out_where_nothing_tells_it(command, capsys, monkeypatch):
    def draws(error):
        def draw(device):
            raise error

        return draw

    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "power_draw", draws(ModuleNotFoundError("pynvml")))
    with pytest.raises(ValueError, match="pip install nvidia-ml-py"):
        check_power(cuda)
    monkeypatch.setattr(torch.cuda, "power_draw", draws(RuntimeError("not\nsupported")))
    with pytest.raises(ValueError, match=r"does not report its power \(not supported\); leave --power out"):
        check_power(cuda)
    program.main([*command, "--power", "--questions", "1", "--warm-up", "0", "--pruner", PRUNER])
    told = capsys.readouterr()
    assert "power is not measured: a cpu does not report it" in told.err
    assert [row["power"] for row in json.loads(told.out.splitlines()[-1])["rows"]] == [None, None]


def test_too_large_a_batch_is_one_line(checkpoint, question_folder, monkeypatch):
    questions, _ = read_questions(question_folder / "questions.jsonl")
    comparison = Comparison(checkpoint, questions, question_folder / "images", [Variant("none", 8, "sdpa")], 2)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory\nTried to allocate")

    monkeypatch.setattr(comparison, "answerers", {"none": SimpleNamespace(answer=full)})
    with pytest.raises(ValueError, match="none at --batch 8 with --attention sdpa does not fit") as stopped:
        comparison.measure(warm_up=0, power=False)
    assert "\n" not in str(stopped.value)
