"""The page: a chat about a picture, with a token budget, the cost of each answer, and the kept patches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from flowcut.registry import METHODS
from llava.serve.chatlog import ChatLog
from llava.serve.client import ControllerClient, status_of
from llava.serve.kept_pictures import figure_table, overlays
from llava.serve.protocol import NoWorkerError
from llava.serve.session import Session, Wish
from llava.utils import moderation_msg, violates_moderation

TITLE = "LLaVA with FlowCut"
INTRODUCTION = (
    "Ask about a picture. The budget is the number of visual tokens that reach the language model. The cost of an "
    "answer and the kept patches are shown next to it. Chats, votes and pictures are logged on this page's server."
)
DEFAULT_METHOD = "flowcut"
DEFAULT_BUDGET = 64
DEFAULT_MOST = 576  # visual tokens, until a worker reports how many its model has


@dataclass(frozen=True)
class PageSettings:
    """reload: update the list of models at each visit, not once. embed: hide title and introduction."""

    controller: ControllerClient
    log: ChatLog
    reload: bool = False
    moderate: bool = False
    embed: bool = False


@dataclass
class Widgets:
    """The page's parts that handlers read and write."""

    session: gr.State
    model: gr.Dropdown
    image: gr.Image
    chat: gr.Chatbot
    text: gr.Textbox
    figures: gr.Markdown
    gallery: gr.Gallery
    wish: list[Any]  # in the order of Wish's fields after the model

    @property
    def outputs(self) -> list[Any]:
        return [self.session, self.chat, self.figures, self.gallery]


