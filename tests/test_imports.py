"""Knowledge runs one way: no import circle, and every arrow goes from an upper room to a lower one.

Imports inside functions and under TYPE_CHECKING count. A package's own `__init__` is not counted as imported by its
modules.
"""

import subprocess
import sys

import pytest

from scripts import architecture
from scripts.architecture import import_graph

LAYERS = (  # from the ground up; a room imports from its own layer and those below
    ("flowcut.layer_cost", "flowcut.version", "flowcut.registered"),
    ("flowcut.compat", "flowcut.scores", "flowcut.trace", "flowcut.cost", "flowcut.plots", "flowcut.cli.progress"),
    ("flowcut.cli.extras",),
    ("flowcut.cli.command_line",),
    ("flowcut.cli.command_tree", "flowcut.pruner"),
    ("flowcut.methods", "flowcut.hooks", "flowcut.plugins"),
    ("flowcut.registry", "flowcut.anatomy", "flowcut.summary"),
    ("flowcut.attach", "flowcut.text_tower", "flowcut.commands.listing"),
    ("flowcut.api", "flowcut.bench"),
    ("flowcut.checkpoints",),
    ("flowcut.flow", "flowcut.vtw_search", "flowcut.calibrate", "flowcut.commands.show", "flowcut.commands.compare"),
    ("flowcut.__main__",),
)
APART = (("flowcut.methods", "flowcut.hooks"), ("flowcut.hooks", "flowcut.methods"))  # a method knows no model
DOOR = "flowcut.checkpoints"


@pytest.fixture(scope="module")
def graph():
    return import_graph()


def test_no_circles(graph):
    """What imports none of the rest, or is imported by none of it, is taken away until only circles remain."""
    rest = {name: set(arrows) for name, arrows in graph.items()}
    while True:
        imported = set().union(*rest.values()) if rest else set()
        ends = {name for name, arrows in rest.items() if not arrows or name not in imported}
        if not ends:
            break
        rest = {name: arrows - ends for name, arrows in rest.items() if name not in ends}
    assert sorted(rest) == []


def layer_of(name):
    """The number of the layer that a module of flowcut belongs to; None for the package's own face."""
    for number, rooms in enumerate(LAYERS):
        if any(name == room or name.startswith(f"{room}.") for room in rooms):
            return number
    assert name == "flowcut", f"{name} stands in no layer; write it into LAYERS"
    return None


def test_arrows_go_down(graph):
    wrong = []
    for name, arrows in graph.items():
        if not name.startswith("flowcut."):
            continue
        for other in arrows:
            if other.startswith("flowcut.") and layer_of(other) > layer_of(name):
                wrong.append((name, other))
            if any(name.startswith(one) and other.startswith(two) for one, two in APART):
                wrong.append((name, other))
    assert wrong == []


def test_flowcut_reaches_llava_through_one_door(graph):
    assert _importing(graph, "flowcut", "llava") == [DOOR]


def test_libraries_do_not_know_the_scripts(graph):
    assert _importing(graph, "flowcut", "scripts") == _importing(graph, "llava", "scripts") == []


def _importing(graph, package, other):
    """The modules of a package that import something of another one."""
    names = [name for name in graph if name.split(".")[0] == package]
    return sorted(name for name in names if any(arrow.split(".")[0] == other for arrow in graph[name]))


def test_the_picture_is_up_to_date(capsys):
    assert architecture.main(["--check"]) == 0


def test_what_counts_as_an_import(tmp_path):
    """Inside functions, under TYPE_CHECKING, and through a name that is a module."""
    (tmp_path / "flowcut").mkdir()
    for package in ("llava", "scripts"):
        (tmp_path / package).mkdir()
    (tmp_path / "flowcut/__init__.py").write_text("")
    (tmp_path / "flowcut/a.py").write_text("def f():\n    from flowcut import b\n")
    (tmp_path / "flowcut/b.py").write_text("if TYPE_CHECKING:\n    from flowcut.c import C\nimport os\n")
    (tmp_path / "flowcut/c.py").write_text("class C: ...\n")
    graph = import_graph(tmp_path)
    assert graph == {"flowcut": set(), "flowcut.a": {"flowcut.b"}, "flowcut.b": {"flowcut.c"}, "flowcut.c": set()}


def test_the_library_is_imported_without_transformers_and_the_compiler_and_the_list_without_torch():
    """They take seconds, and are there in any case once a model is."""
    code = (
        "import sys, flowcut\n"
        "assert 'torch' not in sys.modules\n"
        "import flowcut.__main__\n"
        "flowcut.__main__.main(['list'])\n"
        "assert 'torch' not in sys.modules\n"
        "from flowcut import *\n"
        "attach\n"
        "print([name for name in ('transformers', 'torch._dynamo') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert lines[0].startswith("flowcut: ")
    assert lines[-1] == "[]"
