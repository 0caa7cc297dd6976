"""Logs, moderation and the fixed texts."""

import asyncio
import http.server
import io
import json
import logging
import subprocess
import sys
import threading

import pytest

from llava import utils


@pytest.fixture
def root_logger():
    root = logging.getLogger()
    before = list(root.handlers), root.level
    yield root
    for handler in set(root.handlers) - set(before[0]):
        handler.close()
    root.handlers[:], root.level = before[0], before[1]


def test_importing_llava_leaves_the_streams_and_the_log_alone():
    program = (
        "import sys, logging; out, err = sys.stdout, sys.stderr\n"
        "import llava.utils, llava.conversation, llava.serve.turns\n"
        "assert sys.stdout is out and sys.stderr is err and not logging.getLogger().handlers; print('ok')"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "ok\n"


def test_a_log_file_takes_every_loggers_lines_once(tmp_path, root_logger):
    logger = utils.build_logger("worker", "a.log", tmp_path)
    assert utils.build_logger("worker", "a.log", tmp_path) is logger
    logger.info("one")
    logging.getLogger("other").warning("two")
    lines = (tmp_path / "a.log").read_text().splitlines()
    assert [line.split(" | ")[1:] for line in lines] == [["INFO", "worker", "one"], ["WARNING", "other", "two"]]
    assert len(lines[0].split(" | ")[0]) == len("2025-01-31 12:00:00")


def test_a_redirected_stream_loses_nothing_and_does_not_log_its_own_log():
    logger = logging.getLogger("redirected")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    terminal = io.StringIO()
    stream = utils.StreamToLogger(logger, terminal=terminal)
    handler = logging.StreamHandler(stream)  # the worst case: the logger writes to the very stream it stands behind
    logger.addHandler(handler)
    try:
        assert stream.write("one\ntw") == 6
        stream.write("o\n\nthree")
        assert terminal.getvalue() == "one\ntwo\n\n"
        stream.flush()
        assert terminal.getvalue() == "one\ntwo\n\nthree\n"
        assert stream.linebuf == ""
        assert stream.isatty() is False
    finally:
        logger.removeHandler(handler)


@pytest.fixture
def moderator():
    """A service that flags texts with "bad" in them, and breaks on "break"."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.headers["Authorization"], body["input"]))
            self.send_response(500 if "break" in body["input"] else 200)
            self.end_headers()
            self.wfile.write(json.dumps({"results": [{"flagged": "bad" in body["input"]}]}).encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", seen
        server.shutdown()


def test_moderation_asks_the_service(moderator, monkeypatch):
    address, seen = moderator
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    assert utils.violates_moderation("a bad word", address) is True
    assert utils.violates_moderation("a good word", address) is False
    assert seen == [("Bearer key", "a bad word"), ("Bearer key", "a good word")]


def test_what_could_not_be_checked_does_not_pass(moderator, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    with pytest.raises(ValueError, match=r"no result .*500"):
        utils.violates_moderation("break", moderator[0])
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="set OPENAI_API_KEY") as error:
        utils.violates_moderation("good", moderator[0])
    assert "\n" not in str(error.value)


def test_the_fixed_texts_are_llavas():
    assert utils.server_error_msg == ("**NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE.**")
    assert utils.moderation_msg == "YOUR INPUT VIOLATES OUR CONTENT MODERATION GUIDELINES. PLEASE TRY AGAIN."
    assert utils.pretty_print_semaphore(None) == "None"
    assert utils.pretty_print_semaphore(asyncio.Semaphore(2)) == "Semaphore(value=2, locked=False)"
    assert utils.disable_torch_init() is None
