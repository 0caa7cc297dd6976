"""Answering with a model that a vLLM server has: the prompts and pictures are those that it would get here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, NamedTuple

from PIL import Image

from flowcut.pruner import Pruner
from flowcut.registry import parse_pruner
from llava.constants import IMAGE_PLACEHOLDER
from llava.conversation import conversation_mode
from llava.eval.judge.client import Client, Endpoint, reply_of
from llava.eval.models.llava_answerer import llava_prompt
from llava.eval.models.load import fits_llava_classes
from llava.eval.models.reply import Generation
from llava.eval.models.vllm_server import FLAGS, Served, Usage, find_served, try_served, usage_of
from llava.given import read_json
from llava.mm_utils import before_the_processor, get_model_name_from_path
from llava.model.checkpoint import local_folder, read_config
from llava.model.transformers_layout import is_transformers_layout, llava_fields

_RETRIES = 4
_TIMEOUT = 600.0


class ServedReply(NamedTuple):
    """An answer. visual_tokens, text_tokens: of the prompt, as the server counted. ms: from the request to the answer,
    the time in the server's queue included."""

    text: str
    visual_tokens: int
    text_tokens: int
    ms: float

    def metadata(self) -> dict[str, Any]:
        """Everything but the text, for the answer line."""
        return {"visual_tokens": self.visual_tokens, "text_tokens": self.text_tokens, "ms": round(self.ms, 3)}


@dataclass(frozen=True)
class Manner:
    """How questions are put to a checkpoint, by this machine's copy of its config.

    mode: LLaVA's template; None for the chat template that the server has. aspect, mean: how LLaVA's classes shape a
    picture before its processor, see `before_the_processor`.
    """

    mode: str | None = None
    aspect: str | None = None
    mean: tuple[float, ...] = ()

    def picture(self, image: Image.Image) -> Image.Image:
        """A picture (RGB) as it is sent."""
        if self.mode is None or self.aspect == "anyres":
            return image
        return before_the_processor(image, self.aspect, self.mean)

    def prompt(self, text: str, images: int) -> str | None:
        """The whole prompt; None where the server writes it by its template."""
        return None if self.mode is None else llava_prompt(self.mode, text, images)


def manner_of(model_path: str, conv_mode: str | None = None, default_mode: str | None = None) -> Manner:
    """The manner in which `load_answerer` would ask this checkpoint, by the rules of its "auto" backend.

    Raises ValueError, one line, when there is no config.json of it, here or on the Hub.
    """
    folder = local_folder(model_path, patterns=["*config.json"])
    if not fits_llava_classes(model_path):
        return Manner(conversation_mode(explicit=conv_mode) if conv_mode else None)
    fields = read_config(folder)
    if not is_transformers_layout(fields):
        raise ValueError(
            f"{model_path} is in LLaVA's layout, which vLLM does not read; python -m llava.convert --to hf"
        )
    fields = llava_fields(fields, folder)
    mode = conversation_mode(
        get_model_name_from_path(model_path), fields.get("conv_version") or default_mode, conv_mode
    )
    mean = tuple(read_json(folder / "preprocessor_config.json")["image_mean"])
    return Manner(mode, fields["image_aspect_ratio"], mean)


class ServedAnswerer:
    """A served model that answers questions about pictures, also from several threads.

    server: its address. model_path: the same checkpoint's folder or Hub name, for prompts and names; no weights are
    read. pruner: "none", or text such as "flowcut:budget=64": the server's, with any budget. connections: requests at
    a time.

    Raises ValueError, one line, when no server answers, or it serves another model or prunes otherwise.
    """

    def __init__(
        self,
        server: str,
        model_path: str,
        pruner: str | None,
        generation: Generation,
        manner: Manner,
        connections: int = 16,
    ) -> None:
        if pruner is None:
            raise ValueError("a server does not report its pruner; give --pruner, such as flowcut:budget=64, or none")
        if generation.num_beams > 1:
            raise ValueError(f"num_beams={generation.num_beams} is not possible with a server; leave it out")
        self.pruner: Pruner | None = parse_pruner(pruner)
        self.pruner_text = pruner
        self.generation, self.manner = generation, manner
        self.name = get_model_name_from_path(model_path)
        self.served: Served = find_served(server, model_path)
        try_served(self.served, self.pruner, manner.mode is not None)
        self.connections = connections
        endpoint = Endpoint(
            f"{self.served.url}/v1",
            timeout=_TIMEOUT,
            retries=_RETRIES,
            connections=connections,
            name="vLLM server",
            advice=f"start vLLM with {FLAGS}",
        )
        self.client = Client(endpoint)

    def settings(self) -> dict[str, Any]:
        """Everything that determines the answers, except the questions."""
        return {
            "model": self.name,
            "host": f"vLLM {self.served.version}".strip(),
            "pruner": repr(self.pruner) if self.pruner else "none",
            "conv_mode": self.manner.mode or "chat template",
            **asdict(self.generation),
        }

    def answer(self, text: str, pictures: Sequence[Image.Image]) -> ServedReply:
        """The answer to a question about pictures (RGB), of which there may be none or several.

        Raises Unanswered where the server refuses this question, Unreachable when it is gone, Refused when it would
        refuse every question, ValueError for a text that does not fit its pictures.
        """
        shown = [self.manner.picture(picture) for picture in pictures]
        settings = self.generation
        sampling: dict[str, Any] = {"max_tokens": settings.max_new_tokens, "temperature": settings.temperature}
        if settings.temperature > 0:
            sampling |= {"top_p": settings.top_p or 1.0, "seed": settings.seed}
        prompt = self.manner.prompt(text, len(shown))
        body = self.served.body(prompt, content_of(text, shown), self.pruner, **sampling)
        begin = perf_counter()
        said, usage = self.client.post(body, _read)
        ms = (perf_counter() - begin) * 1000
        return ServedReply(said.strip(), usage.visual, usage.text, ms)


def content_of(text: str, pictures: Sequence[Image.Image]) -> list[str | Image.Image]:
    """Text and pictures in their order: where `<image-placeholder>` is in the text, else pictures first."""
    if IMAGE_PLACEHOLDER not in text:
        return [*pictures, text]
    parts = text.split(IMAGE_PLACEHOLDER)
    if len(parts) - 1 != len(pictures):
        raise ValueError(f"the text has {IMAGE_PLACEHOLDER} {len(parts) - 1} times for {len(pictures)} pictures")
    content: list[str | Image.Image] = [parts[0]] if parts[0] else []
    for picture, part in zip(pictures, parts[1:], strict=True):
        content += [picture, part] if part else [picture]
    return content


def _read(document: Any) -> tuple[str, Usage]:
    return reply_of(document, "").text, usage_of(document)
