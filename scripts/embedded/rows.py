"""The measured rows of the embedded model: every method, with layers adapted to a language model of four layers.

    python -m scripts.embedded.rows 64          (prints the rows of a budget as flags of scripts.tables.cell)
    python -m scripts.embedded.rows flowcut     (those of a method)

The first layer alone reads 576 / 4 = 144 visual tokens on average. Methods that cut after it can therefore not reach
a mean below that; for smaller budgets, the budget is the number of tokens kept after their last cut. The page of
results has both means for every row.
"""

from __future__ import annotations

import argparse

from flowcut.cli.command_line import Parser, parse_first, program


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("asked", nargs="*", help="budgets and methods")
    return parser


parse_first(__name__, build_parser)

from flowcut.registry import parse_pruner

PATCHES, LAYERS = 576, 4
BUDGETS = (192, 128, 64, 32)
MAIN = ("random", "fastervlm", "flowcut")  # with more questions than OTHERS, and shown by the demo
RIVALS = (
    "flowcut_plus",
    "tome",
    "divprune",
    "scope",
    "cdpruner",
    "vispruner",
    "crossget",
)  # with as many questions as MAIN
OTHERS = (
    *("uniform", "pooling", "flowcut-paper", "visionzip", "hiprune", "holov", "prumerge", "prumerge_plus", "rcom"),
    *("fastv", "dart", "pdrop", "sparsevlm", "sparsevlm-plus", "st3"),
)
TRAINED = {
    "none": "trained_576",
    "flowcut:budget=192": "trained_192",
    "flowcut_plus:budget=192": "trained_plus_192",
    "flowcut:budget=128": "trained_128",
    "flowcut_plus:budget=128": "trained_plus_128",
}
"""Folder of the model that train_pruned.sh trains with each pruner, and of its results."""
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
    """OTHERS, and VTW. It has a single row, at 128: no visual tokens remain after layer 1 at any budget."""
    return [fitted(method, budget) for method in (*OTHERS, *["vtw"] * (budget == 128))]


def all_rows(budget: int) -> list[str]:
    """Every measured method at a budget, those with the most questions first."""
    return [*(fitted(method, budget) for method in (*MAIN, *RIVALS)), *rows(budget)]


@program
def main(argv: list[str] | None = None) -> None:
    for word in build_parser().parse_args(argv).asked:
        texts = rows(int(word)) if word.isdecimal() else [fitted(word, budget) for budget in BUDGETS]
        parse_pruner(texts[0])
        print(*(f"--pruner {text}" for text in texts))


if __name__ == "__main__":
    main()
