"""The page's widgets and style. On a narrow screen everything is in one column: question, picture, answers, methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from flowcut.registry import METHODS
from llava.serve.examples import EXAMPLES

NONE = "none"
OFF = "no second method"
DEFAULT_BUDGET = 64
DEFAULT_MOST = 576  # visual tokens, until a worker reports how many its model has

CSS = """
.gradio-container { max-width: 1500px !important; width: 100% !important; margin: 0 auto !important; }
#title h1 { margin-bottom: 0.2rem; }
#parts { display: grid; grid-template-columns: minmax(290px, 1fr) minmax(0, 3fr); gap: 16px; align-items: start; }
#see { grid-area: 1 / 1; } #wish { grid-area: 2 / 1; } #answers { grid-area: 1 / 2 / span 3; }
#parts > .column { min-width: 0 !important; width: 100%; }
#figures table, #history table {
  width: 100%; border: 0 !important; border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0; }
#figures thead, #figures tbody, #history thead, #history tbody, #figures tr, #history tr { border: 0 !important; }
#figures th, #figures td, #history th, #history td {
  border: 0; border-bottom: 1px solid var(--border-color-primary); padding: 4px 10px; text-align: left;
  vertical-align: top; color: var(--body-text-color); background: none; }
#figures td { text-align: right; } #figures thead th + th { text-align: right; overflow-wrap: anywhere; }
#figures th { font-weight: 400; } #figures thead th, #history thead th { font-weight: 600; }
#history td:nth-child(n + 5) { text-align: right; white-space: nowrap; }
#history thead th:nth-child(n + 5) { text-align: right; }
#history td:nth-child(3) { overflow-wrap: anywhere; min-width: 130px; }
#figures p, #history p { margin: 8px 0 0; color: var(--body-text-color); }
#figures small { opacity: 0.75; font-size: inherit; white-space: nowrap; }
.wide { overflow-x: auto; contain: inline-size; }
#details .grid-wrap { max-height: none; } #details img { object-fit: contain; }
#examples .gallery { flex-wrap: nowrap; gap: 6px; }
#examples button, #examples button > *, #examples img { width: 60px; height: 60px; cursor: pointer; }
@media (max-width: 800px) {
  #parts { display: flex; flex-direction: column; align-items: stretch; flex-wrap: nowrap; }
  #see { order: 1; } #answers { order: 2; } #wish { order: 3; }
  #parts > .column, #answers > * { max-width: 100%; min-width: 0 !important; }
  #asking { gap: 8px; } #asking > * { flex: 1 1 0; min-width: 0 !important; padding-left: 4px; padding-right: 4px; }
  #asking > #question { flex: 1 1 100%; } #asking > button { font-size: 14px; white-space: nowrap; }
  #chat-1, #chat-2 { height: 180px !important; }
  #figures table { table-layout: fixed; } #figures th, #figures td { padding: 4px; } #figures small { display: block; }
  #history table { min-width: 620px; }
  #picture { height: 220px !important; } #title p { display: none; }
}
"""


@dataclass
class MethodWidgets:
    """The choice of one side's method, and what is shown of its answer."""

    method: gr.Dropdown
    budget: gr.Slider
    settings: gr.Textbox
    column: gr.Column
    chat: gr.Chatbot
    picture: gr.Image
    layers: gr.Gallery

    @property
    def wish(self) -> list[Any]:
        """In the order of the last fields of a wish."""
        return [self.method, self.budget, self.settings]

    @property
    def shown(self) -> list[Any]:
        return [self.chat, self.picture, self.layers]


@dataclass
class Widgets:
    """The page's parts that handlers read and write."""

    session: gr.State
    text: gr.Textbox
    model: gr.Dropdown
    image: gr.Image
    examples: gr.Dataset
    sides: tuple[MethodWidgets, MethodWidgets]
    common: list[Any]  # temperature, top_p, longest answer, preparation of the picture, timed
    details: gr.Accordion
    figures: gr.HTML
    history: gr.HTML
    buttons: dict[str, gr.Button]

    @property
    def wish(self) -> list[Any]:
        return [self.model, *self.common, *self.sides[0].wish, *self.sides[1].wish]

    @property
    def outputs(self) -> list[Any]:
        shown = [*self.sides[0].shown, *self.sides[1].shown]
        return [self.session, self.text, *shown, self.details, self.figures, self.history]

    @property
    def chats(self) -> list[Any]:
        return [self.session, self.sides[0].chat, self.sides[1].chat]


