"""Messages on the wire."""

import base64
import json
from pathlib import Path

import pytest
import torch

from llava.serve import protocol
from llava.serve.protocol import NoWorkerError, WorkerLostError, decode, decode_images, encode, failure

MESSAGES = [{"text": "né 中", "error_code": 0}, {"text": "a\n\0b", "error_code": 0}, {"figures": {"encoder": [1, 2]}}]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_stream_may_be_cut_anywhere(size):
    data = b"".join(map(encode, MESSAGES))
    assert data.count(b"\0") == len(MESSAGES)
    assert list(decode(data[at : at + size] for at in range(0, len(data), size))) == MESSAGES


def test_llavas_clients_can_read_it():
    """As they do it: split at the zero byte, then parse."""
    data = b"".join(map(encode, MESSAGES))
    assert [json.loads(part.decode()) for part in data.split(b"\0") if part] == MESSAGES


def test_a_stream_that_breaks_off_is_noticed():
    with pytest.raises(WorkerLostError, match="in the middle"):
        list(decode([encode(MESSAGES[0]), b'{"text": "hal']))


@pytest.mark.parametrize(
    ("error", "code", "kind", "text"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to"), 1, "out_of_memory", "OutOfMemoryError: CUDA out of"),
        (ValueError("budget=0"), 1, "bad_request", "ValueError: budget=0"),
        (RuntimeError("shape\n  mismatch"), 1, "exception", "RuntimeError: shape mismatch"),
        (KeyError("a"), 1, "exception", "KeyError: 'a'"),
        (NoWorkerError("nobody"), 2, "no_worker", "NoWorkerError: nobody"),
        (TimeoutError("600 s"), 3, "timeout", "TimeoutError: 600 s"),
        (WorkerLostError("gone"), 3, "worker_lost", "WorkerLostError: gone"),
        (RuntimeError(), 1, "exception", "RuntimeError: no further message"),
    ],
)
def test_a_failure_tells_its_true_class_and_message_in_one_line(error, code, kind, text):
    document = failure(error)
    assert document["text"].startswith(text)
    assert "\n" not in document["text"]
    assert (document["error_code"], document["error"]["kind"]) == (code, kind)
    assert document["error"]["type"] == type(error).__name__


def test_pictures_are_checked_one_by_one(pictures, as_base64):
    good = as_base64(pictures[0])
    assert decode_images([good], 10**6, 10**6)[0].size == pictures[0].size
    for bad, said in {
        "not base64!": "image 2: not base64",
        base64.b64encode(b"no picture").decode(): "image 2: 10 bytes hold no picture",
        good[: len(good) // 2 // 4 * 4]: "image 2: ",
    }.items():
        with pytest.raises(ValueError, match=said) as error:
            decode_images([good, bad], 10**6, 10**6)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="image 1: larger than 100 bytes"):
        decode_images([good], 100, 10**6)
    with pytest.raises(ValueError, match="image 1: 56 x 40 pixels are more than 2000"):
        decode_images([good], 10**6, 2000)


def test_nothing_in_serving_reads_pickles():
    modules = list(Path(protocol.__file__).parent.glob("*.py"))
    assert len(modules) > 15
    assert not [module.name for module in modules if "pickle" in module.read_text()]
