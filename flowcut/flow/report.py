"""A study as a folder: one HTML page that needs nothing else, figures as PNG and SVG, numbers as CSV and JSON."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image

from flowcut.flow.figures import Drawing, draw_all
from flowcut.flow.numbers import numbers_of, write_tables
from flowcut.flow.study import Study

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2330; background: #fff; max-width: 68rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin: 2.4rem 0 .4rem }
figure { margin: 0 } img { max-width: 100%; height: auto; display: block }
figcaption, p.note { color: #4d5564; font-size: .9rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .85rem; margin: .6rem 0 }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #e4e6ea }
th:first-child, td:first-child { text-align: left } thead th { border-bottom: 2px solid #8a8f98 }
"""

WIDTH = 1000
"""Of a PNG at most, in pixels; the SVG beside it is sharp at any size."""

COLUMNS = (
    "Nothing cut; means over pictures. distance: between a patch and the patch it attends to most, in patches. "
    "entropy: of CLS attention over patches, in nats, and over ln n. agreement: cosine of a patch's attention with "
    "that of CLS. to special: a patch's attention to special tokens; source is special: patches that take most from "
    "one. distinct sources: patches that some patch attends to most."
)


def png(drawing: Drawing) -> bytes:
    """The figure as a PNG file in true colours."""
    buffer = io.BytesIO()
    drawing.figure.savefig(buffer, dpi=min(110, WIDTH / drawing.figure.get_figwidth()), format="png")
    small = io.BytesIO()
    Image.open(buffer).convert("RGB").save(small, "PNG", optimize=True)
    return small.getvalue()


def svg(drawing: Drawing) -> str:
    """The figure as an SVG file: lines and text are vectors, and photographs in it are JPEGs."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": drawing.name}):
        drawing.figure.savefig(buffer, format="svg", metadata={"Date": None})
    return re.sub(r"data:image/png;base64,\s*([A-Za-z0-9+/=\s]+)", _embedded, buffer.getvalue())


def _embedded(found: re.Match[str]) -> str:
    """A bitmap of an SVG; as JPEG if that takes less room."""
    given = base64.b64decode(found[1])
    small = io.BytesIO()
    Image.open(io.BytesIO(given)).convert("RGB").save(small, "JPEG", quality=88, optimize=True)
    kind, content = ("jpeg", small.getvalue()) if 2 * small.tell() < len(given) else ("png", given)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def write_report(study: Study, folder: Path) -> Path:
    """Draw a study into a folder; returns the page. Numbers that are not there are null in JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    study.save(folder)
    write_tables(study, folder)
    numbers = numbers_of(study)
    (folder / "numbers.json").write_text(json.dumps(_without_nan(numbers), indent=1) + "\n", "utf-8")
    parts = []
    for drawing in draw_all(study):
        content = png(drawing)
        (folder / f"{drawing.name}.png").write_bytes(content)
        (folder / f"{drawing.name}.svg").write_text(svg(drawing), "utf-8")
        parts.append(_figure(drawing, content))
    page = folder / "index.html"
    page.write_text(_page(study, numbers, parts), "utf-8")
    return page


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _figure(drawing: Drawing, content: bytes) -> str:
    data = base64.b64encode(content).decode("ascii")
    return (
        f'<h2>{escape(drawing.title)}</h2>\n<figure><img alt="{escape(drawing.alt)}" '
        f'src="data:image/png;base64,{data}">\n<figcaption>{escape(drawing.caption)}</figcaption></figure>\n'
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table; floats with three digits after the point, what is missing as a dash."""

    def cell(value: object) -> str:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "-"
        return f"{value:.3f}" if isinstance(value, float) else escape(str(value))

    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'


def _tables(study: Study, numbers: dict[str, Any]) -> str:
    layers = numbers["layers"]
    names = [name for name in layers[0] if not name.endswith("_sd")]
    found = numbers["criteria"]
    pairs = [(pair, value) for pair, value in found["correlation"].items()]
    low = [(name, found[name]) for name in ("low_similarity", "low_strength", "low_both")]
    spread = [(label, one["mean"], one["deviation"], one["larger"]) for label, one in numbers["spread"].items()]
    parts = [
        f'<h2>Numbers</h2>\n<p class="note">{escape(COLUMNS)}</p>\n',
        table([name.replace("_", " ") for name in names], ([row[name] for name in names] for row in layers)),
        f'<p class="note">Rank correlations at layer {found["layer"]}, and the share of the {found["top"]} patches of '
        "highest attention that lie in the lower half by other criteria.</p>\n",
        table(["", "value"], [*pairs, *low]),
        '<p class="note">Mean distance between two kept patches (all patches: what a random choice would have), and '
        "the share of pictures where the first pruner's is larger.</p>\n",
        table(["", "mean", "sd", "first is larger"], spread),
    ]
    if study.question:
        said = zip(study.names, study.answers, *(run.answers for run in study.runs), strict=True)
        parts += [f'<p class="note">{escape(study.question)}</p>\n']
        parts += [table(["picture", "no pruning", *(run.label for run in study.runs)], said)]
    return "".join(parts)


def _page(study: Study, numbers: dict[str, Any], figures: Sequence[str]) -> str:
    title = f"Information flow in {study.model}"
    relay = f"Where the paper speaks of CLS, this page shows {study.relay}." if not study.special else ""
    shown = f"{len(study.names)} picture{'s' if len(study.names) > 1 else ''}: {', '.join(study.names)}."
    grid = f"{study.grid[0]} x {study.grid[1]} patches, {study.layers} layers, special tokens: {study.special}."
    read = (
        f"Layers count from 0; layer {study.read_after} is the one whose output a LLaVA hands on to its language model."
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"<p>{escape(' '.join(filter(None, [shown, grid, read, relay])))}</p>\n"
        f"{''.join(figures)}{_tables(study, numbers)}</body>\n</html>\n"
    )
