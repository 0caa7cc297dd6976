"""Asking one judge: what is tried again, what is waited for, what is given up. All servers are local."""

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from llava.eval.judge.client import (
    Client,
    Endpoint,
    Pace,
    Stopped,
    Unanswered,
    announced_wait,
    duration,
    reply_of,
)
from tests.llava.eval.judge.fake_judge import Response, error, serving

BODY = {"model": "asked", "messages": [{"role": "user", "content": "hello"}]}


def ask(judge, **options):
    with Client(Endpoint(judge.url, **{"pause": 0.01, **options})) as client:
        return client.ask(BODY)


def scripted(*responses):
    return lambda body, number: responses[min(number, len(responses) - 1)]


def test_a_reply_and_what_was_sent():
    with serving(scripted("0.5")) as judge:
        reply = ask(judge, key="secret")
    assert (reply.text, reply.model) == ("0.5", "fake-judge-2026")
    assert datetime.fromisoformat(reply.date) - datetime.now(UTC) < timedelta(seconds=5)
    assert judge.bodies == [BODY]
    assert judge.authorizations == ["Bearer secret"]


def test_without_a_key_none_is_sent():
    with serving(scripted("1")) as judge:
        ask(judge)
    assert judge.authorizations == [None]


@pytest.mark.parametrize(
    "passing",
    [
        Response(status=500, raw="<html>oops</html>"),
        Response(status=503, raw=error("overloaded")),
        Response(status=429, raw=error("slow down", "rate_limit_exceeded")),
        Response(status=408),
        Response(raw="no JSON {"),
        Response(raw='{"choices": []}'),
        Response(raw='["a list"]'),
        Response(raw='{"choices": [{"message": {"content": [1]}}]}'),
        Response("late", delay=0.6),
    ],
)
def test_what_may_pass_is_tried_again(passing):
    with serving(scripted(passing, passing, "fine")) as judge:
        assert ask(judge, timeout=0.3).text == "fine"
    assert len(judge) == 3


def test_tries_come_to_an_end_and_the_reason_is_told():
    burning = Response(status=500, raw=error("the machine\nburns"))
    complaint = pytest.raises(Unanswered, match=r"said 500: the machine burns \(3 tries\)")
    with serving(scripted(burning)) as judge, complaint:
        ask(judge, retries=2)
    assert len(judge) == 3


def test_nobody_there():
    with (
        pytest.raises(Unanswered, match="ConnectError"),
        Client(Endpoint("http://127.0.0.1:9/v1", retries=0)) as client,
    ):
        client.ask(BODY)


@pytest.mark.parametrize(
    ("status", "code"), [(401, "invalid_api_key"), (403, None), (404, "model_not_found"), (429, "insufficient_quota")]
)
def test_what_holds_for_every_request_ends_the_run_at_once(status, code):
    refusal = Response(status=status, raw=error("no use for key secret", code))
    with serving(scripted(refusal)) as judge, pytest.raises(ValueError, match="--judge-key-env") as caught:
        ask(judge, key="secret")
    assert len(judge) == 1
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refused_request_is_not_repeated():
    refused = Response(status=400, raw='{"detail": "too long"}')
    with serving(scripted(refused)) as judge, pytest.raises(Unanswered, match=r"400: .*too long"):
        ask(judge)
    assert len(judge) == 1


def test_a_null_content_is_an_empty_reply():
    with serving(scripted(Response(None))) as judge:
        assert ask(judge).text == ""


def test_retry_after_is_waited_for():
    wait = Response(status=429, headers={"Retry-After": "0.4"})
    with serving(scripted(wait, "fine")) as judge:
        assert ask(judge).text == "fine"
    assert 0.39 < judge.times[1] - judge.times[0] < 3


def test_a_wait_holds_for_all_threads():
    wait = Response(status=429, headers={"Retry-After": "0.5"})
    with serving(scripted(wait, "fine")) as judge, Client(Endpoint(judge.url, pause=0.01)) as client:
        first = threading.Thread(target=client.ask, args=(BODY,))
        first.start()
        while client.pace.left <= 0:
            time.sleep(0.005)
        client.ask(BODY)
        first.join()
    assert min(judge.times[1:]) - judge.times[0] > 0.45


def test_a_spent_budget_is_waited_for_although_the_reply_was_good():
    spent = Response("one", headers={"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "300ms"})
    with serving(scripted(spent, "two")) as judge, Client(Endpoint(judge.url)) as client:
        assert [client.ask(BODY).text, client.ask(BODY).text] == ["one", "two"]
    assert judge.times[1] - judge.times[0] > 0.29


def test_a_server_that_wants_hours_is_not_waited_for():
    patient = Response(status=429, headers={"Retry-After": "7200"})
    with serving(scripted(patient)) as judge, pytest.raises(Unanswered, match="asks to wait 7200 s"):
        ask(judge)


def test_stop_wakes_up_what_waits():
    with serving(scripted(Response(status=500))) as judge, Client(Endpoint(judge.url, pause=50)) as client:
        caught = []

        def run():
            try:
                client.ask(BODY)
            except Stopped as error:
                caught.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        while not len(judge):
            time.sleep(0.005)
        client.stop()
        thread.join(5)
        assert len(caught) == 1
        assert len(judge) == 1


def test_a_stopped_pace_lets_nobody_through():
    pace = Pace()
    pace.wait()
    pace.stopping.set()
    with pytest.raises(Stopped):
        pace.wait()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12ms", 0.012),
        ("1.5s", 1.5),
        ("6m0s", 360),
        ("1h2m3s", 3723),
        ("20", 20),
        ("", 0),
        ("soon", 0),
        ("1s later", 0),
    ],
)
def test_duration(text, seconds):
    assert duration(text) == pytest.approx(seconds)


def test_announced_wait():
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert announced_wait({"retry-after": moment}, 503) == pytest.approx(30, abs=2)
    assert announced_wait({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 503) == 0
    assert announced_wait({"retry-after": "later"}, 503) == 0
    assert announced_wait({"retry-after": "3", "retry-after-ms": "1500"}, 429) == 3
    assert announced_wait({"retry-after": "3"}, 200) == 0
    used = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "2s", "x-ratelimit-reset-requests": "9s"}
    assert announced_wait(used, 200) == 2


@pytest.mark.parametrize("address", ["", "api.openai.com/v1", "ftp://x/v1", "http://"])
def test_bad_addresses(address):
    with pytest.raises(ValueError, match="address, like https://"):
        Endpoint(address)


def test_addresses():
    assert Endpoint("http://host:1/v1/").url == "http://host:1/v1/chat/completions"
    assert Endpoint("http://host/v1/chat/completions").url == "http://host/v1/chat/completions"
    assert Endpoint("https://me:password@host:8443/v1").host == "host:8443"


def test_a_completion_is_dated_by_its_server():
    answer = {"choices": [{"message": {"content": "x"}}], "created": 86400}
    assert reply_of(answer, "asked") == ("x", "asked", "1970-01-02T00:00:00+00:00")
