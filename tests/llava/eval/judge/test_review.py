"""Judging all answers: replies kept and found again, failures counted, files instead of a server."""

import argparse
import json
import signal
import subprocess
import sys
import time

import pytest

from llava.eval.judge import review
from llava.eval.judge.client import Endpoint
from llava.eval.judge.protocol import Ask, JudgeProtocol, load_prompts
from llava.eval.judge.replies import read_replies
from llava.eval.judge.review import JudgesFailed, apply
from llava.eval.judge.settings import JudgeSettings, add_arguments, settings_of
from llava.eval.sample import Sample
from tests.llava.eval.data_tree import write_answers
from tests.llava.eval.data_tree_judged import make_judged_tree
from tests.llava.eval.judge.fake_judge import Response, error, serving


def messages(sample, texts, attempt):
    return [{"role": "user", "content": f"{texts['ask']} {sample.text} #{attempt}"}]


PROTOCOL = JudgeProtocol(
    version="test-1",
    model="published-judge",
    prompts={"ask": "Grade:", "other": "unused"},
    messages=messages,
    parse=lambda reply: float(reply) if reply.replace(".", "").isdecimal() else None,
    temperature=lambda attempt: attempt / 10,
    max_tokens=3,
    attempts=3,
)


def samples(count=4, texts=None):
    texts = texts or [f"answer {number}" for number in range(count)]
    return [Sample(number, (str(number),), "truth", text=text) for number, text in enumerate(texts)]


def settings(server, **options):
    return JudgeSettings(endpoint=Endpoint(server.url, pause=0.01, retries=options.pop("retries", 2)), **options)


def values(judged):
    return [[verdict.value for verdict in sample.verdicts] for sample in judged.samples]


def graded(body, number):
    """The number in the answer, as tenths."""
    return f"0.{body['messages'][0]['content'].split()[2]}"


def test_verdicts_and_the_record(tmp_path):
    with serving(graded) as server:
        judged = apply(PROTOCOL, samples(4), settings(server, model="mine"), tmp_path / "a.judge.jsonl")
    assert values(judged) == [[0.0], [0.1], [0.2], [0.3]]
    host = server.url.removeprefix("http://").removesuffix("/v1")
    assert judged.labels == [
        f"judge mine at {host}, published with published-judge, prompt {load_prompts(PROTOCOL).version}"
    ]
    record = judged.record
    assert record["first_reply"] <= record["last_reply"]
    expected = {
        "model": "mine",
        "answered_as": ["fake-judge-2026"],
        "host": host,
        "temperature": 0.1,
        "max_tokens": 3,
        "runs": 1,
        "verdicts": 4,
        "failed": 0,
        "from_journal": 0,
    }
    assert {name: record[name] for name in expected} == expected
    sent = server.bodies[0]
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("mine", 0.1, 3)


def test_replies_are_kept_with_who_gave_them_and_never_asked_for_twice(tmp_path):
    journal = tmp_path / "a.judge.jsonl"
    with serving(graded) as server:
        first = apply(PROTOCOL, samples(4), settings(server), journal)
        again = apply(PROTOCOL, samples(4), settings(server), journal)
        assert len(server) == 4
        assert values(again) == values(first)
        assert again.record["from_journal"] == 4
        changed = samples(texts=["answer 0", "answer 9", "answer 2", "answer 3"])
        assert values(apply(PROTOCOL, changed, settings(server), journal)) == [[0.0], [0.9], [0.2], [0.3]]
        assert len(server) == 5
        apply(PROTOCOL, samples(4), settings(server, model="another"), journal)
        assert len(server) == 9
        apply(PROTOCOL, samples(4), settings(server, body={"seed": 1}), journal)
        assert len(server) == 13
    row = json.loads(journal.read_text().splitlines()[0])
    assert row["prompt"] == load_prompts(PROTOCOL).version
    assert row["asked_model"] == "published-judge"
    assert {"host", "temperature", "date", "model", "question_id", "reply", "run", "attempt"} <= set(row)


def test_replies_of_another_host_do_not_count(tmp_path):
    with serving(lambda body, number: "0.1") as one, serving(lambda body, number: "0.2") as other:
        assert values(apply(PROTOCOL, samples(1), settings(one), tmp_path / "j")) == [[0.1]]
        assert values(apply(PROTOCOL, samples(1), settings(other), tmp_path / "j")) == [[0.2]]
        assert values(apply(PROTOCOL, samples(1), settings(one), tmp_path / "j")) == [[0.1]]
        assert len(one) == len(other) == 1


