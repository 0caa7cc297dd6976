"""LLaVA's prompt templates as Jinja chat templates, for transformers' `apply_chat_template`."""

from __future__ import annotations

import json

from llava.conversation import Conversation, SeparatorStyle, conv_templates

# Pictures first, each with its newline, as LLaVA's prompts have them; then the text.
_CONTENT = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
)


def chat_template(mode: str) -> str:
    """A Jinja template that renders messages as `conv_templates[mode]` does.

    Messages are {"role": "user" or "assistant", "content": text, or a list of image and text parts}. The template's
    system text is always included; with `add_generation_prompt` the prompt ends where the answer begins.
    """
    conversation = conv_templates[mode]
    before, user, assistant, opening = _parts(conversation)
    return (
        f"{before}{{% for message in messages %}}{{% if message['role'] == 'user' %}}{user}{{% else %}}{assistant}"
        f"{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}{opening}{{% endif %}}"
    )


def _parts(conversation: Conversation) -> tuple[str, str, str, str]:
    """The text before all turns, a user's turn, an assistant's turn, and the beginning of an answer."""
    style, sep, sep2 = conversation.sep_style, conversation.sep, conversation.sep2 or ""
    asker, answerer = conversation.roles
    if style is SeparatorStyle.LLAMA_2:
        system = f"<<SYS>>\n{conversation.system}\n<</SYS>>\n\n" if conversation.system else ""
        later = f"{{% if not loop.first %}}{_said(sep)}{{% endif %}}" if sep else ""
        first = f"{{% if loop.first %}}{_said(system)}{{% endif %}}" if system else ""
        user = f"{later}{_said('[INST] ')}{first}{_CONTENT}{_said(' [/INST]')}"
        return "", user, f"{_said(' ')}{_CONTENT}{_said(f' {sep2}')}", ""
    if style is SeparatorStyle.PLAIN:
        return "", f"{_CONTENT}{_said(sep)}", f"{_CONTENT}{_said(sep2)}", ""
    second = sep2 if style is SeparatorStyle.TWO else sep
    colon, space = ("", "") if style is SeparatorStyle.MPT else (":", " ")
    before = _said(conversation.system + sep)
    for role, message in conversation.messages:  # worked examples that belong to the template
        before += _said(f"{role}{colon}{space}{message}{sep if role == asker else second}")
    return (
        before,
        f"{_said(asker + colon + space)}{_CONTENT}{_said(sep)}",
        f"{_said(answerer + colon + space)}{_CONTENT}{_said(second)}",
        _said(answerer + colon),
    )


def _said(text: str) -> str:
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""
