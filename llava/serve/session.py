"""One chat of a visitor: turns, picture, and what an answer cost. It does not depend on the page."""

from __future__ import annotations

import base64
import hashlib
import io
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from llava.conversation import Conversation
from llava.serve.client import ControllerClient, status_of, stream, template_of
from llava.serve.limits import read_upload
from llava.serve.protocol import NoWorkerError, failure
from llava.serve.turns import stop_of

LONGEST_TEXT = 1536  # characters; LLaVA's
LONGEST_TEXT_WITH_IMAGE = 1200
UNANSWERED = "(stopped)"
ROUNDS = 5  # in which the first token is timed


@dataclass(frozen=True)
class Wish:
    """The visitor's settings: model, sampling, and pruning.

    settings: further ones of the method, as in "keep=32,layer=2". timed: also measure the time to the first token.
    """

    model: str
    temperature: float = 0.2
    top_p: float = 0.7
    max_new_tokens: int = 512
    method: str = "none"
    budget: int = 64
    process_mode: str = "Default"
    settings: str = ""
    timed: bool = False

    @property
    def pruner(self) -> str:
        if self.method == "none":
            return "none"
        settings = ",".join(filter(None, (part.strip() for part in self.settings.split(","))))
        return f"{self.method}:budget={int(self.budget)}" + (f",{settings}" if settings else "")

    def untimed(self) -> Wish:
        return replace(self, timed=False)


@dataclass
class Session:
    """The turns so far. `conversation` is None before the first question; `path` is its picture."""

    conversation: Conversation | None = None
    model: str = ""
    path: str | None = None
    digest: str = ""
    figures: dict[str, Any] | None = None
    kept: dict[str, Any] | None = None
    note: str = ""
    asked: float = 0.0

    @property
    def turns(self) -> int:
        """How many questions were asked."""
        if self.conversation is None:
            return 0
        return (len(self.conversation.messages) - self.conversation.offset) // 2

    def last_turn(self) -> tuple[str, str]:
        """The last question and its answer, as shown."""
        shown = self.shown()
        return (shown[-2]["content"], shown[-1]["content"]) if shown else ("", "")

    def add(self, text: str, path: str | None, wish: Wish, controller: ControllerClient) -> None:
        """A new question. A new picture, or another model, begins a new conversation.

        Raises ValueError, one line, for an empty question, a picture that cannot be read, and a missing one where the
        model needs it; NoWorkerError without a worker.
        """
        text = text.strip()
        if not text:
            raise ValueError("there is no question; write one")
        picture = read_upload(path) if path else None
        digest = hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest() if path else ""
        if self.conversation is None or digest != self.digest or wish.model != self.model:
            status = status_of(controller.worker(wish.model))
            if status.needs_picture and not path:
                raise ValueError("this model answers questions about pictures only; upload one, or choose an example")
            template = template_of(status, wish.model)
            self.conversation, self.model, self.path, self.digest = template.copy(), wish.model, path, digest
        conversation = self.conversation
        self.close()
        message: Any = text[: LONGEST_TEXT_WITH_IMAGE if path else LONGEST_TEXT].replace("<image>", "")
        if path and len(conversation.messages) == conversation.offset:
            message = (message, picture, wish.process_mode)
        conversation.append_message(conversation.roles[0], message)
        conversation.append_message(conversation.roles[1], None)

    def reopen(self) -> bool:
        """Remove the last answer, to generate it again; False if there is none."""
        if self.conversation is None or not self.turns:
            return False
        self.conversation.messages[-1][1] = None
        return True

    def close(self) -> None:
        """Mark a question that was stopped before it had an answer; templates need one."""
        if self.conversation is not None and self.conversation.messages and self.conversation.messages[-1][1] is None:
            self.conversation.messages[-1][1] = UNANSWERED

    def answer(self, wish: Wish, controller: ControllerClient, against: str | None = None) -> Iterator[str]:
        """The growing answer to the last question, or finally one line about a failure.

        against: the pruner that the first token's time is compared with, if the wish is to be timed.

        Afterwards `figures` and `kept` describe the answer. The conversation is updated all the time, so that a
        stopped answer stays.
        """
        conversation = self.conversation
        assert conversation is not None
        self.figures = self.kept = None
        self.note = ""
        self.asked = time.time()
        prompt = conversation.get_prompt()
        try:
            worker = controller.worker(wish.model)
            request = self._request(prompt, wish, against)
        except (ValueError, NoWorkerError) as error:
            yield self._failed(failure(error))
            return
        with closing(stream(worker, request)) as documents:  # type: ignore[type-var]
            for document in documents:
                if document["error_code"]:
                    yield self._failed(document)
                    return
                text = document["text"][len(prompt) :].strip()
                conversation.messages[-1][1] = text or None
                self.figures, self.kept = document.get("figures"), document.get("kept")
                yield text
        self.close()
        if self.figures is None and wish.method != "none":  # LLaVA's own worker knows no pruners
            self.note = f"This worker ignored {wish.method}: it reports no figures, so the answer is not pruned."

    def images(self) -> list[Image.Image]:
        return [] if self.conversation is None else self.conversation.get_images(return_pil=True)

    def shown(self) -> list[Any]:
        """The turns in the format of gradio's chat window."""
        if self.conversation is None:
            return []
        shown: list[Any] = []
        for number, (_, message) in enumerate(self.conversation.messages[self.conversation.offset :]):
            text = message[0] if isinstance(message, tuple) else message
            shown.append({"role": "assistant" if number % 2 else "user", "content": text or "…"})
        return shown

    def _request(self, prompt: str, wish: Wish, against: str | None) -> dict[str, Any]:
        assert self.conversation is not None
        return {
            "model": wish.model,
            "prompt": prompt,
            "temperature": float(wish.temperature),
            "top_p": float(wish.top_p),
            "max_new_tokens": int(wish.max_new_tokens),
            "stop": stop_of(self.conversation),
            "images": [_base64(image) for image in self.images()],
            "pruner": wish.pruner,
            "trace": True,
            "rounds": ROUNDS if wish.timed else 0,
            "against": against,
        }

    def _failed(self, document: dict[str, Any]) -> str:
        assert self.conversation is not None
        self.note = document["text"]
        text = f"**{document['text']}** (error code: {document['error_code']})"
        self.conversation.messages[-1][1] = text
        return text


def _base64(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
