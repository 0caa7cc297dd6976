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
from conftest import prompt_about

from llava.eval import model_vqa_loader
from llava.eval.models.llava_checkpoint import load_checkpoint
from llava.serve.client import stream
from llava.serve.engine import ChatPrompt, Engine
from llava.serve.server import LocalServer
from llava.serve.vllm_worker import build_parser as worker_parser
from llava.serve.vllm_worker import worker_of

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
    command += ["--trust-request-chat-template"]
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


@pytest.fixture(scope="module")
def questions(scenes, tmp_path_factory):
    """A question file with pictures, some of them no squares."""
    folder = tmp_path_factory.mktemp("questions")
    rows = []
    for number, (picture, question) in enumerate(scenes[:6]):
        shape = (336, 336) if number % 3 else (336, 200)
        picture.crop((0, 0, *shape)).save(folder / f"{number}.png")
        rows.append({"question_id": number, "image": f"{number}.png", "text": question})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def answered(folder, model, name, pruner, *more):
    """The answers of `model_vqa_loader` to the question file."""
    flags = ["--model-path", model, "--question-file", str(folder / "questions.jsonl"), "--image-folder", str(folder)]
    flags += ["--answers-file", str(folder / name), "--temperature", "0", "--max_new_tokens", "8", "--pruner", pruner]
    model_vqa_loader.main([*flags, "--conv-mode", "v1", *more])
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.parametrize(("pruner", "tokens"), [("flowcut:budget=32", 32), ("none", 576), ("flowcut:budget=0.25", 144)])
def test_evaluation_through_the_server_gives_the_answers_of_the_loaded_model(
    address, embedded, questions, pruner, tokens
):
    local = answered(questions, embedded, f"local-{tokens}.jsonl", pruner, "--device", "cpu")
    through = ("--backend", "vllm", "--server", address, "--in-flight", "4")
    served = answered(questions, embedded, f"served-{tokens}.jsonl", pruner, *through)
    assert [line["text"] for line in served] == [line["text"] for line in local]
    assert [line["question_id"] for line in served] == list(range(6))
    for one, two in zip(served, local, strict=True):
        assert one["metadata"]["visual_tokens"] == two["metadata"]["visual_tokens"] == tokens
        assert one["metadata"]["text_tokens"] == two["metadata"]["text_tokens"]


def test_evaluation_with_another_method_than_the_server_s_is_one_line(address, embedded, questions):
    through = ("--backend", "vllm", "--server", address)
    with pytest.raises(SystemExit, match=r"refused a question: .*this server prunes with flowcut:budget=64") as error:
        answered(questions, embedded, "none.jsonl", "divprune:budget=32", *through)
    assert "\n" not in str(error.value)


def test_the_page_s_worker_in_front_of_the_server(address, embedded, scenes):
    engine = Engine(load_checkpoint(embedded, device="cpu"))
    flags = ["--server", address, "--no-register", "--pruner", "flowcut:budget=64"]
    with LocalServer(worker_of(worker_parser().parse_args(flags)).build_app()) as worker:
        for (picture, question), pruner in zip(scenes[:3], ("flowcut:budget=32", None, "none"), strict=True):
            prompt = prompt_about(question)
            png = io.BytesIO()
            picture.save(png, format="PNG")
            asked = {"prompt": prompt, "images": [base64.b64encode(png.getvalue()).decode()], "temperature": 0}
            *_, last = stream(worker.url, {**asked, "pruner": pruner, "max_new_tokens": 8, "stop": "</s>"})
            expected = engine.answer(
                ChatPrompt(prompt, [picture], 0.0, max_new_tokens=8, pruner=pruner or "flowcut:budget=64")
            )
            assert last["error_code"] == 0, last
            assert last["text"].removeprefix(prompt).strip() == expected.text.strip()
            for name in ("visual_tokens", "text_tokens", "pruner"):
                assert last["figures"][name] == getattr(expected.figures, name)
        *_, last = stream(worker.url, {**asked, "pruner": "flowcut:budget=0"})
        assert "budget=0 is not a whole number" in last["text"]


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
