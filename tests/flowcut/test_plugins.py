"""Methods from outside: entry points and files, what is refused, and that text from elsewhere runs no file."""

import textwrap
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
from torch import Tensor

from flowcut import FlowCut, Scorer, View, parse_pruner, plugins
from flowcut.commands.listing import main as list_methods
from flowcut.plugins import load_file
from flowcut.registry import METHODS, all_names, pruner_from_config, pruner_to_config, pruner_to_text, register


@dataclass(frozen=True)
class KeyNorm(Scorer):
    """Keep the patches whose keys are shortest.

    Attributes:
        power: of the norm.
    """

    power: int = 1
    name: ClassVar[str] = "keynorm"

    def score(self, view: View) -> Tensor:
        return -(view.k.norm(dim=-1).mean(dim=1)[:, view.shape.num_prefix_tokens :] ** self.power)


@dataclass(frozen=True)
class Misnamed(KeyNorm):
    name: ClassVar[str] = "misnamed"


class NoDataclass(KeyNorm):
    name: ClassVar[str] = "plain"


@pytest.fixture
def methods(monkeypatch):
    """The registry, as it was again afterwards, with the entry points of a package that is not installed."""
    before = dict(METHODS)
    values = {
        "keynorm": "KeyNorm",
        "other": "Misnamed",
        "plain": "NoDataclass",
        "missing": "Nowhere",
        "text": "textwrap",
    }
    points = {name: EntryPoint(name, f"{__name__}:{value}", plugins.GROUP) for name, value in values.items()}
    monkeypatch.setattr(plugins, "declared", lambda: points)
    yield METHODS
    METHODS.clear()
    METHODS.update(before)


def test_an_entry_point_has_a_text_form_and_a_config(methods):
    assert "keynorm" not in methods
    assert "keynorm" in all_names()
    pruner = parse_pruner("keynorm:budget=5,power=2")
    assert pruner == KeyNorm(5, power=2)
    assert pruner_to_text(pruner) == "keynorm:budget=5,power=2"
    assert pruner_from_config(pruner_to_config(pruner)) == pruner
    assert methods["keynorm"].cls is KeyNorm


def test_it_is_listed_with_its_settings(methods, capsys):
    assert list_methods(["keynorm"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"keynorm: {__name__}.KeyNorm\n")
    assert "power=1 (a whole number): of the norm." in printed


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("other", "calls itself 'misnamed'; the entry point and the class's `name` have to be equal"),
        ("plain", "NoDataclass is not a dataclass"),
        ("missing", "cannot be loaded: AttributeError"),
        ("text", "is not a class derived from flowcut.Pruner"),
    ],
)
def test_entry_points_that_cannot_be_used(methods, name, said):
    with pytest.raises(ValueError, match=r"the method .* of the package") as refused:
        parse_pruner(f"{name}:budget=5")
    assert said in str(refused.value)
    assert name not in methods


def test_an_unknown_name_lists_declared_methods_too(methods):
    with pytest.raises(ValueError, match=r"unknown pruner 'nothing:budget=5'; .*, pooling, keynorm, "):
        parse_pruner("nothing:budget=5")


def test_a_name_that_is_taken(methods):
    @dataclass(frozen=True)
    class Mine(Scorer):
        name: ClassVar[str] = "flowcut"

    with pytest.raises(ValueError, match="which FlowCut has; choose another"):
        register(Mine)
    assert register(FlowCut) is FlowCut


FILE = """
    from dataclasses import dataclass
    from typing import ClassVar
    from flowcut import Scorer
    from beside import SIGN

    @dataclass(frozen=True)
    class First(Scorer):
        name: ClassVar[str] = "first-of-file"
        def score(self, view):
            return SIGN * view.global_attention()
"""


def test_a_file_is_executed_where_it_is_given(methods, tmp_path):
    (tmp_path / "beside.py").write_text("SIGN = 1.0\n")
    (tmp_path / "own_method.py").write_text(textwrap.dedent(FILE))
    cls = load_file(f"{tmp_path}/own_method.py:First")
    assert cls.__name__ == load_file(f"{tmp_path}/own_method.py").__name__ == "First"
    register(cls)
    assert parse_pruner("first-of-file:budget=3") == cls(3)
    register(load_file(f"{tmp_path}/own_method.py:First"))  # the file's next version takes the place


@pytest.mark.parametrize(
    ("content", "wanted", "said"),
    [
        (None, ":First", "does not exist; give FILE.py:Class"),
        ("x = 1", ":First", "has no First; its pruners: none"),
        ("x = 1", "", "holds 0 pruners"),
        ("class First: pass", ":First", "First is not a class derived from flowcut.Pruner"),
        ("1 / 0", ":First", "cannot be run: ZeroDivisionError"),
        ("import no_such_package", ":First", "cannot be run: ModuleNotFoundError"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, wanted, said):
    file = tmp_path / "own_faulty.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=r"\.py") if said[0] != "F" else pytest.raises(ValueError) as refused:  # noqa: PT011
        load_file(f"{file}{wanted}")
    assert said in str(refused.value)


def test_the_text_of_a_pruner_never_runs_a_file(tmp_path):
    (tmp_path / "own_trap.py").write_text("raise SystemError('executed')\n")
    with pytest.raises(ValueError, match="unknown pruner"):
        parse_pruner(f"{tmp_path}/own_trap.py:First:budget=3")
    with pytest.raises(ValueError, match="unknown pruner method"):
        pruner_from_config({"method": f"{tmp_path}/own_trap.py:First", "budget": 3})
