"""The paper's figures, drawn from a study alone. Needs matplotlib (`pip install llava-flowcut[flow]`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from flowcut.flow import measures
from flowcut.flow.measures import Array, Whole
from flowcut.flow.numbers import CRITERIA, boxes, criteria, per_layer, strength_lines
from flowcut.flow.study import Study
from flowcut.plots import veil

BLUE, ORANGE, GREEN, RED, GREY = "#2458a6", "#d9822b", "#3f8f4f", "#b3383b", "#8a8f98"
COLOURS = (GREY, BLUE, ORANGE, GREEN, RED, "#7a4fa3", "#4aa3a8")
MARKERS = "soD^vPX"
MAP = "magma"
PANEL = 1.9  # inches


class Drawing(NamedTuple):
    """A figure, with what it shows: for headings and files, under it, and for those who cannot see it."""

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure


def some_layers(study: Study, number: int) -> list[int]:
    """Layers spread evenly from the first one to the one that is read."""
    return sorted({round(at) for at in np.linspace(0, study.read_after, number)})


def panels(rows: int, columns: int, width: float = PANEL, height: float = PANEL) -> tuple[Figure, np.ndarray]:
    """A figure of small pictures without ticks."""
    figure = Figure(figsize=(columns * width, rows * height + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
    return figure, axes


def plain(ax: Axes, title: str, bottom: str = "layer", left: str = "") -> None:
    """The look that all diagrams share."""
    ax.set_title(title, fontsize=11, loc="left")
    ax.set_xlabel(bottom, fontsize=10)
    ax.set_ylabel(left, fontsize=10)
    ax.tick_params(labelsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#e4e6ea", linewidth=0.7)
    ax.set_axisbelow(True)


def heat(ax: Axes, study: Study, values: Array, low: float | None = 0.0) -> AxesImage:
    """Values over the patch grid, from `low` (None: the smallest value) to the largest."""
    return ax.imshow(values.reshape(study.grid), cmap=MAP, vmin=low)


def scale(figure: Figure, axes: np.ndarray) -> None:
    """One colour bar for maps that have a scale of their own each."""
    shades = ScalarMappable(Normalize(0, 1), MAP)
    bar = figure.colorbar(shades, ax=axes, location="right", shrink=0.6, aspect=18, pad=0.01, ticks=[0, 1])
    bar.ax.set_yticklabels(["0", "most\nin map"], fontsize=9)
    bar.outline.set_visible(False)  # type: ignore[operator]


def mark_read(ax: Axes, study: Study) -> None:
    """A line at the layer whose output is read."""
    ax.axvline(study.read_after, color=GREY, linewidth=0.8, linestyle=":")


def flows(study: Study, image: int) -> Drawing:
    """Figure 2, left: the strongest inflow and outflow of every patch, over the patch grid."""
    layers = some_layers(study, 5)
    figure, axes = panels(2, len(layers))
    places = np.concatenate([np.tile([[-2.5, study.grid[1] / 2 - 0.5]], (study.special, 1)), study.places])
    for row, kind in enumerate(("inflow", "outflow")):
        for ax, layer in zip(axes[row], layers, strict=True):
            steps = getattr(study.flow, kind)[image, layer]
            _arrows(ax, places, steps, study.special)
            ax.set_xlim(-1, study.grid[1])
            ax.set_ylim(study.grid[0], -3.5 if study.special else -1)
            ax.set_aspect("equal")
            ax.set_title(f"layer {layer}", fontsize=11)
        axes[row][0].set_ylabel(kind, fontsize=11)
    special = "; orange lines lead to or from CLS, drawn above the grid" if study.special else ""
    text = "Each line joins a patch with the token it takes most from (inflow) or that takes most from it (outflow)"
    caption = f"{text}{special}. A dot grows with the number of patches that meet in it. Picture: {study.names[image]}."
    alt = f"Lines between patches on a grid for layers {layers}, two rows: inflow and outflow."
    return Drawing("fig2_flows", "Figure 2, left: inflow and outflow", caption, alt, figure)


def _arrows(ax: Axes, places: Array, steps: Whole, special: int) -> None:
    tokens = np.arange(special, len(steps))
    targets = steps[tokens]
    lines = np.stack([places[tokens], places[targets]], axis=1)[..., ::-1]
    to_special = targets < special
    for chosen, colour, alpha in ((to_special, ORANGE, 0.25), (~to_special, BLUE, 0.45)):
        ax.add_collection(LineCollection(list(lines[chosen]), colors=colour, alpha=alpha, linewidths=0.6))
    counts = np.bincount(targets, minlength=len(steps))
    met = np.flatnonzero(counts)
    size = 4 + 90 * counts[met] / len(tokens)
    colours = [ORANGE if token < special else BLUE for token in met]
    ax.scatter(places[met, 1], places[met, 0], s=size, c=colours, linewidths=0, alpha=0.9)


def attention_maps(study: Study, image: int) -> Drawing:
    """Figure 2, right: whom chosen patches and CLS attend to, layer by layer."""
    layers = some_layers(study, 7)
    figure, axes = panels(len(study.chosen) + 1, len(layers))
    for row, patch in enumerate(study.chosen):
        at = np.divmod(patch, study.grid[1])
        for ax, layer in zip(axes[row], layers, strict=True):
            heat(ax, study, study.flow.maps[image, layer, row])
            ax.plot(at[1], at[0], "s", markersize=5, markerfacecolor="none", markeredgecolor="#4dd2ff")
        axes[row][0].set_ylabel(f"patch {patch}", fontsize=11)
    for ax, layer in zip(axes[-1], layers, strict=True):
        heat(ax, study, study.flow.attention[image, layer])
    axes[-1][0].set_ylabel("CLS" if study.special else "mean token", fontsize=11)
    for ax, layer in zip(axes[0], layers, strict=True):
        ax.set_title(f"layer {layer}", fontsize=11)
    scale(figure, axes)
    caption = (
        "Attention over patches; each map has its own scale, from 0 to its largest value. A blue square marks the "
        f"patch that attends. Last row: {study.relay}. Picture: {study.names[image]}."
    )
    alt = f"Heat maps: rows are patches {study.chosen} and {study.relay}, columns layers {layers}."
    return Drawing("fig2_maps", "Figure 2, right: attention of patches and of CLS", caption, alt, figure)


def trends(study: Study) -> Drawing:
    """Figure 3, left and middle: how far patches look, and how concentrated attention is."""
    rows = per_layer(study)
    layers = [row["layer"] for row in rows]
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    far, sharp, mirrored = figure.subplots(1, 3)

    def line(ax: Axes, name: str, colour: str, label: str = "", marker: str = "o") -> None:
        mean, deviation = (np.array([row[key] for row in rows]) for key in (name, f"{name}_sd"))
        ax.plot(layers, mean, color=colour, marker=marker, markersize=4, label=label)
        ax.fill_between(layers, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)

    line(far, "distance", BLUE)
    plain(far, "Distance to the strongest patch", left="patches")
    line(sharp, "entropy_ratio", ORANGE)
    plain(sharp, f"Entropy of {'CLS' if study.special else 'mean-token'} attention", left="H / ln n, from 0 to 1")
    line(
        mirrored,
        "agreement",
        GREEN,
        "cosine of a patch's and CLS's attention" if study.special else "cosine with the mean's",
    )
    if study.special:
        line(mirrored, "source_is_special", RED, "share of patches that take most from CLS", "D")
    plain(mirrored, f"Agreement with {'CLS' if study.special else 'the mean token'}", left="from 0 to 1")
    mirrored.set_ylim(top=1.35 * mirrored.get_ylim()[1])  # room for the legend
    mirrored.legend(fontsize=8.5, frameon=False, loc="upper left")
    for ax in (far, sharp, mirrored):
        mark_read(ax, study)
    first, last = rows[0], rows[study.read_after]
    caption = (
        f"Mean over {len(study.names)} pictures, band: one standard deviation. Dotted: layer {study.read_after}, whose "
        "output goes to the language model."
    )
    alt = (
        f"Three curves over layers 0 to {layers[-1]}. From the first layer to the one read, distance goes from "
        f"{first['distance']:.1f} to {last['distance']:.1f} patches, entropy ratio from {first['entropy_ratio']:.2f} "
        f"to {last['entropy_ratio']:.2f}, agreement from {first['agreement']:.2f} to {last['agreement']:.2f}."
    )
    return Drawing("fig3_trends", "Figure 3, left and middle: distance and entropy", caption, alt, figure)


def relay_maps(study: Study, image: int) -> Drawing:
    """Figure 3, right: the CLS row in every layer."""
    layers = range(study.layers) if study.layers <= 12 else some_layers(study, 12)
    columns = 6
    figure, axes = panels(-(-len(layers) // columns), columns, 1.8, 1.95)
    for ax in axes.flat[len(layers) :]:
        ax.set_visible(False)
    _, ratio = measures.entropy(study.flow.attention[image])
    for ax, layer in zip(axes.flat, layers, strict=False):
        heat(ax, study, study.flow.attention[image, layer])
        ax.set_title(f"layer {layer}: {ratio[layer]:.2f}", fontsize=10.5)
    scale(figure, axes)
    caption = (
        f"Attention of {study.relay}; the number in each title is its entropy / ln n. Each map has its own scale, from "
        f"0 to its largest value. Picture: {study.names[image]}."
    )
    alt = f"A heat map of attention over patches for each of the layers {list(layers)}."
    return Drawing("fig3_relay", "Figure 3, right: CLS attention over layers", caption, alt, figure)


def contradictions(study: Study, image: int) -> Drawing:
    """Figure 4: three criteria for the same patches of the layer that is read."""
    numbers, layer = criteria(study), study.read_after
    figure, axes = panels(1, 4, 3.0, 2.6)
    axes[0][0].imshow(study.pictures[image])
    axes[0][0].set_title("picture", fontsize=11)
    relay = "CLS" if study.special else "mean token"
    titles = (f"attention of {relay}", f"similarity of V to that of {relay}", "L1 norm of V")
    top = np.argsort(-study.flow.attention[image, layer], kind="stable")[: numbers["top"]]
    at = study.places[top]
    for ax, name, title in zip(axes[0][1:], CRITERIA, titles, strict=True):
        shades = heat(ax, study, getattr(study.flow, name)[image, layer], None)
        ax.plot(at[:, 1], at[:, 0], ".", color="#4dd2ff", markersize=4)
        ax.set_title(title, fontsize=11)
        bar = figure.colorbar(shades, ax=ax, shrink=0.8, pad=0.02)
        bar.ax.ticklabel_format(scilimits=(-2, 3), useMathText=True)
        bar.ax.tick_params(labelsize=9)
    correlation = ", ".join(f"{pair} {value:+.2f}" for pair, value in numbers["correlation"].items())
    caption = (
        f"Layer {layer}. Dots: the {len(top)} patches of highest attention. Of these, over all pictures, "
        f"{numbers['low_strength']:.0%} are in the lower half by strength, {numbers['low_similarity']:.0%} by "
        f"similarity, {numbers['low_both']:.0%} by both. Rank correlations: {correlation}."
    )
    alt = f"The picture {study.names[image]} and three heat maps of it. {caption}"
    return Drawing("fig4_criteria", "Figure 4: criteria that contradict each other", caption, alt, figure)


def strength(study: Study) -> Drawing:
    """Figure 6: information density of the kept tokens, layer by layer."""
    lines = strength_lines(study)
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    whole = lines["no pruning"]
    for (label, values), colour, marker in zip(lines.items(), COLOURS * 2, MARKERS * 2, strict=False):
        width = 2.2 if label == study.runs[0].label else 1.2
        for ax, shown in ((left, values), (right, values / whole)):
            ax.plot(shown, color=colour, label=label, marker=marker, markersize=4.5, linewidth=width)
    plain(left, "Mean L1 norm of V", left="L1 norm")
    plain(right, "The same, divided by that of no pruning", left="ratio")
    left.legend(fontsize=9, frameon=False)
    for ax in (left, right):
        mark_read(ax, study)
    caption = (
        f"Patches that entered each layer, mean over {len(study.names)} pictures. Pruners: "
        + "; ".join(f"{run.label} is {run.pruner}" for run in study.runs)
        + "."
    )
    ends = ", ".join(f"{label} {values[study.read_after]:.1f}" for label, values in lines.items())
    alt = f"Lines over layers 0 to {study.layers - 1}. Mean L1 norm of V entering layer {study.read_after}: {ends}."
    return Drawing("fig6_strength", "Figure 6: information density", caption, alt, figure)


def value_boxes(study: Study) -> Drawing:
    """Figure 7: box plots of L1(V) per layer, before and after."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    run = study.runs[0]
    for ax, found, title, colour in zip(axes, boxes(study, run), ("no pruning", run.label), (GREY, BLUE), strict=True):
        keys = {"low": "whislo", "first": "q1", "median": "med", "third": "q3", "high": "whishi"}
        drawn = [{keys[name]: getattr(one, name) for name in keys} for one in found]
        look = {"patch_artist": True, "boxprops": {"facecolor": colour, "alpha": 0.45, "edgecolor": colour}}
        ax.bxp(drawn, positions=range(len(found)), showfliers=False, medianprops={"color": "black"}, **look)
        plain(ax, title, left="L1 norm of V" if ax is axes[0] else "")
    before, after = (found[study.read_after].median for found in boxes(study, run))
    caption = "Boxes: quartiles over the patches of all pictures; whiskers: 1.5 times the box; outliers not drawn."
    alt = (
        f"Box plots per layer. The median entering layer {study.read_after} is {before:.1f} before, {after:.1f} after."
    )
    return Drawing("fig7_boxes", "Figure 7: value vectors before and after", caption, alt, figure)


