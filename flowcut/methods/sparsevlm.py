"""SparseVLM (Zhang et al., ICML 2025, "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model
Inference", arXiv 2410.04417) in the form of its release 1.5, and its successor SparseVLM+ (release 2.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flowcut.methods import schedule
from flowcut.methods.text_attention import position_prior, rows_of, text_columns, text_following
from flowcut.pruner import Budget, Cut, LanguageView, ModelShape, Pruner

PUBLISHED = {
    "1.5": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    "2": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}
"""Tokens kept at the three cuts of LLaVA-1.5-7B (576 tokens, 32 layers), by release and budget."""
_RECYCLED = 0.3
_HEADS = 14 / 32


@dataclass(frozen=True)
class SparseVLM(Pruner):
    """Keep the visual tokens that relevant text tokens attend to, in three cuts after the decoder layers `layers`.

    Raters (section 3.1), once, on the embeddings given to the language model: of the text after the image those to
    which the visual tokens give more than the mean, in softmax over text of h_v · h_t, averaged over visual tokens.
    The score of a visual token is the mean over raters and heads of the attention it gets in the layer (softmax over
    all that the rater sees). The best stay; at least one goes.

    version="1.5": of D dropped tokens the best int(0.3 D) + 1 are recycled (section 3.3): clustered by density peaks
    into a tenth as many and one, and each cluster's mean goes back after the kept visual tokens, clusters in falling
    order of density times distance. Positions are counted anew. Densities are
    told apart by noise, which decides where two are equal (as often where two clusters are made); it is drawn from
    `seed`, the same for every image. In the trace a cluster bears the number of the token at its centre (a single
    cluster that of the best token in it), so there numbers do not ascend after the kept ones; it competes, and is
    recycled, like any visual token in later cuts. In half precision rounding may decide about a cluster, so law 4 (a
    sample alone = in a batch) holds there for what is kept, not always for what is merged.

    version="2" (SparseVLM+, `SparseVLM.plus`): nothing is recycled and positions stay. The attention is divided by
    what places alone would give it (q and k all ones), and only the heads that give the image most take part, 14 of
    32 (in other models that share).

    Budgets: the release's lists for 192, 128, 96 and 64 of 576 tokens in 32 layers, which meet the budget on average
    over what comes OUT of each layer; what goes in is more (206.5, 145.4, 114.1, 82.3 for 1.5). `schedule` tells
    both. Any other number of tokens, layers or budget has no published list: int(N * r), int(N * r^2), ... with the
    r that meets the budget in the same count. The adaptive number of section 3.2 is not in the released code, nor
    here.

    A batch, padding, several images: each image has raters of its own, the text after it; where no text follows,
    the text in front; with no text at all the last token. Released for one sample at a time. Tiles of an image
    (anyres) are ranked together, frames of a video each by themselves. M-RoPE tokens keep their own positions.

    Attributes:
        budget: visual tokens that come out of an average decoder layer, per image or frame.
        version: "1.5" or "2".
        layers: the layers after which tokens are dropped.
        keep: tokens that stay at each cut (clusters come on top), in place of the published or computed ones.
        heads: how many heads take part in version "2"; None for 14 of 32.
        seed: of the noise in version "1.5".
        positions: of kept tokens: counted anew, or as they were; None for what the version does.

    Raises:
        ValueError: a field has a value that is not allowed, or the budget is not to be met with these layers.
    """

    name: ClassVar[str] = "sparsevlm"
    reference: ClassVar[str] = "SparseVLM, arXiv 2410.04417, as in release 1.5"
    presets: ClassVar = {
        "sparsevlm-plus": ("plus", "SparseVLM+, github.com/Gumpest/SparseVLMs, release 2.0"),
    }
    reads_hidden: ClassVar[bool] = True  # version 1.5 does; one class for both

    version: Literal["1.5", "2"] = "1.5"
    layers: tuple[int, ...] = (2, 6, 15)
    keep: tuple[int, ...] | None = None
    heads: int | None = None
    seed: int = 0
    positions: Literal["renumbered", "original"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.version not in PUBLISHED:
            raise ValueError(f"version={self.version!r} is not allowed; choose {' or '.join(PUBLISHED)}")
        schedule.check_stages("layers", self.layers, lowest=0)
        schedule.check_kept("keep", self.keep, len(self.layers))
        if self.heads is not None and self.heads < 1:
            raise ValueError(f"heads={self.heads} is not a number of heads >= 1; the release takes 14 of 32")
        schedule.check_positions(self.positions or "renumbered")

    @classmethod
    def plus(cls, budget: Budget, **fields: Any) -> SparseVLM:
        """SparseVLM+: version 2."""
        return cls(budget=budget, **{"version": "2", **fields})

    def check(self, shape: ModelShape) -> None:
        shape.need_decoder("SparseVLM", "layers", self.layers[-1], spare=1)

    def least_budget(self, tokens: int, shape: ModelShape) -> int:
        if self.keep is not None or shape.decoder_layers is None:
            return super().least_budget(tokens, shape)
        merged = clusters_of if self.recycles else None
        return schedule.least_shrinking(tokens, shape.decoder_layers, self.layers, "outputs", merged, least=1)

    @property
    def recycles(self) -> bool:
        return self.version == "1.5"

    def schedule(self, tokens: int, layers: int) -> schedule.Schedule:
        """What becomes of an image of so many tokens in a decoder of so many layers; tells both means."""
        merged = clusters_of if self.recycles else None
        budget = self.tokens_of(tokens)
        if tokens <= budget:
            return schedule.build(tokens, layers, self.layers, [tokens] * len(self.layers))
        published = (tokens, layers, self.layers) == (576, 32, (2, 6, 15))
        kept = self.keep or (PUBLISHED[self.version].get(budget) if published else None)
        if kept is not None:
            return schedule.build(tokens, layers, self.layers, kept, merged, least=1)
        return schedule.shrinking(tokens, layers, self.layers, budget, "outputs", merged, least=1)

    def language(self, view: LanguageView) -> Cut | None:
        if view.layer == 0:
            view.memory["raters"] = [raters(view, row) for row in range(len(view.counts))]
        if view.layer not in self.layers:
            return None
        stage = self.layers.index(view.layer)
        plans = [self.schedule(tokens, view.layers) for tokens in view.initial]
        counts = [plan.kept[stage] for plan in plans]
        if counts == list(view.counts):
            return None
        scored = [self.score(view, row) for row in range(len(counts))]
        view.record("score", pad_sequence(scored, batch_first=True))
        chosen = self.positions or ("renumbered" if self.recycles else "original")
        renumber = chosen == "renumbered"
        if not self.recycles:
            return Cut.best(pad_sequence(scored, batch_first=True), counts, view.valid, renumber=renumber)
        rows = [self.recycled(view, row, score, counts[row]) for row, score in enumerate(scored)]
        return Cut.rows([keep for keep, _ in rows], [hidden for _, hidden in rows], renumber=renumber)

    def score(self, view: LanguageView, row: int) -> Tensor:
        """[n]: how much the raters look at each visual token of an image."""
        sample = view.layout.samples[row]
        text = text_columns(view, sample)
        columns = text[view.memory["raters"][row]] if len(text) else view.layout.last[sample : sample + 1]
        weights = rows_of(view, row, columns)
        if self.recycles:
            return weights.mean(dim=(0, 1))
        weights = weights / position_prior(view, row, columns)
        number = self.heads or max(round(weights.shape[0] * _HEADS), 1)
        best = weights.sum(dim=(1, 2)).argsort(descending=True, stable=True)[:number]
        return weights[best].mean(dim=(0, 1))

    def recycled(self, view: LanguageView, row: int, score: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """-> the `count` best tokens of an image and the centres of its clusters, and the states [K, D] to go there."""
        states = view.hidden[view.layout.samples[row], view.layout.columns[row, : view.counts[row]]]
        order = score.argsort(descending=True, stable=True)
        kept, dropped = order[:count].sort().values, order[count:]
        if not len(dropped):
            return kept, states
        members = dropped[: _recycled_of(len(dropped))]
        noise = self.noise(view.layer, len(members)).to(states.device)
        found = density_peaks(states[members], clusters_of(len(dropped)), noise)
        return torch.cat([kept, members[found.centres]]), torch.cat([states[kept], found.means.to(states.dtype)])

    def noise(self, layer: int, number: int) -> Tensor:
        """[number] in [0, 1): a millionth of it is added to densities."""
        return torch.rand(number, generator=torch.Generator().manual_seed(self.seed * 1000 + layer))


def raters(view: LanguageView, row: int) -> Tensor:
    """Which text tokens judge an image: numbers among `text_columns`. All where none stands out (a single word)."""
    embeddings = view.source.embeddings
    assert embeddings is not None
    sample = view.layout.samples[row]
    following = text_following(view, row)
    if not len(following):
        return following
    given = embeddings[sample].float()
    words = given[text_columns(view, sample)[following]]
    visual = given[view.layout.columns[row, : view.counts[row]]]
    relevance = (visual @ words.T).softmax(dim=-1).mean(dim=0)
    above = relevance > relevance.mean()
    return following[above] if bool(above.any()) else following


def _recycled_of(dropped: int) -> int:
    return int(_RECYCLED * dropped) + 1


def clusters_of(dropped: int) -> int:
    """How many tokens are made of a number of dropped ones."""
    return _recycled_of(dropped) // 10 + 1


class Clusters(NamedTuple):
    """centres [C]: tokens at the centres, most peaked first. assign [M]: each token's cluster. means [C, D]."""

    centres: Tensor
    assign: Tensor
    means: Tensor