def build_widgets(models: Sequence[str], title: str, session: Any, uploaded: Any) -> Widgets:
    """Lay out the page inside of a `gr.Blocks`.

    title: Markdown above everything, "" for none. uploaded: reads an upload, in place of gradio's own reader.
    """
    if title:
        gr.Markdown(title, elem_id="title")
    with gr.Row(elem_id="asking", equal_height=True):
        text = gr.Textbox(
            show_label=False,
            label="Question",
            placeholder="Ask about the picture",
            scale=8,
            min_width=220,
            elem_id="question",
            lines=1,
            max_lines=4,
            container=False,
        )
        buttons = {"send": gr.Button("Send", variant="primary", scale=1, min_width=90, elem_id="send")}
        for name, label in (("stop", "Stop"), ("again", "Ask again"), ("clear", "Clear")):
            buttons[name] = gr.Button(label, scale=1, min_width=80, elem_id=name)
    with gr.Row(elem_id="parts"):
        with gr.Column(elem_id="see"):
            image = gr.Image(
                type="filepath", label="Picture", elem_id="picture", height=300, sources=["upload", "clipboard"]
            )
            image.preprocess = uploaded  # type: ignore[method-assign]
            examples = gr.Dataset(
                label="Examples",
                components=[gr.Image(visible=False, type="filepath", height=80)],
                samples=[[str(example.picture)] for example in EXAMPLES],
                type="index",
                layout="gallery",
                elem_id="examples",
            )
        with gr.Column(elem_id="wish"):
            model = gr.Dropdown(list(models), value=next(iter(models), None), label="Model", elem_id="model")
            left, right = (_method_widgets(name) for name in ("First", "Second"))
            timed = gr.Checkbox(True, label="Measure the time to the first token", elem_id="timed")
            with gr.Accordion("Sampling and preparation", open=False):
                temperature = gr.Slider(0, 1, 0.2, step=0.1, label="Temperature", elem_id="temperature")
                top_p = gr.Slider(0, 1, 0.7, step=0.1, label="Top P")
                most = gr.Slider(1, 1024, 512, step=1, label="Most tokens of an answer")
                mode = gr.Radio(
                    ["Crop", "Resize", "Pad", "Default"], value="Default", label="Before it is sent, a picture is"
                )
        with gr.Column(elem_id="answers"):
            with gr.Row():
                sides = tuple(_side(*pair) for pair in ((1, left), (2, right)))
            with gr.Accordion("Layer by layer", open=False, visible=False, elem_id="details") as details, gr.Row():
                galleries = [_gallery(number) for number in (1, 2)]
            figures = gr.HTML(elem_id="figures", visible=False, container=True, padding=True)
            with gr.Accordion("History", open=True):
                history = gr.HTML("<p>Each answer gets a line here.</p>", elem_id="history")
    first, second = (
        MethodWidgets(*choice, column, chat, picture, gallery)
        for choice, (column, chat, picture), gallery in zip((left, right), sides, galleries, strict=True)
    )
    common = [temperature, top_p, most, mode, timed]
    return Widgets(
        gr.State(session), text, model, image, examples, (first, second), common, details, figures, history, buttons
    )


def _method_widgets(name: str) -> tuple[gr.Dropdown, gr.Slider, gr.Textbox]:
    key = name.lower()
    off = [OFF] if name == "Second" else []
    method = gr.Dropdown([*off, NONE, *METHODS], value=NONE, label=f"{name} method", elem_id=f"{key}-method")
    budget = gr.Slider(1, DEFAULT_MOST, DEFAULT_BUDGET, step=1, label="Budget", elem_id=f"{key}-budget", visible=False)
    settings = gr.Textbox(
        label="Other settings of the method", elem_id=f"{key}-settings", lines=1, max_lines=1, visible=False
    )
    return method, budget, settings


def _side(number: int, choice: tuple[gr.Dropdown, gr.Slider, gr.Textbox]) -> tuple[gr.Column, gr.Chatbot, gr.Image]:
    with gr.Column(min_width=300, elem_id=f"side-{number}") as column:
        chat = gr.Chatbot(
            label="First method" if number == 1 else "Second method",
            height=230,
            elem_id=f"chat-{number}",
            layout="bubble",
            buttons=[],
            placeholder="The answer appears here.",
        )
        picture = gr.Image(
            elem_id=f"kept-{number}",
            interactive=False,
            visible=False,
            buttons=["fullscreen"],
            format="png",
            show_label=False,
        )
    return column, chat, picture


def _gallery(number: int) -> gr.Gallery:
    return gr.Gallery(
        elem_id=f"layers-{number}",
        show_label=False,
        columns=3,
        height="auto",
        object_fit="contain",
        fit_columns=False,
        visible=False,
        format="png",
    )


def example(number: int) -> tuple[str, str]:
    """The picture and the question of an example."""
    return str(Path(EXAMPLES[number].picture)), EXAMPLES[number].question
