"""A cell of POPE, on miniature data and a tiny model."""

import shutil

import pytest

from scripts.tables.cells.document import read_document
from tests.llava.eval.data_tree import make_data_tree
from tests.scripts.tables.cells.made_here import at, made_here


@pytest.fixture(scope="session")
def root(tmp_path_factory, llava_folder):
    """A folder with model, data, and the cell of POPE."""
    folder = tmp_path_factory.mktemp("cells")
    shutil.copytree(llava_folder, folder / "model")
    make_data_tree(folder / "eval", ("pope", "gqa", "sqa"))
    made_here(at(folder))
    return folder


@pytest.fixture
def copied(root, tmp_path):
    """The cell of POPE in a folder of the test's own."""
    shutil.copytree(root, tmp_path / "own")
    cell = at(tmp_path / "own")
    assert read_document(cell) is not None
    return cell
