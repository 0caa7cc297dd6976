"""The page's log files: LLaVA's log of chats and votes, and the pictures."""

from __future__ import annotations

import datetime
import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from llava.conversation import Conversation
from llava.given import home_path

_lock = threading.Lock()


class ChatLog:
    """Appends lines to `<folder>/YYYY-MM-DD-conv.json`; pictures go to `<folder>/serve_images/<date>/<md5>.jpg`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = home_path(folder)

    def chat(
        self,
        conversation: Conversation,
        model: str,
        ip: str,
        times: tuple[float, float],
        images: Sequence[Image.Image],
        **more: Any,
    ) -> None:
        """An answered question. times: when it was asked and when it was answered, in seconds since 1970."""
        start, finish = times
        hashes = [self._keep(image) for image in images]
        line = {"tstamp": round(finish, 4), "type": "chat", "model": model}
        line |= {"start": round(start, 4), "finish": round(finish, 4)}
        self._write(line | {"state": conversation.dict(), "images": hashes, "ip": ip, **more})

    def vote(self, kind: str, conversation: Conversation, model: str, ip: str) -> None:
        """kind: upvote, downvote or flag."""
        now = round(datetime.datetime.now().timestamp(), 4)
        self._write({"tstamp": now, "type": kind, "model": model, "state": conversation.dict(), "ip": ip})

    def _keep(self, image: Image.Image) -> str:
        name = hashlib.md5(image.tobytes(), usedforsecurity=False).hexdigest()
        path = self.folder / "serve_images" / str(datetime.date.today()) / f"{name}.jpg"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        return name

    def _write(self, line: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with _lock, (self.folder / f"{datetime.date.today()}-conv.json").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
