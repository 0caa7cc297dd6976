"""What the pages on adding a model and a method print is the file they speak of; tables are whole."""

import ast
import json
import re
import runpy
from pathlib import Path

import pytest

from flowcut import FasterVLM
from flowcut.anatomy.find import FAMILIES
from flowcut.registry import METHODS
from tests.flowcut.hosts import Clip
from tests.flowcut.seen import kept_of, watch

ROOT = Path(__file__).parents[2]


def test_the_example_of_a_new_family_is_the_real_file():
    text = (ROOT / "docs/adding_a_model.md").read_text()
    [shown] = re.findall(r"<!-- dinov2 -->\n```python\n(.*?)```", text, flags=re.DOTALL)
    assert shown == (ROOT / "flowcut/anatomy/dinov2.py").read_text()


def test_the_example_of_a_new_method_is_the_real_file_and_short():
    text = (ROOT / "docs/adding_a_method.md").read_text()
    [shown] = re.findall(r"<!-- fastervlm -->\n```python\n(.*?)```", text, flags=re.DOTALL)
    assert shown == (ROOT / "flowcut/methods/fastervlm.py").read_text()
    line = "from flowcut.methods.fastervlm import FasterVLM as FasterVLM"
    assert line in text.splitlines()
    assert line in (ROOT / "flowcut/methods/__init__.py").read_text().splitlines()
    assert len(code_lines(shown)) <= 15


def code_lines(source):
    """Lines that are no docstring, comment or blank."""
    tree = ast.parse(source)
    said = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            said |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(source.splitlines(), start=1)
    return [line for number, line in lines if number not in said and line.strip() and not line.strip().startswith("#")]


def test_the_test_shown_for_a_new_method_passes():
    text = (ROOT / "docs/adding_a_method.md").read_text()
    [shown] = re.findall(r"```python\n(def test_.*?)```", text, flags=re.DOTALL)
    names = {"Clip": Clip, "FasterVLM": FasterVLM, "watch": watch, "kept_of": kept_of}
    exec(shown, names)
    names["test_on_what_a_model_computes"]()


def test_rows_of_the_table_of_methods():
    """Each names registered methods, once; a new method needs none to work."""
    rows = [line for line in (ROOT / "docs/baselines.md").read_text().splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([\w-]+)`", row.split("|")[1])]
    assert len(named) == len(set(named)) >= 24
    assert set(named) <= set(METHODS)
    assert all(row.count("|") == 9 for row in rows)


def test_every_family_is_in_the_table_of_families():
    text = (ROOT / "docs/method.md").read_text()
    for family in FAMILIES:
        for name in re.findall(r"\b[A-Z]\w+Model\b|\b\w+ForC\w+", family.FAMILY):
            assert name in text, name


@pytest.mark.parametrize("file", ["vllm.json", "vllm_wider.json"])
def test_serving_page_shows_the_committed_measurements(file):
    """The page's tables of requests a second are those that the benchmark prints for its committed results."""
    bench = runpy.run_path(str(ROOT / "integrations/vllm/bench.py"))
    lines = bench["table"](json.loads((ROOT / "results" / file).read_text()))
    assert len(lines) == 2 + 5
    assert "\n".join(lines) in (ROOT / "docs/serving_vllm.md").read_text()