def answers(study: Study, images: Sequence[int]) -> Drawing:
    """Figure 8: what each pruner keeps in the end, and what the model answers then."""
    figure, axes = panels(len(images), len(study.runs) + 1, 2.3, 2.6)
    for row, image in zip(axes, images, strict=True):
        everything = np.arange(study.grid[0] * study.grid[1])
        shown = [("no pruning", everything, study.answers)]
        shown += [(run.label, np.flatnonzero(run.kept[image]), run.answers) for run in study.runs]
        for ax, (label, kept, said) in zip(row, shown, strict=True):
            ax.imshow(veil(study.pictures[image], kept, study.grid))
            ax.set_title(f"{label}: {len(kept)}", fontsize=10)
            if said:
                ax.set_xlabel(said[image][:40] or "(empty)", fontsize=10)
    asked = f"Below each: the answer to “{study.question}”. " if study.question else ""
    caption = (
        f"{asked}Patches that were dropped are pale. A merged token shows where its target lies; CLS, which VisionZip "
        "sends on, is not drawn."
    )
    alt = "; ".join(
        f"{study.names[image]}: " + ", ".join(f"{run.label} keeps {int(run.kept[image].sum())}" for run in study.runs)
        for image in images
    )
    return Drawing("fig8_kept", "Figure 8: what is kept, and the answers", caption, alt, figure)


