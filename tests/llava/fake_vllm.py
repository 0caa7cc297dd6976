"""An imitation of vLLM's OpenAI server, as far as it is used here: a tiny LLaVA of this process answers."""

import json
from dataclasses import replace

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from flowcut.registry import parse_pruner, pruner_from_config, pruner_to_text
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.models.llava_checkpoint import load_checkpoint
from llava.given import decode_base64
from llava.pictures import decode_image
from llava.serve.engine import ChatPrompt, Engine

UNTRUSTED = "Chat template is passed with request, but --trust-request-chat-template is not set."


def engine_like_vllm(folder):
    """An engine for a checkpoint in transformers' layout that crops pictures to a square, as its processor does."""
    checkpoint = load_checkpoint(folder, device="cpu", default_mode="llava_v1")
    checkpoint.model.config.image_aspect_ratio = "square"
    return Engine(checkpoint)


def refused(message, status=400):
    return JSONResponse({"error": {"message": message, "type": "BadRequestError", "code": status}}, status)


def fake_vllm(engine, model, pruner="flowcut:budget=4", *, trusts=True, details=True, plug_in=True):
    """The application. `state.asked` has the bodies of all questions, `state.refuse` errors for texts in a prompt.

    pruner: the server's. trusts: the two flags --trust-request-... are set. details: --enable-prompt-tokens-details is.
    plug_in: llava-flowcut-vllm is installed.
    """
    app = FastAPI()
    app.state.asked, app.state.refuse, app.state.busy, app.state.most = [], {}, 0, 0

    @app.get("/v1/models")
    def models():
        return {"data": [{"id": "served", "root": model}]}

    @app.get("/version")
    def version():
        return {"version": "0.32.0"}

    @app.post("/v1/chat/completions")
    async def completions(request: Request):
        body = await request.json()
        app.state.asked.append(body)
        [message] = body["messages"]
        text = message["content"][-1]["text"]
        for part, (status, said) in app.state.refuse.items():
            if part in text:
                return refused(said, status)
        if not trusts:
            return refused(UNTRUSTED)
        shown = [part["image_url"]["url"].partition(",")[2] for part in message["content"][:-1]]
        prompt = text if "chat_template" in body else f"{DEFAULT_IMAGE_TOKEN}\n" * len(shown) + text
        used = parse_pruner(pruner) if plug_in else None
        given = body.get("mm_processor_kwargs", {}).get("flowcut")
        if used is not None and given is not None:
            used = replace(used, budget=given["budget"])
            if "method" in given and pruner_from_config(given) != used:
                return refused(f"this server prunes with {pruner}, and a request may change the budget alone")
        question = ChatPrompt(
            prompt,
            [decode_image(decode_base64(one)) for one in shown],
            body["temperature"],
            max_new_tokens=body["max_tokens"],
            stop=tuple(body.get("stop") or ()),
            pruner=pruner_to_text(used),
        )
        app.state.busy += 1
        app.state.most = max(app.state.most, app.state.busy)
        progress = await run_in_threadpool(engine.answer, question)
        app.state.busy -= 1
        figures = progress.figures
        usage = {
            "prompt_tokens": figures.visual_tokens + figures.text_tokens,
            "completion_tokens": figures.new_tokens,
            "prompt_tokens_details": {"multimodal_tokens": {"image": figures.visual_tokens} if shown else None},
        }
        if not details:
            del usage["prompt_tokens_details"]
        if not body.get("stream"):
            choice = {"message": {"role": "assistant", "content": progress.text}, "finish_reason": figures.finish}
            return {"model": "served", "choices": [choice], "usage": usage}
        half = len(progress.text) // 2
        events = [
            {"choices": [{"delta": {"role": "assistant", "content": progress.text[:half]}}]},
            {"choices": [{"delta": {"content": progress.text[half:]}, "finish_reason": figures.finish}]},
            {"choices": [], "usage": usage},
        ]
        lines = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]
        return StreamingResponse(iter(lines), media_type="text/event-stream")

    return app
