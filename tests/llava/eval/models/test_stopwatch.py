"""Stages of an answer, by clocks that the parts themselves move, and by fake CUDA events. No real time is asserted."""

from contextlib import ExitStack, contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from llava.eval.models import stopwatch
from llava.eval.models.llava_answerer import LlavaAnswerer
from llava.eval.models.reply import Generation
from llava.eval.models.stopwatch import CudaClock, Stopwatch, WallClock

TOWER, PROJECTOR, PASS = 100, 7, 10  # milliseconds that each takes
TEXT = "what is in this image"


def picture(height: int = 70) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height).integers(0, 255, (height, 56, 3), dtype=np.uint8))


class Moved:
    """Time that only passes inside the parts of a model; `passes` counts those of the language model."""

    def __init__(self) -> None:
        self.now, self.passes = 0, 0

    @contextmanager
    def by(self, model):
        def moves(milliseconds):
            def hook(*_):
                self.now += milliseconds
                self.passes += milliseconds == PASS

            return hook

        tower = model.get_vision_tower().vision_tower.embeddings  # runs once for all tiles
        parts = ((tower, TOWER), (model.get_model().mm_projector[0], PROJECTOR), (model.model.layers[0], PASS))
        with ExitStack() as stack:
            for part, milliseconds in parts:
                handle = part.register_forward_hook(moves(milliseconds))
                stack.callback(handle.remove)
            yield self


@pytest.fixture
def moved(monkeypatch):
    clock = Moved()
    monkeypatch.setattr(stopwatch, "perf_counter", lambda: clock.now / 1000)
    return clock


@pytest.fixture(scope="module")
def tiled(checkpoint, make_tiny_llava):
    """Pictures in tiles of their own number, with row ends."""
    return checkpoint._replace(
        model=make_tiny_llava(
            image_aspect_ratio="anyres", image_grid_pinpoints=[[112, 56], [112, 112]], mm_patch_merge_type="spatial"
        )
    )


@pytest.mark.parametrize("pruner", ["none", "fastervlm:budget=5"])
@pytest.mark.parametrize("tiles", [False, True])
def test_stages_are_the_times_of_the_parts(checkpoint, tiled, moved, pruner, tiles):
    chosen = tiled if tiles else checkpoint
    answerer = LlavaAnswerer(chosen, pruner, Generation(max_new_tokens=4))
    with moved.by(chosen.model):
        replies = answerer([TEXT, "two"], [[picture()], [picture(30)]])
    assert moved.passes > 1, "there is something to decode"
    for reply in replies:
        assert reply.encode_ms == pytest.approx((TOWER + PROJECTOR) / 2)
        assert reply.projector_ms == pytest.approx(PROJECTOR / 2)
        assert reply.prefill_ms == pytest.approx(PASS / 2)
        assert reply.decode_ms == pytest.approx(PASS * (moved.passes - 1) / 2)
        assert reply.ms == pytest.approx((TOWER + PROJECTOR + PASS * moved.passes) / 2)
        assert {"projector_ms", "decode_ms"} <= set(reply.metadata())


def test_a_question_without_a_picture_takes_no_encoding(checkpoint, moved):
    with moved.by(checkpoint.model):
        [reply] = LlavaAnswerer(checkpoint, generation=Generation(max_new_tokens=3))([TEXT], [[]])
    assert (reply.encode_ms, reply.projector_ms, reply.visual_tokens) == (0, 0, 0)
    assert reply.prefill_ms == pytest.approx(PASS)
    assert reply.ms == pytest.approx(PASS * moved.passes)


def generate(checkpoint, watch=None, count=1):
    """Ids of an answer about `count` pictures; timed if there is a watch."""
    answerer = LlavaAnswerer(checkpoint)
    shown = [checkpoint.picture(picture(40 + number)) for number in range(count)]
    ids, mask = answerer._ids([answerer.prompt(TEXT, count)])
    with torch.inference_mode(), ExitStack() as stack:
        if watch is not None:
            stack.enter_context(watch).start()
        output = checkpoint.model.generate(
            ids,
            images=checkpoint.batch(shown) if shown else None,
            image_sizes=[one.size for one in shown],
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=4,
        )
        total = watch.stop() if watch is not None else None
    return output, total