def density_peaks(states: Tensor, number: int, noise: Tensor) -> Clusters:
    """Cluster tokens [M, D] by density peaks with k nearest neighbours (section 3.3 cites DPC-kNN), k = `number`.

    Distances are over sqrt(D). Density is exp(-mean squared distance to the k nearest, oneself included) plus noise
    / 10^6; a token's peak is its density times the distance to the nearest denser one (the largest of all distances
    for the densest).
    """
    points = states.float()
    # Pair by pair and not as a matrix product: d(i, j) = d(j, i) to the last bit, or ties would break differently.
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") * points.shape[1] ** -0.5
    nearest = distance.topk(min(number, len(points)), dim=1, largest=False).values
    density = (-nearest.square().mean(dim=1)).exp() + noise.float() * 1e-6
    denser = density[None] > density[:, None]
    apart = distance.masked_fill(~denser, torch.inf).amin(dim=1)
    apart = torch.where(denser.any(dim=1), apart, distance.max())
    centres = (density * apart).argsort(descending=True, stable=True)[:number]
    if number == 1:  # every density is 1 then: the noise alone would name a centre, of a cluster that all join
        centres = torch.zeros_like(centres)
    assign = distance[centres].argmin(dim=0)
    assign[centres] = torch.arange(len(centres), device=assign.device)
    total = torch.zeros(len(centres), points.shape[1], device=points.device).index_add(0, assign, points)
    size = torch.bincount(assign, minlength=len(centres))[:, None]
    return Clusters(centres, assign, total / (size + 1e-6))
