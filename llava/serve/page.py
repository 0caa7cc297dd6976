"""The page: two methods answer a question about a picture side by side; below are cost, kept patches and history."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from flowcut.registry import METHODS, settings_of
from llava.serve import layout
from llava.serve.chatlog import ChatLog
from llava.serve.client import ControllerClient, status_of
from llava.serve.figure_tables import figure_table, history_table
from llava.serve.kept_pictures import final_picture, layer_pictures
from llava.serve.layout import DEFAULT_BUDGET, DEFAULT_MOST, NONE, OFF, Widgets, build_widgets
from llava.serve.limits import read_upload
from llava.serve.protocol import NoWorkerError, WorkerStatus
from llava.serve.session import Session, Wish
from llava.serve.side_by_side import SideBySide
from llava.utils import moderation_msg, violates_moderation

TITLE = "LLaVA with FlowCut"
INTRODUCTION = (
    "Ask about a picture and compare two methods. A budget is the number of visual tokens that the language model "
    "reads of a picture."
)
LOGGED = "Chats, votes and pictures are logged on this page's server."
DEFAULT_METHOD = "flowcut"
WAITING = {True: "<p>Answering, then measuring …</p>", False: "<p>Answering …</p>"}
HIDDEN = (gr.Image(visible=False), gr.Gallery(visible=False))
FORGET = 3600  # seconds after which an upload is deleted; all are deleted when the page ends


@dataclass(frozen=True)
class PageSettings:
    """log: where chats and votes are logged, None for nowhere. reload: update the list of models at each visit, not
    once. embed: hide title and introduction.
    """

    controller: ControllerClient
    log: ChatLog | None = None
    reload: bool = False
    moderate: bool = False
    embed: bool = False


class Handlers:
    """The page's event handlers; `models` is the list at the start, used without `reload`."""

    def __init__(self, settings: PageSettings) -> None:
        self.settings = settings
        self.controller = settings.controller
        self.models = self.controller.models()

    def load(self, request: gr.Request) -> tuple[Any, ...]:
        """On a visit: the list of models, with the one in `?model=` selected, and what it allows."""
        if self.settings.reload:
            try:
                self.controller.refresh()
                self.models = self.controller.models()
            except ValueError as error:  # the controller is gone; the models known so far stay in the list
                gr.Warning(str(error))
        wanted = request.query_params.get("model", "")
        chosen = wanted if wanted in self.models else next(iter(self.models), None)
        return gr.Dropdown(choices=self.models, value=chosen), *self.of_model(chosen)

    def of_model(self, model: str | None) -> tuple[Any, ...]:
        """The methods that the chosen model's worker can run, on either side, and the second side."""
        status = self._status(model)
        methods = list(METHODS) if status.methods is None else status.methods
        pruned = DEFAULT_METHOD if status.methods is not None and DEFAULT_METHOD in methods else OFF
        updates: list[Any] = []
        for chosen, off in ((NONE, []), (pruned, [OFF])):
            choices = [*off, NONE, *methods]
            updates += [gr.Dropdown(choices=choices, value=chosen), *self._limits(status, chosen, "", DEFAULT_BUDGET)]
        return *updates, gr.Column(visible=pruned != OFF)

    def limits(self, model: str | None, method: str, budget: int, settings: str) -> tuple[Any, Any]:
        """The budget's slider and the further settings of a method that was chosen."""
        return self._limits(self._status(model), method, settings, budget)

    def second(self, method: str) -> Any:
        return gr.Column(visible=method != OFF)

    def _status(self, model: str | None) -> WorkerStatus:
        if model:
            try:
                return status_of(self.controller.worker(model))
            except (ValueError, NoWorkerError) as error:
                gr.Warning(str(error))
        return WorkerStatus(model_names=[])

    def _limits(self, status: WorkerStatus, method: str, settings: str, budget: int) -> tuple[Any, Any]:
        if method not in METHODS:
            return gr.Slider(visible=False), gr.Textbox(visible=False, value="")
        most = status.visual_tokens or DEFAULT_MOST
        least = 1 if settings.strip() else min(status.budgets.get(method, 1), most)  # settings may allow any
        value = min(max(budget, least), most)
        fields = [f"{one.name}={one.default}" for one in settings_of(method) if one.default is not None]
        label = f"Budget ({least} to {most})"
        slider = gr.Slider(minimum=least, maximum=most, value=value, label=label, visible=True)
        hint = f"for example {fields[0]}" if fields else ""
        return slider, gr.Textbox(visible=bool(fields), placeholder=hint)

    def uploaded(self, path: str | None) -> str | None:
        """Take a file that is no picture out of its box, and say so."""
        try:
            if path:
                read_upload(path)
        except ValueError as error:
            gr.Warning(str(error))
            return None
        return path

    def ask(self, session: SideBySide, text: str, image: str | None, *values: Any) -> SideBySide:
        """Add a question. An error is shown in a corner of the page, and the question stays in its box.

        It has no widget as its output, because gradio writes "Error" across those.
        """
        try:
            if self.settings.moderate and violates_moderation(text):
                raise ValueError(moderation_msg)
            session.add(text, image, wishes_of(values), self.controller)
        except (ValueError, OSError, NoWorkerError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        return session

    def again(self, session: SideBySide, *values: Any) -> SideBySide:
        if not session.again(wishes_of(values)):
            raise gr.Error("there is nothing to ask again", print_exception=False)
        return session

    def answer(self, request: gr.Request, session: SideBySide, *values: Any) -> Iterator[tuple]:
        """The growing answers, in the order of `Widgets.outputs`; tables and pictures at their end.

        At the start the question leaves its box, and each chat is named after the method that answers there.
        """
        wishes = wishes_of(values)
        named = [gr.Chatbot(side.shown(), label=wish.pruner) for side, wish in zip(session.sides, wishes, strict=False)]
        left, right = [*named, gr.skip()][:2]
        waiting = gr.HTML(WAITING[wishes[-1].timed], visible=True)
        yield session, "", left, *HIDDEN, right, *HIDDEN, gr.Accordion(visible=False), waiting, gr.skip()
        same = [gr.skip()] * 2
        for _ in session.answer(wishes, self.controller):
            left, right = (side.shown() for side in session.sides)
            yield session, gr.skip(), left, *same, right, *same, *same, gr.skip()
        left, right = (side.shown() for side in session.sides)
        pictures = [*(_pictures(side) for side in session.sides[: len(wishes)]), HIDDEN]
        details = gr.Accordion(visible=any(side.kept and layer_pictures(side.kept) for side in session.sides))
        table = figure_table(session, [wish.pruner for wish in wishes])
        figures, history = gr.HTML(table, visible=bool(table)), history_table(session.rows)
        yield session, gr.skip(), left, *pictures[0], right, *pictures[1], details, figures, history
        self._log(session.sides, wishes, request)

    def _log(self, sides: Sequence[Session], wishes: Sequence[Wish], request: gr.Request) -> None:
        if self.settings.log is None:
            return
        for side, wish in zip(sides, wishes, strict=False):
            if side.conversation is not None:
                times, more = (side.asked, time.time()), {"pruner": wish.pruner, "figures": side.figures}
                self.settings.log.chat(side.conversation, wish.model, _visitor(request), times, side.images(), **more)

    def stop(self, session: SideBySide) -> tuple[Any, ...]:
        session.stop()
        return session, *(side.shown() for side in session.sides), gr.HTML(visible=False)

    def clear(self, session: SideBySide) -> tuple[Any, ...]:
        """A new conversation without a picture; the history stays."""
        session.clear()
        hidden = gr.Accordion(visible=False), gr.HTML(visible=False)
        return session, "", [], *HIDDEN, [], *HIDDEN, *hidden, history_table(session.rows), None

    def vote(self, number: int, session: SideBySide, liked: bool | str, request: gr.Request) -> None:
        """liked: what gradio says of the answer's buttons: True, False, or the name of another one."""
        side = session.sides[number]
        if self.settings.log is None or side.conversation is None:
            raise gr.Error("there is no answer to judge yet", print_exception=False)
        kind = "flag" if isinstance(liked, str) else "upvote" if liked else "downvote"
        self.settings.log.vote(kind, side.conversation, side.model, _visitor(request))
        gr.Info("noted, thank you")


def wishes_of(values: Sequence[Any]) -> list[Wish]:
    """The wishes of the sides that are on, from the values of `Widgets.wish`."""
    model, temperature, top_p, most, mode, timed, *chosen = values
    sides = [side for side in (chosen[:3], chosen[3:]) if side[0] != OFF]
    return [
        Wish(model or "", temperature, top_p, most, method, budget, mode, settings or "", timed)
        for method, budget, settings in sides
    ]


def _pictures(side: Session) -> tuple[Any, Any]:
    """The picture of what remained, with its caption, and those after each layer."""
    if not side.kept:
        return HIDDEN
    drawn, caption = final_picture(side.kept)
    layers = layer_pictures(side.kept)
    return gr.Image(drawn, label=caption, show_label=True, visible=True), gr.Gallery(layers, visible=bool(layers))


def _visitor(request: gr.Request) -> str:
    return request.client.host if request.client else ""


def build_page(settings: PageSettings) -> gr.Blocks:
    """The page, ready to be queued and launched. Raises ValueError, one line, when the controller does not answer."""
    handlers = Handlers(settings)
    said = f"{INTRODUCTION} {LOGGED}" if settings.log is not None else INTRODUCTION
    title = "" if settings.embed else f"# {TITLE}\n{said}"
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(FORGET // 6, FORGET)) as page:
        widgets = build_widgets(handlers.models, title, SideBySide(), _unread)
        _wire(page, handlers, widgets)
    return page


def _unread(payload: Any) -> str | None:
    """The file of an upload, unread: gradio would let Pillow open any format, and PostScript runs Ghostscript."""
    if payload is None:
        return None
    if not payload.path:
        raise gr.Error("the picture is not a file; upload one", print_exception=False)
    return payload.path


def _wire(page: gr.Blocks, handlers: Handlers, w: Widgets) -> None:
    private: dict[str, Any] = {"api_visibility": "private"}
    quiet: dict[str, Any] = {**private, "show_progress": "hidden"}
    limits = [widget for side in w.sides for widget in side.wish]
    page.load(handlers.load, None, [w.model, *limits, w.sides[1].column], **quiet)
    w.model.input(handlers.of_model, w.model, [*limits, w.sides[1].column], **quiet)
    for side in w.sides:
        for changed in (side.method.input, side.settings.blur, side.settings.submit):
            changed(handlers.limits, [w.model, *side.wish], [side.budget, side.settings], **quiet)
    w.sides[1].method.input(handlers.second, w.sides[1].method, w.sides[1].column, **quiet)
    w.image.upload(handlers.uploaded, w.image, w.image, **quiet)
    w.examples.click(layout.example, w.examples, [w.image, w.text], **quiet)
    answering = []
    for begin in (w.text.submit, w.buttons["send"].click):
        asked = begin(handlers.ask, [w.session, w.text, w.image, *w.wish], w.session, **quiet)
        answering.append(asked.success(handlers.answer, [w.session, *w.wish], w.outputs, **quiet))
    again = w.buttons["again"].click(handlers.again, [w.session, *w.wish], w.session, **quiet)
    answering.append(again.success(handlers.answer, [w.session, *w.wish], w.outputs, **quiet))
    w.buttons["stop"].click(handlers.stop, w.session, [*w.chats, w.figures], cancels=answering, **quiet)
    for clear in (w.buttons["clear"].click, *(side.chat.clear for side in w.sides)):
        clear(handlers.clear, w.session, [*w.outputs, w.image], cancels=answering, **quiet)
    if handlers.settings.log is not None:
        for number, side in enumerate(w.sides):
            side.chat.like(_voting(handlers, number), w.session, None, **private)


def _voting(handlers: Handlers, number: int) -> Any:
    def vote(session: SideBySide, data: gr.LikeData, request: gr.Request) -> None:
        handlers.vote(number, session, data.liked, request)

    return vote
