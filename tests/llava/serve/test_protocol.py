"""Messages on the wire."""

import json
from pathlib import Path

import pytest
import torch

from llava.serve import protocol
from llava.serve.protocol import NoWorkerError, WorkerLostError, decode, encode, failure

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


@pytest.mark.parametrize("document", [b"{half", b"[1]", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_document_is_a_lost_worker(document):
    with pytest.raises(WorkerLostError, match="not a JSON object"):
        list(decode([document + b"\0"]))


def test_a_document_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(protocol, "LARGEST_DOCUMENT", 100)
    with pytest.raises(WorkerLostError, match="larger than"):
        list(decode([b"a" * 60, b"a" * 60]))


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


def test_nothing_in_serving_reads_pickles():
    modules = list(Path(protocol.__file__).parent.glob("*.py"))
    assert len(modules) > 15
    assert not [module.name for module in modules if "pickle" in module.read_text()]
