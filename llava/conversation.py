"""Prompt templates: how turns of a conversation become one string, exactly as the checkpoints were trained.

`conv_templates` holds every template under the names LLaVA's commands take. `default_conversation` is the one training
uses; training reassigns it.
"""

from __future__ import annotations

import base64
import copy as copying
import dataclasses
import io
from enum import Enum, auto
from typing import Any

PAD_COLOUR = (122, 116, 104)  # CLIP's mean pixel, 255 * mean per channel


class SeparatorStyle(Enum):
    """How the turns are joined; see `Conversation.get_prompt`."""

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    LLAMA_2 = auto()


def _text(message: Any) -> Any:
    return message[0] if isinstance(message, tuple) else message


def _shrink(width: int, height: int, longest: int, shortest: int) -> tuple[int, int]:
    """The size shown in a chat window: the short side at most `shortest`, the long side at most about `longest`."""
    aspect = max(width, height) / min(width, height)
    short = int(min(longest / aspect, shortest, min(width, height)))
    long = int(short * aspect)
    return (short, long) if height > width else (long, short)


@dataclasses.dataclass
class Conversation:
    """A conversation: template and turns in one.

    messages: [role, message] pairs. A message is None (to be answered), a string, or (text, PIL image, process mode).
    offset: how many leading messages belong to the template itself (worked examples).
    """

    system: str
    roles: list[str] | tuple[str, ...]
    messages: Any
    offset: int
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "Unknown"
    skip_next: bool = False

    def get_prompt(self) -> str:
        """The prompt, open at the end when the last message is None. A leading picture is written as `<image>`."""
        turns = self._turns_with_image()
        if self.sep_style is SeparatorStyle.LLAMA_2:
            return self._render_llama_2(turns)
        second = self.sep if self.sep_style in (SeparatorStyle.SINGLE, SeparatorStyle.MPT) else self.sep2
        separators = (self.sep, second)
        if self.sep_style is SeparatorStyle.PLAIN:
            said = [(_text(message), separators[i % 2]) for i, (_, message) in enumerate(turns) if message]
            return self.system + "".join(message + (separator or "") for message, separator in said)
        before, colon = ("", "") if self.sep_style is SeparatorStyle.MPT else (" ", ":")
        prompt = self.system + self.sep
        for i, (role, message) in enumerate(turns):
            prompt += role + colon + (before + _text(message) + str(separators[i % 2]) if message else "")
        return prompt

    def _turns_with_image(self) -> list[Any]:
        if not self.messages or not isinstance(self.messages[0][1], tuple):
            return self.messages
        role, first = self.messages[0]
        text = first[0].replace("<image>", "").strip()
        if "mmtag" in self.version:
            shown = [[self.roles[0], "<Image><image></Image>"], [self.roles[1], "Received."]]
            return [*shown, [role, text], *self.messages[1:]]
        return [[role, "<image>\n" + text], *self.messages[1:]]

    def _render_llama_2(self, turns: list[Any]) -> str:
        prompt = ""
        for i, (role, message) in enumerate(turns):
            if i == 0 and (not message or role != self.roles[0]):
                raise ValueError(f"the first message must be a non-empty one from {self.roles[0]!r}")
            if not message:
                continue
            text = _text(message)
            if i == 0 and self.system:
                text = f"<<SYS>>\n{self.system}\n<</SYS>>\n\n{text}"
            prompt += f" {text} {self.sep2}" if i % 2 else f"{self.sep}[INST] {text} [/INST]"
        return prompt.lstrip(self.sep)

    def append_message(self, role: str, message: Any) -> None:
        self.messages.append([role, message])

    def process_image(
        self,
        image: Any,
        image_process_mode: str,
        return_pil: bool = False,
        image_format: str = "PNG",
        max_len: int = 1344,
        min_len: int = 672,
    ) -> Any:
        """The picture for the model and the chat window: "Pad" to a square, "Resize" to 336 x 336, "Default" or "Crop"
        unchanged; then shrunk where the long side exceeds `max_len`. Returns the PIL image, or its base64 text.
        """
        if image_process_mode == "Pad":
            from llava.mm_utils import expand2square

            image = expand2square(image, PAD_COLOUR)
        elif image_process_mode == "Resize":
            image = image.resize((336, 336))
        elif image_process_mode not in ("Default", "Crop"):
            raise ValueError(f"Invalid image_process_mode: {image_process_mode}; use Pad, Resize, Default or Crop")
        if max(image.size) > max_len:
            image = image.resize(_shrink(image.width, image.height, max_len, min_len))
        if return_pil:
            return image
        buffer = io.BytesIO()
        image.save(buffer, format=image_format)
        return base64.b64encode(buffer.getvalue()).decode()

    def get_images(self, return_pil: bool = False) -> list[Any]:
        """The pictures of the user's turns, in order."""
        asked = [message for _, message in self.messages[self.offset :: 2] if isinstance(message, tuple)]
        return [self.process_image(image, mode, return_pil=return_pil) for _, image, mode in asked]

    def to_gradio_chatbot(self) -> list[list[Any]]:
        """[question, answer] pairs for a chat window; a picture becomes an inline JPEG."""
        pairs: list[list[Any]] = []
        for i, (_, message) in enumerate(self.messages[self.offset :]):
            if i % 2:
                pairs[-1][1] = message
                continue
            if isinstance(message, tuple):
                shown = self.process_image(message[1], "Default", image_format="JPEG")
                tag = f'<img src="data:image/jpeg;base64,{shown}" alt="user upload image" />'
                message = tag + message[0].replace("<image>", "").strip()
            pairs.append([message, None])
        return pairs

    def copy(self) -> Conversation:
        """A conversation with its own list of messages."""
        return dataclasses.replace(self, messages=[[role, message] for role, message in self.messages], skip_next=False)

    def dict(self) -> dict[str, Any]:
        """The fields a log keeps; pictures are left out."""
        return {
            "system": self.system,
            "roles": copying.copy(self.roles),
            "messages": [[role, _text(message)] for role, message in self.messages],
            "offset": self.offset,
            "sep": self.sep,
            "sep2": self.sep2,
        }