def test_several_runs_ask_several_times(tmp_path):
    with serving(lambda body, number: f"0.{number}") as server:
        judged = apply(PROTOCOL, samples(2), settings(server, runs=3, workers=1), tmp_path / "j")
        assert values(judged) == [[0.0, 0.2, 0.4], [0.1, 0.3, 0.5]]
        apply(PROTOCOL, samples(2), settings(server, runs=4), tmp_path / "j")
        assert len(server) == 8


def test_an_unreadable_reply_is_asked_again_another_way(tmp_path):
    replies = ["well", "hm", "0.7"]
    with serving(lambda body, number: replies[number]) as server:
        assert values(apply(PROTOCOL, samples(1), settings(server), tmp_path / "j")) == [[0.7]]
        assert server.users() == ["Grade: answer 0 #1", "Grade: answer 0 #2", "Grade: answer 0 #3"]
        assert [body["temperature"] for body in server.bodies] == [0.1, 0.2, 0.3]
        apply(PROTOCOL, samples(1), settings(server), tmp_path / "j")
        assert len(server) == 3


def test_garbage_for_ever_ends(tmp_path):
    with serving(lambda body, number: "garbage") as server:
        with pytest.raises(
            JudgesFailed, match=r"1 of 1 verdicts failed \(first: question 0: unreadable reply 'garbage'"
        ):
            apply(PROTOCOL, samples(1), settings(server), tmp_path / "j")
        assert len(server) == 3
        judged = apply(PROTOCOL, samples(1), settings(server, failures=1.0), tmp_path / "j")
    assert values(judged) == [[None]]
    assert judged.labels[1] == "1 of 1 verdicts failed"


def one_bad(body, number):
    return Response(status=400, raw=error("no")) if "answer 1" in body["messages"][0]["content"] else "0.5"


def test_failures_up_to_the_threshold_are_missing_and_told(tmp_path):
    with serving(one_bad) as server:
        judged = apply(PROTOCOL, samples(4), settings(server, failures=0.25), tmp_path / "j")
        assert values(judged) == [[0.5], [None], [0.5], [0.5]]
        assert judged.labels[1] == "1 of 4 verdicts failed"
        assert "said 400: no" in judged.samples[1].verdicts[0].problem
        with pytest.raises(JudgesFailed, match=r"question 1: .*400: no\), more than --max-judge-failures 0.24 allows"):
            apply(PROTOCOL, samples(4), settings(server, failures=0.24), tmp_path / "j")


def test_a_dead_judge_is_not_asked_about_everything(tmp_path):
    with serving(lambda body, number: Response(status=400)) as server:
        with pytest.raises(JudgesFailed):
            apply(PROTOCOL, samples(200), settings(server, workers=2), tmp_path / "j")
        assert len(server) < 20


def test_a_refused_key_stops_everything_at_once(tmp_path):
    with serving(lambda body, number: Response(status=401, raw=error("bad key"))) as server:
        with pytest.raises(ValueError, match="said 401: bad key"):
            apply(PROTOCOL, samples(50), settings(server, workers=2, failures=1.0), tmp_path / "j")
        assert len(server) < 10


def test_workers_in_a_pause_do_not_hold_up_the_end(tmp_path):
    def bad(body, number):
        return Response(status=400 if "answer 0" in body["messages"][0]["content"] else 503, delay=0.05)

    with serving(bad) as server:
        patient = JudgeSettings(endpoint=Endpoint(server.url, pause=60))
        began = time.monotonic()
        with pytest.raises(JudgesFailed, match="question 0"):
            apply(PROTOCOL, samples(4), patient, tmp_path / "j")
    assert time.monotonic() - began < 50  # one pause takes 60


def test_what_failed_is_asked_for_again_and_nothing_else(tmp_path):
    broken = True
    with serving(lambda body, number: Response(status=503) if broken and number >= 2 else "0.5") as server:
        with pytest.raises(JudgesFailed):
            apply(PROTOCOL, samples(4), settings(server, workers=1, retries=0), tmp_path / "j")
        asked, broken = len(server), False
        assert values(apply(PROTOCOL, samples(4), settings(server), tmp_path / "j")) == [[0.5]] * 4
        assert sorted(server.users()[asked:]) == ["Grade: answer 2 #1", "Grade: answer 3 #1"]


def test_requests_run_at_once_but_not_more_than_allowed(tmp_path):
    with serving(lambda body, number: Response("0.5", delay=0.1)) as server:
        apply(PROTOCOL, samples(12), settings(server, workers=4), tmp_path / "j")
    assert server.most_at_once == 4


def test_unanswered_questions_and_those_without_truth_are_not_judged(tmp_path):
    some = [*samples(1), Sample(7, ("7",), "truth"), Sample(8, ("8",), None, text="said")]
    with serving(graded) as server:
        assert values(apply(PROTOCOL, some, settings(server), tmp_path / "j")) == [[0.0], [], []]
        assert len(server) == 1


