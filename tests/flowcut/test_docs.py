"""What docs/adding_a_model.md prints is the file it speaks of."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_example_of_a_new_family_is_the_real_file():
    text = (ROOT / "docs/adding_a_model.md").read_text()
    [shown] = re.findall(r"<!-- dinov2 -->\n```python\n(.*?)```", text, flags=re.DOTALL)
    assert shown == (ROOT / "flowcut/anatomy/dinov2.py").read_text()


def test_every_family_is_in_the_table_of_families():
    text = (ROOT / "docs/method.md").read_text()
    for file in (ROOT / "flowcut/anatomy").glob("*.py"):
        family = re.search(r'^FAMILY = "(.*)"', file.read_text(), flags=re.MULTILINE)
        if family:
            for name in re.findall(r"\b[A-Z]\w+Model\b|\b\w+ForC\w+", family[1]):
                assert name in text, name