def _assistant_for(who: str) -> str:
    return (
        f"A chat between a curious {who} and an artificial intelligence assistant. The assistant gives helpful, "
        f"detailed, and polite answers to the {who}'s questions."
    )


_VISUAL_CONTENT = (
    "able to understand the visual content that the user provides, and assist the user with a variety of tasks using "
    "natural language."
)
_SYSTEM_LLAVA_LLAMA_2 = f"You are a helpful language and vision assistant. You are {_VISUAL_CONTENT}"
_SYSTEM_MMTAG = (
    f"A chat between a curious user and an artificial intelligence assistant. The assistant is {_VISUAL_CONTENT}"
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
# Meta's default prompt of Llama-2-Chat; LLaVA's copy has two spaces after "while being safe.".
_SYSTEM_LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\nIf a question does not make "
    "any sense, or is not factually coherent, explain why instead of answering something not correct. If you don't "
    "know the answer to a question, please don't share false information."
)
_SYSTEM_MPT = (
    "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. The assistant gives helpful and "
    "honest answers."
)
# The worked example that the v0 prompt of Vicuna carries.
_EXAMPLE_QUESTION = "What are the key differences between renewable and non-renewable energy sources?"
_EXAMPLE_ANSWER = "\n".join(
    (
        "Renewable energy sources are those that can be replenished naturally in a relatively short amount of time, "
        "such as solar, wind, hydro, geothermal, and biomass. Non-renewable energy sources, on the other hand, are "
        "finite and will eventually be depleted, such as coal, oil, and natural gas. Here are some key differences "
        "between renewable and non-renewable energy sources:",
        "1. Availability: Renewable energy sources are virtually inexhaustible, while non-renewable energy sources "
        "are finite and will eventually run out.",
        "2. Environmental impact: Renewable energy sources have a much lower environmental impact than non-renewable "
        "sources, which can lead to air and water pollution, greenhouse gas emissions, and other negative effects.",
        "3. Cost: Renewable energy sources can be more expensive to initially set up, but they typically have lower "
        "operational costs than non-renewable sources.",
        "4. Reliability: Renewable energy sources are often more reliable and can be used in more remote locations "
        "than non-renewable sources.",
        "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to different situations "
        "and needs, while non-renewable sources are more rigid and inflexible.",
        "6. Sustainability: Renewable energy sources are more sustainable over the long term, while non-renewable "
        "sources are not, and their depletion can lead to economic and social instability.\n",
    )
)


