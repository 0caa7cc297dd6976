"""The Jinja templates against LLaVA's own rendering, for every template and length of conversation."""

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llava.chat_template import chat_template
from llava.conversation import conv_templates

SAID = ["<image>\nhow many cats?", "two cats", "their colour?", "grey"]


@pytest.mark.parametrize("turns", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", sorted(set(conv_templates) - {"plain", "v0_plain"}))
def test_same_prompt(mode, turns):
    conversation = conv_templates[mode].copy()
    messages = []
    for index, text in enumerate(SAID[:turns]):
        conversation.append_message(conversation.roles[index % 2], text)
        messages.append({"role": ("user", "assistant")[index % 2], "content": text})
    if turns % 2:
        conversation.append_message(conversation.roles[1], None)
    # As transformers renders them.
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(chat_template(mode))
    rendered = template.render(messages=messages, add_generation_prompt=turns % 2 == 1)
    assert rendered == conversation.get_prompt()


def test_pictures_come_first():
    parts = [{"type": "text", "text": "alike?"}, {"type": "image"}, {"type": "image"}]
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(chat_template("v1"))
    rendered = template.render(messages=[{"role": "user", "content": parts}], add_generation_prompt=True)
    assert rendered.endswith(" USER: <image>\n<image>\nalike? ASSISTANT:")
