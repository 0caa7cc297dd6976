"""The OpenAI-compatible server, as people start it: budgets over HTTP, and what is answered to bad ones."""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

pytestmark = pytest.mark.slow
DEADLINE = 400  # seconds until the server must answer, on a busy machine


@pytest.fixture(scope="module")
def address(embedded, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", embedded, "--dtype", "float32"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--hf-overrides", json.dumps({"flowcut": {"budget": 64}})]
    command += ["--enforce-eager", "--max-model-len", "1024", "--block-size", "32", "--max-num-seqs", "4"]
    command += ["--trust-request-mm-kwargs", "--served-model-name", "embedded", "--enable-prompt-tokens-details"]
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"})
    url = f"http://127.0.0.1:{port}"
    try:
        start = time.monotonic()
        while True:
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() - start < DEADLINE, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            except OSError:
                time.sleep(1)
        yield url
    finally:
        server.terminate()
        server.wait(60)


def ask(url, picture, question, **fields):
    """(status, reply) of a chat completion about a picture."""
    png = io.BytesIO()
    picture.save(png, format="PNG")
    shown = {"url": f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"}
    content = [{"type": "image_url", "image_url": shown}, {"type": "text", "text": question}]
    body = {"model": "embedded", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 8}
    body["add_special_tokens"] = True  # LLaVA's chat templates leave the first token, <s>, to the tokenizer
    data = json.dumps({**body, **fields}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_budgets_by_request(address, reference, scenes):
    lengths = {}
    for number, budget in enumerate((None, 576, 32, 0.5)):
        picture, question = scenes[number]
        fields = {} if budget is None else {"mm_processor_kwargs": {"flowcut": {"budget": budget}}}
        status, reply = ask(address, picture, question, **fields)
        assert status == 200, reply
        prompt = reference.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
            add_generation_prompt=True,
        )
        text = len(reference.processor.tokenizer(prompt).input_ids) - 1
        lengths[budget] = reply["usage"]["prompt_tokens"] - text
        expected, _ = reference.answer(prompt, picture, {"budget": 64 if budget is None else budget})
        said = reply["choices"][0]["message"]["content"]
        assert said.strip() == reference.processor.tokenizer.decode(expected).strip()
    assert lengths == {None: 64, 576: 576, 32: 32, 0.5: 288}


@pytest.mark.parametrize("given", [{"budget": 0}, {"budget": "all"}, {"method": "random", "budget": 8}, 64])
def test_a_bad_budget_is_a_400_of_one_line(address, scenes, given):
    status, reply = ask(address, *scenes[0], mm_processor_kwargs={"flowcut": given})
    assert status == 400, reply
    message = reply["error"]["message"]
    assert "budget" in message
    assert "\n" not in message.strip()
