"""Accuracy against visual tokens and against FLOPs, drawn from points. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scripts.tables.cells.points import Point, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"flowcut_plus": "#d9622b", "flowcut": "#2458a6"}
GREY, PALE, INK = "#8a8f98", "#c9ccd2", "#4d5564"
MARKERS = {"flowcut": "o", "flowcut_plus": "D"}
LABEL = 7.5  # points


def by_method(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points of every method, fewest tokens first; those in colour come last, so that they are drawn on top."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.method, []).append(point)
    names = sorted(found, key=lambda name: name in COLOURS)
    return {name: sorted(found[name], key=lambda point: point.tokens) for name in names if name != "none"}


def curves(points: Sequence[Point]) -> Figure:
    """Two panels with one scale of accuracy: against visual tokens on the left, against GFLOPs on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    [none] = [point for point in points if point.method == "none"]
    for ax in (left, right):
        ax.axhspan(none.low, none.high, color=GREY, alpha=0.13, linewidth=0)
        ax.axhline(none.accuracy, color=GREY, linewidth=1, linestyle="--")
        ax.grid(color="#e4e6ea", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=9)
    lines = by_method(points)
    for name, own in lines.items():
        _draw(left, name, own, [point.tokens for point in own])
        _draw(right, name, own, [point.gflops for point in own])
    for ax, value in ((left, none.tokens), (right, none.gflops)):
        ax.plot([value], [none.accuracy], "s", color=INK, markersize=6, zorder=4)
        ax.annotate("no pruning", (value, none.high), (0, 5), textcoords="offset points", ha="right", fontsize=8.5)
    left.set_xscale("log", base=2)
    ticks = sorted({point.budget for point in points})
    left.set_xticks(ticks, [str(tick) for tick in ticks])
    left.minorticks_off()
    left.set_xlim(min(ticks) / 2.6, max(ticks) * 1.15)
    left.set_xlabel("visual tokens, mean over the language model's layers", fontsize=10)
    left.set_ylabel("accuracy, % (95 % interval)", fontsize=10)
    right.set_xlabel("GFLOPs for one question: encoder, projector and prefill", fontsize=10)
    low, high = min(point.low for point in points), max(point.high for point in points)
    left.set_ylim(low - 1, high + 2.5)
    _name_ends(left, {name: own[0] for name, own in lines.items() if own[0].tokens == min(ticks)})
    _name_early(right, lines)
    _explain(right)
    return figure


def _draw(ax: Axes, name: str, own: Sequence[Point], at: Sequence[float]) -> None:
    values = [point.accuracy for point in own]
    spread = [[point.accuracy - point.low for point in own], [point.high - point.accuracy for point in own]]
    if name in COLOURS:
        colour = COLOURS[name]
        ax.errorbar(at, values, spread, color=colour, linewidth=2.2, elinewidth=1.4, capsize=3, zorder=3)
        ax.plot(at, values, MARKERS[name], color=colour, markersize=6.5, zorder=3)
        return
    inside = own[0].inside
    ax.errorbar(at, values, spread, color=GREY, alpha=0.28, linewidth=0, elinewidth=0.8, zorder=1)
    ax.plot(at, values, color=PALE, linewidth=0.9, linestyle=":" if inside else "-", zorder=1.5)
    filling = "white" if inside else GREY
    ax.plot(at, values, "o", color=GREY, markerfacecolor=filling, markersize=3.6, markeredgewidth=0.8, zorder=2)


def spaced(values: Sequence[float], gap: float) -> list[float]:
    """The values moved as little as is needed for neighbours to be at least `gap` apart, in their order.

    Neighbours that are too close form a block around their mean; blocks that meet become one.
    """
    order = sorted(range(len(values)), key=lambda index: values[index])
    blocks: list[tuple[list[int], float]] = []
    for index in order:
        members, middle = [index], values[index]
        while blocks and middle - blocks[-1][1] < gap * (len(members) + len(blocks[-1][0])) / 2:
            members = blocks.pop()[0] + members
            middle = sum(values[one] for one in members) / len(members)
        blocks.append((members, middle))
    placed = [0.0] * len(values)
    for members, middle in blocks:
        for place, index in enumerate(members):
            placed[index] = middle + gap * (place - (len(members) - 1) / 2)
    return placed


def _name_ends(ax: Axes, ends: dict[str, Point]) -> None:
    """Names at the left ends of the lines, with thin leaders where a name had to move."""
    names = list(ends)
    low, high = ax.get_ylim()
    for name, height in zip(names, spaced([ends[name].accuracy for name in names], (high - low) / 38), strict=True):
        end, colour = ends[name], COLOURS.get(name, INK)
        ax.annotate(
            label(name),
            (end.tokens * 0.97, end.accuracy),
            (end.tokens * 0.8, height),
            color=colour,
            fontsize=LABEL + 2 * (name in COLOURS),
            fontweight="bold" if name in COLOURS else "normal",
            ha="right",
            va="center",
            arrowprops={"arrowstyle": "-", "color": PALE, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 1},
        )


def _name_early(ax: Axes, lines: dict[str, list[Point]]) -> None:
    """Names of the methods that save in the encoder too: their lines lie apart from all others."""
    late = min(own[0].gflops for name, own in lines.items() if name == "random")
    for name, own in lines.items():
        if own[0].gflops < 0.95 * late:
            ax.annotate(
                label(name),
                (own[0].gflops, own[0].accuracy),
                (-7, 0),
                textcoords="offset points",
                color=COLOURS.get(name, INK),
                fontsize=LABEL + 2 * (name in COLOURS),
                fontweight="bold" if name in COLOURS else "normal",
                ha="right",
                va="center",
            )
    left, right = ax.get_xlim()
    ax.set_xlim(left - 0.16 * (right - left), right)


def _explain(ax: Axes) -> None:
    from matplotlib.lines import Line2D

    early = Line2D([], [], color=GREY, marker="o", markersize=4)
    inside = Line2D([], [], color=GREY, marker="o", markersize=4, linestyle=":")
    early.set_label("other methods: cut in or after the encoder")
    inside.set_label("other methods: cut inside the language model")
    inside.set_markerfacecolor("white")
    ax.legend(handles=[early, inside], fontsize=8.5, frameon=False, loc="lower left")
