"""Run docs/notebook.ipynb in this process and write its outputs into it: python -m scripts.notebook

Cells are run one after the other from the repository's root, without Jupyter. What a cell prints becomes its output,
and a picture that stands alone in its last line is shown below it.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any

from flowcut.cli.command_line import Parser, parse_first, program


def build_parser() -> Parser:
    return Parser(__doc__)


parse_first(__name__, build_parser)

from PIL import Image

from llava.eval.files import write_atomic

NOTEBOOK = Path("docs/notebook.ipynb")


def run(cell: dict[str, Any], names: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a code cell with the names of the cells before it; returns its outputs in the notebook's format."""
    tree = ast.parse("".join(cell["source"]))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, shown = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), names)
        if isinstance(last, ast.Expr):
            shown = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": text})
    if shown is not None:
        data: dict[str, Any] = {"text/plain": [repr(shown)]}
        if isinstance(shown, Image.Image):
            picture = io.BytesIO()
            shown.save(picture, "PNG", optimize=True)
            data = {"image/png": base64.b64encode(picture.getvalue()).decode("ascii"), "text/plain": ["<a picture>"]}
        outputs.append({"output_type": "display_data", "data": data, "metadata": {}})
    return outputs


def run_all(book: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The outputs of all code cells, in order."""
    names: dict[str, Any] = {}
    return [run(cell, names) for cell in book["cells"] if cell["cell_type"] == "code"]


@program
def main(argv: list[str] | None = None) -> None:
    build_parser().parse_args(argv)
    book = json.loads(NOTEBOOK.read_text("utf-8"))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    for number, (cell, outputs) in enumerate(zip(code, run_all(book), strict=True), 1):
        cell["outputs"], cell["execution_count"] = outputs, number
    write_atomic(NOTEBOOK, json.dumps(book, indent=1, ensure_ascii=False) + "\n")
    print(NOTEBOOK)


if __name__ == "__main__":
    main()
