"""A running vLLM server with OpenAI's protocol: which model it serves, and the body of a question to it.

Questions are chat completions. Two flags of the server let a client say what LLaVA's prompts and pruners need:
`--trust-request-chat-template` (a whole prompt, instead of the checkpoint's own template) and
`--trust-request-mm-kwargs` (a budget). `--enable-prompt-tokens-details` makes it tell how many visual tokens a prompt
had, by which a client sees that its budget was heeded.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

from flowcut.pruner import Pruner
from flowcut.registry import pruner_to_config, pruner_to_text
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.given import one_line
from llava.mm_utils import get_model_name_from_path
from llava.model.remembered_pruner import FIELD

QUICK = 10.0  # seconds of a request about the server itself
FLAGS = "--trust-request-mm-kwargs --trust-request-chat-template --enable-prompt-tokens-details"
_WHOLE_PROMPT = "{{ messages[0]['content'] }}"
_ALL = 10**6  # a budget beyond any picture's tokens, which keeps all of them
_SIDE = 112  # pixels of the picture that a server is tried with


class Usage(NamedTuple):
    """What a server says about a prompt and its answer, in tokens."""

    visual: int
    text: int
    new: int


@dataclass(frozen=True)
class Served:
    """A model at an address.

    url: of the server, without /v1. model: the name by which requests ask for it. root: the folder or Hub name that the
    server has it from. version: vLLM's.
    """

    url: str
    model: str
    root: str = ""
    version: str = ""

    def body(self, prompt: str | None, content: Sequence[Any], pruner: Pruner | None, **fields: Any) -> dict[str, Any]:
        """A request.

        prompt: the whole one, with `<image>` where the pictures in `content` are; None uses the server's template.
        content: text and pictures (RGB) of the user's turn. fields: `max_tokens`, `temperature` and the like.
        """
        parts = [{"type": "text", "text": one} if isinstance(one, str) else _picture(one) for one in content]
        whole: dict[str, Any] = {}
        if prompt is not None:
            parts = [part for part in parts if part["type"] != "text"] + [{"type": "text", "text": prompt}]
            whole = {"chat_template": _WHOLE_PROMPT}
        wanted = {"budget": _ALL} if pruner is None else pruner_to_config(pruner)
        pictures = any(part["type"] == "image_url" for part in parts)
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": parts}],
            "add_special_tokens": True,  # as transformers' processors do
            "repetition_penalty": 1.0,  # a checkpoint's own would change greedy answers
            **({"mm_processor_kwargs": {FIELD: wanted}} if pictures else {}),
            **whole,
            **fields,
        }


def find_served(url: str, model_path: str | None) -> Served:
    """The model of a checkpoint's folder or Hub name at a server; None takes the only one.

    Raises ValueError, one line, when no server answers there, or when it serves another model.
    """
    url = url.rstrip("/").removesuffix("/v1")
    cards = _get(f"{url}/v1/models").get("data")
    if not isinstance(cards, list) or not all(isinstance(card, dict) and "id" in card for card in cards):
        raise ValueError(f"{url} lists no models; give the address of a vLLM server, such as http://localhost:8000")
    version = str(_get(f"{url}/version").get("version", ""))
    found = [Served(url, str(card["id"]), str(card.get("root") or card["id"]), version) for card in cards]
    names = ", ".join(one.model for one in found)
    if model_path is None:
        if len(found) != 1:
            raise ValueError(f"{url} serves {names}; name one of them")
        return found[0]
    wanted = get_model_name_from_path(model_path)
    for one in found:
        known = {one.model, one.root}
        if model_path in known or wanted in map(get_model_name_from_path, known):
            return one
    raise ValueError(f"{url} serves {names}, not {model_path}; give its checkpoint, or start vLLM with that")


def try_served(served: Served, pruner: Pruner | None, whole_prompts: bool) -> int:
    """Ask a server about a picture of one colour, as it will be asked. Returns the number of its unpruned tokens.

    Raises ValueError, one line, when the server refuses such requests, does not prune, or prunes otherwise.
    """
    prompt = DEFAULT_IMAGE_TOKEN if whole_prompts else None
    picture = Image.new("RGB", (_SIDE, _SIDE), (120, 120, 120))
    counts = []
    for one in (None, pruner):
        document = _post(served, served.body(prompt, [picture, "?"], one, max_tokens=1, temperature=0))
        counts.append(usage_of(document))
    whole, kept = counts
    if whole_prompts and whole.text > 2:  # the tokenizer's own first token, and perhaps a prefix
        raise ValueError(f"{served.model} does not take {DEFAULT_IMAGE_TOKEN} in a prompt, so it is not a LLaVA model")
    expected = whole.visual if pruner is None else min(pruner.tokens_of(whole.visual), whole.visual)
    if kept.visual == whole.visual > expected:
        raise ValueError(
            f"{served.url} does not prune: it read all {kept.visual} tokens with {pruner_to_text(pruner)}; install "
            f"llava-flowcut-vllm into its environment, and start it with --hf-overrides"
        )
    return whole.visual


def usage_of(document: Mapping[str, Any]) -> Usage:
    """The numbers of tokens in a response or in a stream's last event. Raises ValueError, one line, without them."""
    usage = document.get("usage") or {}
    details = (usage.get("prompt_tokens_details") or {}).get("multimodal_tokens", {})
    if "prompt_tokens" not in usage or not usage.get("prompt_tokens_details"):
        raise ValueError("the server does not report the visual tokens of a prompt; start it with " + FLAGS)
    visual = (details or {}).get("image", 0)
    return Usage(visual, usage["prompt_tokens"] - visual, usage.get("completion_tokens") or 0)


def error_of(text: str) -> str:
    """The message of an error's body, in one line; a flag that the server lacks is named with the others."""
    try:
        said = json.loads(text)
        said = said.get("error", said) if isinstance(said, dict) else said
        message = said.get("message", said) if isinstance(said, dict) else said
    except ValueError:
        message = text
    line = " ".join(str(message).split())
    return f"{line} Start vLLM with {FLAGS}" if "--trust-request" in line else line


def _picture(image: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    shown = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{shown}"}}


def _get(url: str) -> dict[str, Any]:
    return _ask("GET", url, None, QUICK)


def _post(served: Served, body: dict[str, Any]) -> dict[str, Any]:
    return _ask("POST", f"{served.url}/v1/chat/completions", body, 10 * QUICK)


def _ask(method: str, url: str, body: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
    import httpx

    try:
        answer = httpx.request(method, url, json=body, timeout=seconds, trust_env=False)
        if answer.status_code == 400:
            raise ValueError(f"{url} refused a question: {error_of(answer.text)}")
        document = answer.raise_for_status().json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ValueError(f"no valid answer from {url} ({one_line(error)}); is vLLM's server running there?") from error
    if not isinstance(document, dict):
        raise ValueError(f"no valid answer from {url}; is vLLM's server running there?")
    return document