def streams(study: Study, image: int) -> Drawing:
    """Figures 9 and 10: chains of strongest inflow and outflow through the layers."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    found = []
    for ax, kind in zip(figure.subplots(1, 2, sharey=True), ("inflow", "outflow"), strict=True):
        steps = getattr(study.flow, kind)[image]
        ordered = steps[::-1] if kind == "inflow" else steps
        at, main = measures.chains(ordered), measures.main_stream(ordered)
        levels = np.arange(len(ordered) + 1)
        levels = levels[::-1] if kind == "inflow" else levels
        for number in range(len(ordered)):
            pairs, counts = np.unique(at[number : number + 2].T, axis=0, return_counts=True)
            lines = [[(levels[number], a), (levels[number + 1], b)] for a, b in pairs]
            widths = 0.3 + 5 * counts / at.shape[1]
            ax.add_collection(LineCollection(lines, linewidths=widths, colors=BLUE, alpha=0.3))
        ax.plot(levels[1:], main, color=RED, linewidth=1.6, marker="o", markersize=3.5, label="main streamline")
        special = "0 is CLS; " if study.special else ""
        plain(
            ax,
            kind,
            "between layers (0: input of layer 0)",
            f"token ({special}patches row by row)" if kind == "inflow" else "",
        )
        ax.legend(fontsize=8, frameon=False, loc="lower right")
        found.append(f"{kind} {main.tolist()}")
    figure.axes[0].invert_yaxis()  # and that of the other, which shares it
    caption = (
        "From every token its strongest source is followed back from the last layer (inflow), or its strongest "
        "destination onward from the first (outflow); a line is as wide as it has chains. Red: the chain that begins "
        f"where most tokens meet in the first step. Picture: {study.names[image]}."
    )
    alt = f"Two layered graphs of tokens. Main streamlines, in the order followed: {'; '.join(found)}."
    return Drawing("fig9_10_streams", "Figures 9 and 10: main streamlines", caption, alt, figure)


def strips(study: Study, images: Sequence[int]) -> Drawing:
    """Figure 11: patches left after each selection."""
    run = study.runs[0]
    steps = [run.steps(image) for image in images]
    longest = max(len(one) for one in steps)
    figure, axes = panels(len(images), longest + 1, 1.9, 2.05)
    for row, image, own in zip(axes, images, steps, strict=True):
        row[0].imshow(study.pictures[image])
        row[0].set_title(study.names[image], fontsize=9)
        for ax, (layer, kept) in zip(row[1:], own, strict=False):
            ax.imshow(veil(study.pictures[image], kept, study.grid))
            ax.set_title(f"layer {layer}: {len(kept)}", fontsize=10)
        for ax in row[1 + len(own) :]:
            ax.set_visible(False)
    counts = "; ".join(f"{study.names[i]}: {[len(k) for _, k in own]}" for i, own in zip(images, steps, strict=True))
    caption = f"{run.pruner}: the number of patches left after each layer that drops some. Dropped patches are pale."
    alt = f"Strips of pictures with ever fewer patches. Patches left: {counts}."
    return Drawing("fig11_steps", "Figure 11: patches kept, step by step", caption, alt, figure)


def draw_all(study: Study) -> list[Drawing]:
    """Every figure, in the paper's order. Single pictures show the first one given, comparisons the first three."""
    few = range(min(3, len(study.names)))
    single: list[Callable[[Study, int], Drawing]] = [flows, attention_maps]
    drawings = [draw(study, 0) for draw in single]
    drawings += [trends(study), relay_maps(study, 0), contradictions(study, 0), strength(study), value_boxes(study)]
    return [*drawings, answers(study, few), streams(study, 0), strips(study, few)]
