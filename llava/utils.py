"""Helpers that LLaVA's programs expect here: logs, moderation, fixed texts. Importing this has no side effects."""

from __future__ import annotations

import asyncio
import json
import logging
import logging.handlers
import os
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any, TextIO

from llava.constants import LOGDIR
from llava.given import home_path

server_error_msg = "**NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE.**"
moderation_msg = "YOUR INPUT VIOLATES OUR CONTENT MODERATION GUIDELINES. PLEASE TRY AGAIN."
MODERATION_ENDPOINT = "https://api.openai.com/v1/moderations"


def build_logger(
    logger_name: str, logger_filename: str | None = None, folder: str | Path | None = LOGDIR
) -> logging.Logger:
    """A logger at INFO that writes to stderr and, given a file's name and a folder, to a new file each day (UTC).

    The file gets the messages of all loggers. Unlike LLaVA's function this one does not redirect stdout and stderr; to
    log them too, use `StreamToLogger`.
    """
    layout = logging.Formatter("%(asctime)s | %(levelname)s | %(name)s | %(message)s", "%Y-%m-%d %H:%M:%S")
    root = logging.getLogger()
    if not root.handlers:
        logging.basicConfig(level=logging.INFO)
    for handler in root.handlers:
        handler.setFormatter(layout)
    logger = logging.getLogger(logger_name)
    logger.setLevel(logging.INFO)
    if logger_filename is not None and folder is not None:
        path = home_path(folder) / logger_filename
        path.parent.mkdir(parents=True, exist_ok=True)
        if str(path.absolute()) not in {getattr(handler, "baseFilename", None) for handler in root.handlers}:
            daily = logging.handlers.TimedRotatingFileHandler(path, when="D", utc=True, encoding="utf-8")
            daily.setFormatter(layout)
            root.addHandler(daily)
    return logger


class StreamToLogger:
    """A text stream that passes each line to a logger: `sys.stdout = StreamToLogger(logger)`.

    terminal: the replaced stream, whose other attributes (encoding, isatty, ...) it has. Output of the logger's own
    handlers goes to the terminal, otherwise it would be logged again endlessly. An unfinished line is kept until its
    end, or until `flush`.
    """

    def __init__(self, logger: logging.Logger, log_level: int = logging.INFO, terminal: TextIO | None = None) -> None:
        self.terminal: Any = terminal or sys.__stdout__
        self.logger = logger
        self.log_level = log_level
        self.linebuf = ""
        self._lock = threading.RLock()
        self._inside = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)

    def write(self, text: str) -> int:
        if getattr(self._inside, "busy", False):
            return self.terminal.write(text)
        with self._lock:
            *lines, self.linebuf = (self.linebuf + text).split("\n")
            for line in lines:
                self._log(line)
        return len(text)

    def flush(self) -> None:
        with self._lock:
            rest, self.linebuf = self.linebuf, ""
            if rest and not getattr(self._inside, "busy", False):
                self._log(rest)
            elif rest:
                self.linebuf = rest
        if self.terminal is not None:
            self.terminal.flush()

    def _log(self, line: str) -> None:
        self._inside.busy = True
        try:
            self.logger.log(self.log_level, line.rstrip())
        finally:
            self._inside.busy = False


def disable_torch_init() -> None:
    """Kept for LLaVA's callers and does nothing: transformers 5 skips the random initialisation while loading."""


def moderation_key() -> str:
    """The key of OpenAI's moderation service, from OPENAI_API_KEY. Raises ValueError, one line, without one."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key:
        raise ValueError("moderation uses OpenAI's server and needs a key; set OPENAI_API_KEY, or leave out --moderate")
    return key


def violates_moderation(text: str, endpoint: str = MODERATION_ENDPOINT, seconds: float = 10.0) -> bool:
    """Whether OpenAI's moderation service flags a text. The key comes from OPENAI_API_KEY.

    Raises ValueError, one line, without a key, or when the service does not answer, because the text is then unchecked.
    """
    request = urllib.request.Request(
        endpoint,
        data=json.dumps({"input": text}).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {moderation_key()}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:
            return bool(json.load(response)["results"][0]["flagged"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"the moderation service gave no result ({type(error).__name__}: {error})") from error


def pretty_print_semaphore(semaphore: asyncio.Semaphore | None) -> str:
    """For logs: how many more can acquire it."""
    if semaphore is None:
        return "None"
    return f"Semaphore(value={semaphore._value}, locked={semaphore.locked()})"
