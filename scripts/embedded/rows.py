"""The measured rows of the embedded model: every method, with layers adapted to a language model of four layers.

    python -m scripts.embedded.rows 64          (prints the rows of a budget as flags of scripts.tables.cell)
    python -m scripts.embedded.rows flowcut     (those of a method)

The first layer alone reads 576 / 4 = 144 visual tokens on average. Methods that cut after it can therefore not reach
a mean below that; for smaller budgets, the budget is the number of tokens kept after their last cut. The page of
results has both means for every row.
"""

from __future__ import annotations

import argparse

from flowcut.registry import parse_pruner
from llava.given import told_in_one_line

PATCHES, LAYERS = 576, 4
BUDGETS = (192, 128, 64, 32)
MAIN = ("random", "fastervlm", "flowcut")  # with more questions than the others
OTHERS = (
    *("uniform", "pooling", "flowcut-paper", "visionzip", "vispruner", "divprune", "cdpruner", "scope", "hiprune"),
    *("holov", "prumerge", "prumerge_plus", "tome", "rcom", "fastv", "dart", "pdrop", "sparsevlm", "sparsevlm-plus"),
)
# The tower has no text encoder, so methods that use the question run without it.
SETTINGS = {
    "fastv": "layer=1",
    "dart": "layer=1",
    "pdrop": "layers=1/2/3",
    "sparsevlm": "layers=0/1/2",
    "sparsevlm-plus": "layers=0/1/2",
    "vtw": "layer=1",
    "st3": "start=1,stride=1",
    "cdpruner": "condition=false",
    "rcom": "condition=false",
}


def fitted(method: str, budget: int) -> str:
    """The method's text form for the embedded model."""
    parts = [f"budget={budget}"]
    if method in SETTINGS:
        parts.append(SETTINGS[method])
    if budget * LAYERS <= PATCHES:
        if method in ("fastv", "dart"):
            parts.append(f"keep={budget}")
        elif method in ("pdrop", "st3"):
            ratio = (budget / PATCHES) ** (1 / 3)
            parts.append("keep=" + "/".join(str(round(PATCHES * ratio**step)) for step in (1, 2, 3)))
    return f"{method}:{','.join(parts)}"


def transferred(text: str, tokens: int) -> str:
    """A row of a 7B model, with `tokens` visual tokens per picture, at the same fraction of the embedded model's
    tokens.

    Fields with layers of the language model are replaced by those of SETTINGS; the others stay.
    """
    pruner = parse_pruner(text)
    if pruner is None:
        return "none"
    method, _, written = text.partition(":")
    share = pruner.budget if isinstance(pruner.budget, float) else pruner.budget / tokens
    base = fitted(method, round(PATCHES * share))
    if method in SETTINGS:
        return base
    return ",".join([base, *(part for part in written.split(",") if not part.strip().startswith("budget="))])


def rows(budget: int) -> list[str]:
    """The methods other than MAIN. VTW has a single row, at 128: no visual tokens remain after layer 1 at any
    budget.
    """
    return [fitted(method, budget) for method in (*OTHERS, *["vtw"] * (budget == 128))]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("asked", nargs="*", help="budgets and methods")
    return parser


def main(argv: list[str] | None = None) -> None:
    for word in build_parser().parse_args(argv).asked:
        texts = rows(int(word)) if word.isdecimal() else [fitted(word, budget) for budget in BUDGETS]
        with told_in_one_line():
            parse_pruner(texts[0])
            print(*(f"--pruner {text}" for text in texts))


if __name__ == "__main__":
    main()