class Logged(WallClock):
    """A clock of one millisecond a mark, that tells who asked."""

    def __init__(self, names) -> None:
        self.names, self.now = names, 0

    def mark(self):
        self.now += 1
        self.names.append("mark")
        return self.now


@pytest.mark.parametrize("count", [1, 2])
def test_marks_come_in_the_order_of_the_stages(tiled, count):
    names: list[str] = []
    watch = Stopwatch(tiled.model)
    watch.clock = Logged(names)
    parts = {"tower": tiled.model.get_vision_tower().vision_tower, "language": tiled.model.model}
    handles = [part.register_forward_hook(lambda *_, name=name: names.append(name)) for name, part in parts.items()]
    _, total = generate(tiled, watch, count)
    for handle in handles:
        handle.remove()
    later = names.count("language") - 1
    projector = ["mark", "mark"]
    assert names == ["mark", "tower", *projector, "mark", "language", "mark", *["language"] * later, "mark"]
    assert (watch.encode_ms, watch.projector_ms, watch.prefill_ms) == (2, 1, 1)
    assert (watch.ttft_ms, watch.decode_ms, total) == (4, 1, 5)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_watch_changes_nothing_and_goes_off_again(checkpoint, count):
    model = checkpoint.model
    plain, _ = generate(checkpoint, count=count)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    watch = Stopwatch(model)
    timed, total = generate(checkpoint, watch, count)
    assert torch.equal(plain, timed)
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert 0 <= watch.projector_ms <= watch.encode_ms <= watch.encode_ms + watch.prefill_ms <= watch.ttft_ms
    assert watch.ttft_ms + watch.decode_ms == pytest.approx(total)
    assert watch.visual_tokens == [16 * count]


class Device:
    """A stream whose work takes its time only when it is waited for: events know theirs at the synchronisation."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.recorded = 0

    def event(self, enable_timing):
        assert enable_timing
        return Event(self)

    def synchronize(self, device):
        assert device == torch.device("cuda:1")
        self.calls.append("synchronize")

    def current_stream(self, device):
        assert device == torch.device("cuda:1"), "the stream of the model's device, whatever the current one is"
        return "its stream"


class Event:
    def __init__(self, device) -> None:
        self.device, self.place = device, None

    def record(self, stream):
        assert stream == "its stream"
        assert self.place is None
        self.place = self.device.recorded = self.device.recorded + 1
        self.device.calls.append("record")

    def elapsed_time(self, end):
        assert self.device.calls[-1] == "synchronize", "events are not to be read before they took place"
        return float(2**end.place - 2**self.place)  # no two intervals alike


def test_on_cuda_events_are_recorded_and_waited_for_once(checkpoint, monkeypatch):
    device = Device()
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    monkeypatch.setattr(torch.cuda, "synchronize", device.synchronize)
    monkeypatch.setattr(torch.cuda, "current_stream", device.current_stream)
    monkeypatch.setattr(stopwatch, "clock_of", lambda _: CudaClock(torch.device("cuda:1")))
    plain, _ = generate(checkpoint)
    timed, total = generate(checkpoint, watch := Stopwatch(checkpoint.model))
    assert device.calls == ["synchronize", *["record"] * 6, "synchronize"]
    # begin 1, projector 2 to 3, prefill 4 to 5, end 6
    assert (watch.encode_ms, watch.projector_ms, watch.prefill_ms) == (8 - 2, 8 - 4, 32 - 16)
    assert (watch.ttft_ms, watch.decode_ms, total) == (32 - 2, 64 - 32, 64 - 2)
    assert torch.equal(plain, timed)


def test_the_clock_is_the_devices():
    assert isinstance(stopwatch.clock_of(torch.device("cuda:1")), CudaClock)
    assert isinstance(stopwatch.clock_of(torch.device("cpu")), WallClock)
    clock = WallClock()
    moments = [clock.mark() for _ in range(3)]
    assert all(clock.between(before, after) >= 0 for before, after in pairwise(moments))