def _two(system: str, version: str = "v1") -> Conversation:
    return Conversation(system, ("USER", "ASSISTANT"), [], 0, SeparatorStyle.TWO, " ", "</s>", version)


def _single(system: str, version: str = "Unknown", examples: tuple[Any, ...] = ()) -> Conversation:
    return Conversation(
        system, ("Human", "Assistant"), list(examples), len(examples), SeparatorStyle.SINGLE, "###", version=version
    )


def _llama_2(system: str, sep: str = "<s>") -> Conversation:
    return Conversation(system, ("USER", "ASSISTANT"), [], 0, SeparatorStyle.LLAMA_2, sep, "</s>", "llama_v2")


def _chatml(system: str) -> Conversation:
    roles = ("<|im_start|>user\n", "<|im_start|>assistant\n")
    return Conversation(system, roles, [], 0, SeparatorStyle.MPT, "<|im_end|>", version="mpt")


conv_vicuna_v0 = _single(
    _assistant_for("human"), examples=(["Human", _EXAMPLE_QUESTION], ["Assistant", _EXAMPLE_ANSWER])
)
conv_vicuna_v1 = _two(_assistant_for("user"))
conv_llama_2 = _llama_2(_SYSTEM_LLAMA_2)
conv_llava_llama_2 = _llama_2(_SYSTEM_LLAVA_LLAMA_2)
conv_mistral_instruct = _llama_2("", sep="")
conv_mpt = _chatml(_SYSTEM_MPT)
conv_chatml_direct = _chatml("<|im_start|>system\nAnswer the questions.")
conv_llava_plain = Conversation("", ("", ""), [], 0, SeparatorStyle.PLAIN, "\n")
conv_llava_v0 = _single(_assistant_for("human"))
conv_llava_v0_mmtag = _single(_SYSTEM_MMTAG, version="v0_mmtag")
conv_llava_v1 = _two(_assistant_for("human"))
conv_llava_v1_mmtag = _two(_SYSTEM_MMTAG, version="v1_mmtag")

default_conversation = conv_vicuna_v1
conv_templates: dict[str, Conversation] = {
    "default": conv_vicuna_v0,
    "v0": conv_vicuna_v0,
    "v1": conv_vicuna_v1,
    "vicuna_v1": conv_vicuna_v1,
    "llama_2": conv_llama_2,
    "mistral_instruct": conv_mistral_instruct,
    "chatml_direct": conv_chatml_direct,
    "mistral_direct": conv_chatml_direct,
    "plain": conv_llava_plain,
    "v0_plain": conv_llava_plain,
    "llava_v0": conv_llava_v0,
    "v0_mmtag": conv_llava_v0_mmtag,
    "llava_v1": conv_llava_v1,
    "v1_mmtag": conv_llava_v1_mmtag,
    "llava_llama_2": conv_llava_llama_2,
    "mpt": conv_mpt,
}

# Tried in this order on the lower-cased model name.
_MODE_BY_NAME = (
    ("llama-2", "llava_llama_2"),
    ("mistral", "mistral_instruct"),
    ("v1.6-34b", "chatml_direct"),
    ("v1", "llava_v1"),
    ("mpt", "mpt"),
)


def conversation_mode(model_name: str = "", conv_version: str | None = None, explicit: str | None = None) -> str:
    """The name of a model's template: `explicit`, else the checkpoint's `conv_version`, else inferred from its name.

    Raises ValueError for a template that does not exist.
    """
    inferred = next((mode for part, mode in _MODE_BY_NAME if part in model_name.lower()), "llava_v0")
    mode = explicit or conv_version or inferred
    if mode not in conv_templates:
        raise ValueError(f"conversation mode {mode!r} is unknown; use one of {', '.join(sorted(conv_templates))}")
    return mode