def test_a_killed_run_goes_on(tmp_path):
    make_judged_tree(tmp_path, ("mmvet",))
    rows = [{"question_id": number, "text": "?"} for number in range(4)]
    answers = write_answers(tmp_path / "answers.jsonl", rows, lambda row: "green")
    journal = tmp_path / "answers.judge.jsonl"
    stuck = [4]  # the number of answers after which none comes
    with serving(lambda body, number: Response("0.5", delay=60 if number >= stuck[0] else 0)) as server:
        command = [sys.executable, "-m", "llava.eval.score", "mmvet", "--data", str(tmp_path)]
        command += ["--answers-file", str(answers), "--judge-base-url", server.url, "--judge-workers", "1"]
        command += ["--judge-runs", "2"]
        killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and (not journal.exists() or journal.read_text().count("\n") < 3):
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        stuck[0] = 100
        done = journal.read_text().count("\n")
        assert 3 <= done < 5
        with journal.open("a") as file:
            file.write('{"key": "half a li')
        before = len(server)
        finished = subprocess.run(command, capture_output=True, text=True, check=True)
        last = json.loads(finished.stdout.splitlines()[-1])
        assert len(server) - before == 8 - done
    keys = [json.loads(line)["key"] for line in journal.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 8
    assert last["main"] == 50.0
    assert last["judge"]["from_journal"] == done


def test_a_damaged_journal_is_told(tmp_path):
    (tmp_path / "j").write_text('{"host": "x"}\n{"host": "127.0.0.1:9", "key": "k"}\n')
    with pytest.raises(ValueError, match="line 2 has no 'reply'; remove the line"):
        apply(PROTOCOL, samples(1), JudgeSettings(endpoint=Endpoint("http://127.0.0.1:9/v1")), tmp_path / "j")


def batch_output(requests, text, **more):
    """What OpenAI's batches make of a request file."""
    rows = []
    for line in requests.read_text().splitlines():
        row = json.loads(line)
        assert row["method"] == "POST"
        body = {"model": "batch-model", "created": 0, "choices": [{"message": {"content": text(row["body"])}}]}
        rows.append({"custom_id": row["custom_id"], "response": {"status_code": 200, "body": body}, "error": None})
    out = requests.with_name(f"out_{requests.name}")
    out.write_text("".join(json.dumps({**row, **more}) + "\n" for row in rows))
    return out


def test_requests_to_a_file_and_replies_from_files(tmp_path):
    wanted = tmp_path / "requests.jsonl"
    judged = apply(PROTOCOL, samples(3), JudgeSettings(requests=wanted, runs=2), tmp_path / "j")
    assert values(judged) == [[], [], []]
    assert judged.labels == [f"not judged: 6 requests written to {wanted}"]
    assert not (tmp_path / "j").exists()
    first = batch_output(wanted, lambda body: "hm" if "answer 1" in str(body["messages"]) else "0.5")

    more = tmp_path / "more.jsonl"
    judged = apply(PROTOCOL, samples(3), JudgeSettings(requests=more, replies=(first,), runs=2), tmp_path / "j")
    assert judged.labels == [f"not judged: 2 requests written to {more}"]
    assert [json.loads(line)["body"]["messages"][0]["content"] for line in more.read_text().splitlines()] == [
        "Grade: answer 1 #2"
    ] * 2
    second = batch_output(more, lambda body: "0.25")

    judged = apply(PROTOCOL, samples(3), JudgeSettings(replies=(first, second), runs=2), tmp_path / "j")
    assert values(judged) == [[0.5, 0.5], [0.25, 0.25], [0.5, 0.5]]
    assert (judged.record["host"], judged.record["answered_as"]) == ("files", ["batch-model"])


def test_files_and_a_server_ask_the_same(tmp_path):
    wanted = tmp_path / "requests.jsonl"
    apply(PROTOCOL, samples(3), JudgeSettings(requests=wanted), tmp_path / "j")
    with serving(graded) as server:
        apply(PROTOCOL, samples(3), settings(server, workers=1), tmp_path / "j")
    assert [json.loads(line)["body"] for line in wanted.read_text().splitlines()] == server.bodies


def test_replies_that_are_missing_or_failed_are_failures(tmp_path):
    wanted = tmp_path / "requests.jsonl"
    apply(PROTOCOL, samples(2), JudgeSettings(requests=wanted), tmp_path / "j")
    failed = batch_output(wanted, lambda body: "0.5", response=None, error={"code": "batch_expired"})
    with pytest.raises(JudgesFailed, match=r"2 of 2 verdicts failed .*no reply in the files.*--judge-requests"):
        apply(PROTOCOL, samples(2), JudgeSettings(replies=(failed,)), tmp_path / "j")


def test_plain_reply_lines(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text('{"custom_id": "a", "reply": "0.5"}\n\n{"custom_id": "a", "reply": "0.6", "model": "human"}\n')
    assert {key: (reply.text, reply.model) for key, reply in read_replies([file]).items()} == {"a": ("0.6", "human")}


@pytest.mark.parametrize("line", ['{"reply": "x"}', '{"custom_id": 3, "reply": "x"}', '{"custom_id": "a"}', "[]"])
def test_lines_that_are_no_replies(tmp_path, line):
    file = tmp_path / "r.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"r\.jsonl"):
        read_replies([file])


def test_keys_tell_requests_apart():
    ask = Ask(1, 0, 1, {"model": "m", "temperature": 0})
    assert ask.key == Ask(1, 0, 1, {"temperature": 0, "model": "m"}).key
    others = [Ask("1", *ask[1:]), ask._replace(run=1), ask._replace(attempt=2), ask._replace(body={"model": "m"})]
    assert len({ask.key, *(other.key for other in others)}) == 5


def test_another_wording(tmp_path):
    own = load_prompts(PROTOCOL)
    text, some, rules = tmp_path / "p.txt", tmp_path / "p.json", tmp_path / "rule.json"
    text.write_text("Mark:")
    some.write_text('{"other": "more"}')
    rules.write_text('{"ask": {"role": "Assistant", "prompt": "Rate:"}, "coding": {"prompt": "not ours"}}')
    loaded = [load_prompts(PROTOCOL, file) for file in (text, some, rules)]
    assert [prompts.texts for prompts in loaded] == [
        {"ask": "Mark:", "other": "unused"},
        {"ask": "Grade:", "other": "more"},
        {"ask": "Rate:", "other": "unused"},
    ]
    assert len({prompts.version for prompts in (own, *loaded)}) == 4
    assert loaded[0].version.startswith("p.txt ")


@pytest.mark.parametrize("content", ['{"typo": "x"}', '{"ask": 3}', "[1]", '{"coding": {"prompt": "x"}}', "{"])
def test_bad_wordings(tmp_path, content):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(ValueError, match=r"p\.json"):
        load_prompts(PROTOCOL, tmp_path / "p.json")
    with pytest.raises(ValueError, match="does not exist"):
        load_prompts(PROTOCOL, tmp_path / "none.txt")


def test_fields_of_the_body_can_be_changed_and_taken_out(tmp_path):
    with serving(graded) as server:
        changes = {"max_tokens": None, "max_completion_tokens": 50, "temperature": 1}
        judged = apply(PROTOCOL, samples(1), settings(server, body=changes), tmp_path / "j")
    assert set(server.bodies[0]) == {"model", "messages", "max_completion_tokens", "temperature"}
    assert (judged.record["temperature"], judged.record["max_tokens"]) == (1, None)
    assert judged.record["body"] == changes


def flags(*given):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return settings_of(parser.parse_args(given))


def test_flags(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    given = flags("--judge-base-url", "http://x/v1", "--judge-model", "m", "--judge-key-env", "MY_KEY")
    assert (given.endpoint.key, given.model, given.runs) == ("secret", "m", 1)
    assert flags("--judge-base-url", "http://x/v1").endpoint.key is None
    assert not flags().judges


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (("--judge-model", "m"), "but no judge; give --judge-base-url"),
        (("--judge-base-url", "http://x", "--judge-requests", "f"), "give either"),
        (("--judge-base-url", "http://x", "--judge-runs", "0"), "at least 1"),
        (("--judge-base-url", "http://x", "--max-judge-failures", "2"), "from 0 to 1"),
        (("--judge-base-url", "x"), "not an http"),
    ],
)
def test_flags_that_do_not_go_together(given, complaint):
    with pytest.raises(ValueError, match=complaint):
        flags(*given)


@pytest.mark.parametrize(("body", "said"), [("{", "is not JSON"), ("[1]", "is not a JSON"), ("3", "is not a JSON")])
def test_a_body_that_is_no_object(body, said, capsys):
    with pytest.raises(SystemExit):
        flags("--judge-body", body)
    assert said in capsys.readouterr().err


def test_without_a_judge(tmp_path):
    judged = apply(PROTOCOL, samples(2), JudgeSettings(), tmp_path / "j")
    assert (values(judged), judged.record) == ([[], []], {})
    assert judged.labels == [f"not judged: {review.HOW}"]
    with pytest.raises(ValueError, match="scored without a judge"):
        apply(None, samples(2), JudgeSettings(requests=tmp_path / "r"), tmp_path / "j")
    assert apply(None, samples(2), JudgeSettings(), tmp_path / "j").labels == []
