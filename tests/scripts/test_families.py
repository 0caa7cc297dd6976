"""docs/families.md is read from the code."""

import pytest

from scripts import families


@pytest.mark.slow
def test_the_page_is_up_to_date(capsys):
    families.main(["--check"])
    assert capsys.readouterr().out == "up to date\n"


def test_every_module_of_a_family_is_on_the_page():
    named = {family.__name__ for family in families.FAMILIES}
    found = {
        family.__name__
        for family in families.FAMILIES
        if any(family.read(families.model_of(cls)) is not None for cls in families.classes())
    }
    assert named - found == {"flowcut.anatomy.llava"}  # this project's own classes, of which the page tells in words
