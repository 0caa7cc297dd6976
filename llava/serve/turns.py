"""Prompts for the turns of a chat."""

from __future__ import annotations

from collections.abc import Sequence

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, SeparatorStyle


def prompt_of(template: Conversation, turns: Sequence[tuple[str, str | None]], images: int = 0) -> str:
    """The prompt of (question, answer) turns, the last answer None; all images come before the first question."""
    conversation = template.copy()
    for number, (question, answer) in enumerate(turns):
        shown = (DEFAULT_IMAGE_TOKEN + "\n") * images if number == 0 else ""
        conversation.append_message(conversation.roles[0], shown + question.replace(DEFAULT_IMAGE_TOKEN, ""))
        conversation.append_message(conversation.roles[1], answer)
    return conversation.get_prompt()


def stop_of(template: Conversation) -> str:
    """The text that ends an answer."""
    two = template.sep_style in (SeparatorStyle.TWO, SeparatorStyle.LLAMA_2)
    return str(template.sep2 if two else template.sep)
