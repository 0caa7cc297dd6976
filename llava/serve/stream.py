"""Decoding of tokens to text while they are generated."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

_BYTE = re.compile("<0x[0-9A-F]{2}>")


class TokenStream:
    """Passes on the whole text so far after every `interval` new tokens.

    The whole text is decoded each time, so that the final text equals the decoding of all tokens; transformers' own
    streamer decodes line by line and loses a space at the start of each line. It never passes on an incomplete
    character, or a possible beginning of a stop text. Special tokens are left out.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], interval: int, tell: Callable[[str], Any]) -> None:
        self.tokenizer = tokenizer
        self.stop = [text for text in stop if text]
        self.interval = max(interval, 1)
        self.tell = tell
        self.ids: list[int] = []
        self.text = ""
        self.stopped = False

    def update(self, ids: list[int]) -> None:
        """ids: all tokens so far, one more than in the last call."""
        self.ids = ids
        due = len(ids) % self.interval == 0
        if due or self.stop:
            self._decode(final=False)
        if due:
            self.tell(self.text)

    def end(self, ids: list[int]) -> None:
        """All tokens."""
        self.ids = ids
        self._decode(final=True)

    def finish(self, limit: int) -> str:
        """Why the answer ended: "stop" (a stop text or the model's own end) or "length"."""
        return "length" if len(self.ids) >= limit and not self.stopped and not self._ended() else "stop"

    def _open_bytes(self) -> int:
        """How many tokens at the end are single bytes. LLaMA's tokenizer decodes a run of them as a whole, so a later
        invalid byte makes earlier valid characters unreadable.
        """
        count = 0
        while count < len(self.ids) and _BYTE.fullmatch(self.tokenizer.convert_ids_to_tokens(self.ids[-1 - count])):
            count += 1
        return count

    def _ended(self) -> bool:
        return bool(self.ids) and self.ids[-1] == self.tokenizer.eos_token_id

    def _decode(self, final: bool) -> None:
        ids = self.ids if final else self.ids[: len(self.ids) - self._open_bytes()]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        found = [text.index(stop) for stop in self.stop if stop in text]
        if found:
            self.text, self.stopped = text[: min(found)], True
        elif final:
            self.text = text
        else:
            self.text = text[: max(_settled(text, self.stop), len(self.text))]


def _settled(text: str, stops: Sequence[str]) -> int:
    """The length of the text that cannot change any more: without an incomplete character or the beginning of a stop
    text."""
    end = len(text.rstrip("�"))
    for stop in stops:
        for length in range(min(len(stop) - 1, end), 0, -1):
            if text[:end].endswith(stop[:length]):
                end -= length
                break
    return end