class Handlers:
    """The page's event handlers; `models` is the list at the start, used without `reload`."""

    def __init__(self, settings: PageSettings) -> None:
        self.settings = settings
        self.controller = settings.controller
        self.models = self.controller.models()

    def load(self, request: gr.Request) -> tuple[Any, Any, Any]:
        """On a visit: the list of models, with the one in `?model=` selected, its methods, and the budget's range."""
        if self.settings.reload:
            self.controller.refresh()
            self.models = self.controller.models()
        wanted = request.query_params.get("model", "")
        chosen = wanted if wanted in self.models else next(iter(self.models), None)
        return gr.Dropdown(choices=self.models, value=chosen), *self.of_model(chosen)

    def of_model(self, model: str | None) -> tuple[Any, Any]:
        """The methods that the chosen model's worker can run, and the budget's slider, up to as many tokens as a
        picture has.
        """
        most, methods = DEFAULT_MOST, list(METHODS)
        if model:
            try:
                status = status_of(self.controller.worker(model))
                most = status.visual_tokens or DEFAULT_MOST
                methods = methods if status.methods is None else status.methods
            except (ValueError, NoWorkerError) as error:
                gr.Warning(str(error))
        method = DEFAULT_METHOD if DEFAULT_METHOD in methods else "none"
        slider = gr.Slider(minimum=1, maximum=most, value=min(DEFAULT_BUDGET, most))
        return gr.Dropdown(choices=["none", *methods], value=method), slider

    def ask(self, session: Session, text: str, image: str | None, model: str, *wish: Any) -> tuple[Session, Any, str]:
        """Add a question. An error is shown in a corner of the page, and the question stays in its box."""
        try:
            if self.settings.moderate and violates_moderation(text):
                raise ValueError(moderation_msg)
            session.add(text, image, Wish(model or "", *wish), self.controller)
        except (ValueError, OSError, NoWorkerError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        return session, session.shown(), ""

    def again(self, session: Session) -> tuple[Session, Any]:
        if not session.reopen():
            raise gr.Error("there is nothing to ask again", print_exception=False)
        return session, session.shown()

    def answer(self, request: gr.Request, session: Session, model: str, *wish: Any) -> Iterator[tuple]:
        """The growing answer; figures and pictures at its end."""
        wanted = Wish(model or "", *wish)
        for _ in session.answer(wanted, self.controller):
            yield session, session.shown(), gr.skip(), gr.skip()
        table = figure_table(session.figures) if session.figures else session.note
        pictures = overlays(session.kept) if session.kept else []
        yield session, session.shown(), table, pictures
        assert session.conversation is not None
        times = (session.asked, time.time())
        more = {"pruner": wanted.pruner, "figures": session.figures}
        self.settings.log.chat(session.conversation, wanted.model, _visitor(request), times, session.images(), **more)

    def stop(self, session: Session) -> tuple[Session, Any]:
        session.close()
        return session, session.shown()

    def clear(self) -> tuple[Session, list, str, list, None]:
        return Session(), [], "", [], None

    def vote(self, kind: str, session: Session, request: gr.Request) -> None:
        if session.conversation is None:
            raise gr.Error("there is no answer to judge yet", print_exception=False)
        self.settings.log.vote(kind, session.conversation, session.model, _visitor(request))
        gr.Info("noted, thank you")


def _visitor(request: gr.Request) -> str:
    return request.client.host if request.client else ""


def build_page(settings: PageSettings) -> gr.Blocks:
    """The page, ready to be queued and launched. Raises ValueError, one line, when the controller does not answer."""
    handlers = Handlers(settings)
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        if not settings.embed:
            gr.Markdown(f"# {TITLE}\n{INTRODUCTION}")
        with gr.Row():
            widgets, chosen, buttons = _layout(handlers)
        _wire(page, handlers, widgets, chosen, buttons)
    return page


def _uploaded(payload: Any) -> str | None:
    """The file of an upload, unread: gradio would let Pillow open any format, and PostScript runs Ghostscript."""
    if payload is None:
        return None
    if not payload.path:
        raise gr.Error("the picture is no file; upload one", print_exception=False)
    return payload.path


def _layout(handlers: Handlers) -> tuple[Widgets, list[Any], dict[str, gr.Button]]:
    """The widgets, those that depend on the chosen model, and the buttons."""
    models = handlers.models
    with gr.Column(scale=3):
        model = gr.Dropdown(models, value=next(iter(models), None), label="Model", elem_id="model")
        image = gr.Image(
            type="filepath", label="Picture", elem_id="picture", height=300, sources=["upload", "clipboard"]
        )
        image.preprocess = _uploaded  # type: ignore[method-assign]  # gradio would open any format
        method = gr.Dropdown(["none", *METHODS], value=DEFAULT_METHOD, label="Method", elem_id="method")
        budget = gr.Slider(
            1, DEFAULT_MOST, DEFAULT_BUDGET, step=1, label="Budget: visual tokens that reach the LLM", elem_id="budget"
        )
        settings = gr.Textbox(
            label="Other settings of the method", placeholder="such as keep=32,layer=2", elem_id="settings", lines=1
        )
        compare = gr.Checkbox(True, label="Compare the first token's time with none", elem_id="compare")
        with gr.Accordion("Parameters", open=False):
            temperature = gr.Slider(0, 1, 0.2, step=0.1, label="Temperature", elem_id="temperature")
            top_p = gr.Slider(0, 1, 0.7, step=0.1, label="Top P")
            most = gr.Slider(1, 1024, 512, step=1, label="Most tokens of an answer")
            mode = gr.Radio(
                ["Crop", "Resize", "Pad", "Default"], value="Default", label="Before it is sent, a picture is"
            )
    with gr.Column(scale=5):
        chat = gr.Chatbot(label="Chat", height=360, elem_id="chat", layout="bubble", buttons=["copy"])
        with gr.Row():
            text = gr.Textbox(show_label=False, placeholder="Ask something", scale=8, elem_id="question", lines=1)
            buttons = {"send": gr.Button("Send", variant="primary", scale=1, elem_id="send")}
        with gr.Row():
            names = ("Upvote", "Downvote", "Flag", "Stop", "Regenerate", "Clear")
            buttons |= {name.lower(): gr.Button(name, size="sm", min_width=60, elem_id=name.lower()) for name in names}
        gallery = gr.Gallery(
            label="Kept patches after each layer that dropped some",
            columns=3,
            height="auto",
            elem_id="kept",
            object_fit="contain",
        )
    with gr.Column(scale=3):
        figures = gr.Markdown(elem_id="figures", container=True, min_height=100)
    wish = [temperature, top_p, most, method, budget, mode, settings, compare]
    return Widgets(gr.State(Session()), model, image, chat, text, figures, gallery, wish), [method, budget], buttons


def _wire(page: gr.Blocks, handlers: Handlers, w: Widgets, chosen: list[Any], buttons: dict[str, gr.Button]) -> None:
    private: dict[str, Any] = {"api_visibility": "private"}
    quiet: dict[str, Any] = {**private, "show_progress": "hidden"}
    page.load(handlers.load, None, [w.model, *chosen], **quiet)
    w.model.input(handlers.of_model, w.model, chosen, **quiet)
    answering = []
    for begin in (w.text.submit, buttons["send"].click):
        asked = begin(
            handlers.ask, [w.session, w.text, w.image, w.model, *w.wish], [w.session, w.chat, w.text], **quiet
        )
        answering.append(asked.success(handlers.answer, [w.session, w.model, *w.wish], w.outputs, **quiet))
    again = buttons["regenerate"].click(handlers.again, w.session, [w.session, w.chat], **quiet)
    answering.append(again.success(handlers.answer, [w.session, w.model, *w.wish], w.outputs, **quiet))
    buttons["stop"].click(handlers.stop, w.session, [w.session, w.chat], cancels=answering, **quiet)
    for clear in (buttons["clear"].click, w.chat.clear):
        clear(handlers.clear, None, [*w.outputs, w.image], cancels=answering, **quiet)
    for kind in ("upvote", "downvote", "flag"):
        buttons[kind].click(_voting(handlers, kind), w.session, None, **private)


def _voting(handlers: Handlers, kind: str) -> Any:
    def vote(session: Session, request: gr.Request) -> None:
        handlers.vote(kind, session, request)

    return vote
