"""FlowCut (Tong et al., "FlowCut: Rethinking Redundancy via Information Flow for Efficient Vision-Language Models").

After each encoder layer every patch gets an importance score from three criteria, which is averaged with its past;
after every second layer the least important patches go. How many go follows from how concentrated the CLS attention is.
Families with long inputs (LLaVA-NeXT, Qwen2-VL) leave the encoder with more tokens than the budget and are cut to it
after the language model's second layer. docs/method.md says where the paper and its released code differ, and which
field below switches each difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from flowcut import scores
from flowcut.methods import flow_score
from flowcut.pruner import Budget, Cut, EncoderShape, LanguageView, ModelShape, Pruner, Rows, View
from flowcut.pruner.fused import fused


@dataclass(frozen=True)
class FlowCut(Pruner):
    """Drop patches after every second encoder layer by attention, similarity and value norm, accumulated over layers.

    The defaults reproduce what the released code computes for a single image.

    Attributes:
        budget: visual tokens that reach the language model (in two-stage families: its third and later layers), per
            image or video frame; as a float, a share of its unpruned tokens (`Rows.unpruned_tokens`).
        interval: select after every `interval`-th layer, counted back from `last_layer`. One longer than the encoder
            selects a single time.
        last_layer: encoder layer after whose output the budget is met, counted from the end. None takes the family's:
            -3 (the one before the layer LLaVA reads its features from), in Qwen2-VL -1.
        history: weight of the past in the cumulative score; 0 scores each layer by itself.
        attention, semantic, value: which criteria take part.
        adaptive: take the number to drop from the attention's entropy (equation 3); otherwise drop the same share
            each time.
        counts: how many patches of an image stay at each selection but the last, in place of what equation 3 says (and
            in merge groups, whole groups of them); see `calibrated`.
        batch_coupling: "none" lets every image decide for itself; "max" drops the largest number of any image in the
            batch from all of them, as the released code does.
        semantic_scale: divide value products by nothing ("none"), by sqrt of the head's width ("head"). In the language
            model it is always the latter.
        heads: "split" computes semantic relevance per head and averages, and averages values over heads before their
            norm; "joined" takes the whole value vector for both (with semantic_scale="head": over sqrt of its width).
        softmax_over: "all" tokens, CLS included, or "patches" only.
        entropy_over: "patches", renormalised to sum 1, or "all" tokens as they are.
        steps_left: the L of equation 3: "layers" to the last selection, or "selections" still to come.
        merge: where patches are merged into one token four by four (Qwen2-VL): keep whole "groups", or single
            "patches", of which four that were no neighbours then make a token.
        patch_positions: M-RoPE position ids of kept tokens: their "own", or the "first" ones of their image.
        language_layer: decoder layer of two-stage families after which the budget is met; not before visual tokens have
            all their features, which in Qwen3-VL is after the last layer that DeepStack adds to.

    Raises:
        ValueError: a field has a value that is not allowed.
    """

    name: ClassVar[str] = "flowcut"
    reference: ClassVar[str] = "FlowCut, arXiv 2505.19536, as released"
    presets: ClassVar = {
        "flowcut-paper": ("paper", "FlowCut, arXiv 2505.19536, its equations to the letter"),
        "flowcut-qwen2-vl-released": ("released_qwen2_vl", "FlowCut, arXiv 2505.19536, as released for Qwen2-VL"),
    }

    interval: int = 2
    last_layer: int | None = None
    history: float = 0.5
    attention: bool = True
    semantic: bool = True
    value: bool = True
    adaptive: bool = True
    counts: tuple[int, ...] | None = None
    batch_coupling: Literal["none", "max"] = "none"
    semantic_scale: Literal["none", "head"] = "none"
    heads: Literal["split", "joined"] = "split"
    softmax_over: Literal["all", "patches"] = "all"
    entropy_over: Literal["patches", "all"] = "patches"
    steps_left: Literal["layers", "selections"] = "layers"
    merge: Literal["groups", "patches"] = "groups"
    patch_positions: Literal["own", "first"] = "own"
    language_layer: int = 1

    def __repr__(self) -> str:
        """As of a dataclass, without `counts` where there are none: results from before it came keep their name."""
        shown = [field.name for field in fields(self) if field.name != "counts" or self.counts is not None]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of(self, "batch_coupling", "none", "max")
        _one_of(self, "semantic_scale", "none", "head")
        _one_of(self, "heads", "split", "joined")
        _one_of(self, "softmax_over", "all", "patches")
        _one_of(self, "entropy_over", "patches", "all")
        _one_of(self, "steps_left", "layers", "selections")
        _one_of(self, "merge", "groups", "patches")
        _one_of(self, "patch_positions", "own", "first")
        if self.counts is not None and any(count < 1 for count in self.counts):
            raise ValueError(f"counts={_written(self.counts)} are not all numbers of patches >= 1")
        if self.interval < 1:
            raise ValueError(f"interval={self.interval} is not a number of layers >= 1; the paper's is 2")
        if self.last_layer is not None and self.last_layer > -1:
            raise ValueError(f"last_layer={self.last_layer} counts from the encoder's end, so -1 or less; default -3")
        if not 0 <= self.history < 1:
            raise ValueError(f"history={self.history} is not a weight in [0, 1); the paper's is 0.5")
        if not (self.attention or self.semantic or self.value):
            raise ValueError("attention, semantic and value are all off: leave at least one criterion on")
        if self.merge == "patches" and self.patch_positions == "own":
            raise ValueError(
                "merge='patches' makes tokens that have no position of their own; use patch_positions='first'"
            )
        if self.language_layer < 0:
            raise ValueError(f"language_layer={self.language_layer} is not a layer's number >= 0; the paper's is 1")

    @classmethod
    def paper(cls, budget: Budget, **fields: Any) -> FlowCut:
        """The paper's equations 1 to 6 to the letter; where they are silent, the released code's choice.

        Equation 4 divides value products by sqrt(D_v), equation 2 sums over all N tokens of the sequence and so takes
        log N of it, and the L of equation 3 is the number of prunings still to come.
        """
        literal = {"semantic_scale": "head", "entropy_over": "all", "steps_left": "selections"}
        return cls(budget=budget, **{**literal, **fields})

    @classmethod
    def released_qwen2_vl(cls, budget: Budget, **fields: Any) -> FlowCut:
        """What the released code does in Qwen2-VL, where the default does better.

        It scores patches by attention and value alone, merges survivors four by four though they are no neighbours,
        and gives kept tokens the image's first M-RoPE position ids.
        """
        released = {"semantic": False, "merge": "patches", "patch_positions": "first"}
        return cls(budget=budget, **{**released, **fields})

    @classmethod
    def calibrated(cls, budget: Budget, counts: tuple[int, ...], **fields: Any) -> FlowCut:
        """With numbers that are fixed beforehand: the means of those that equation 3 gives for a set of images.

        Nothing then depends on the attention's entropy. So no layer waits for the host, rows of a batch stay equally
        long, and an encoder can be captured in a CUDA graph or compiled as a whole. The paper does not do this.
        `python -m flowcut.calibrate` finds the numbers.
        """
        return cls(budget=budget, counts=counts, **fields)

    @property
    def keeps_groups(self) -> bool:
        return self.merge == "groups"

    @property
    def keeps_position_ids(self) -> bool:
        return self.patch_positions == "own"

    def check(self, shape: ModelShape) -> None:
        if self.merge == "patches" and any(encoder.windowed or encoder.tapped for encoder in shape.encoders):
            raise ValueError(
                "merge='patches' is what the released code does in Qwen2-VL; in Qwen2.5-VL and Qwen3-VL use 'groups'"
            )
        if self.merge == "patches" and any(encoder.cell for encoder in shape.encoders):
            raise ValueError("merge='patches' is what the released code does in Qwen2-VL; here use 'groups'")
        for encoder in shape.encoders:
            last = self.last(encoder) - encoder.layers
            if self.last(encoder) < 0:
                raise ValueError(f"last_layer={last} is not in this encoder, which has only {encoder.layers} layers")
            before = len(self.selections(encoder)) - 1
            if self.counts is not None and len(self.counts) != before:
                raise ValueError(
                    f"counts={_written(self.counts)} are {len(self.counts)} numbers, and before the last one this "
                    f"encoder has {before} selections; `python -m flowcut.calibrate` finds as many"
                )
        layers, cut = shape.decoder_layers, self.cut_after(shape)
        if shape.two_stage and layers is not None and cut >= layers:
            raise ValueError(f"language_layer={cut} is not in this decoder, which has only {layers} layers")

    def cut_after(self, shape: ModelShape) -> int:
        """The decoder layer after which the budget is met."""
        return max(self.language_layer, shape.complete_after)

    def last(self, shape: EncoderShape) -> int:
        """The encoder layer after which the budget is met."""
        return shape.layers + (shape.last_layer if self.last_layer is None else self.last_layer)

    def selections(self, shape: EncoderShape) -> list[int]:
        """The encoder layers after which it selects, ascending."""
        return list(range(self.last(shape) % self.interval, self.last(shape) + 1, self.interval))

    def reads_layer(self, layer: int, shape: EncoderShape) -> bool:
        return layer <= self.last(shape)

    def cuts_language(self, two_stage: bool) -> bool:
        return two_stage

    def targets(self, rows: Rows, shape: EncoderShape) -> list[int]:
        """How many patches each row may have when it leaves the encoder.

        Where a second cut follows, half the budget per anyres tile (all of it for an image of one tile, and for a frame
        of a video), or twice the budget of merged tokens, spread over an image's tiles.
        """
        if not shape.two_stage:
            return super().targets(rows, shape)
        if shape.patches_per_token > 1:
            return [2 * target for target in super().targets(rows, shape)]
        budgets = rows.budgets(self.budget)
        return [max(budget // 2, 1) if tiles > 1 else budget for tiles, budget in zip(rows.tiles, budgets, strict=True)]

    def vision(self, view: View) -> Cut | None:
        left = self.last(view.shape) - view.layer
        targets = self.targets(view.rows, view.shape)
        if left < 0 or all(count <= target for count, target in zip(view.counts, targets, strict=True)):
            return None
        self.look(view, left % self.interval)
        if left % self.interval:
            return None
        (cumulative, scale), weights = self.importance(view)
        counts = self.keep_counts(view, weights, targets, left)
        cut = Cut.best(cumulative, counts, view.valid) if self.merge == "patches" else view.best(cumulative, counts)
        view.memory["cumulative"] = (cumulative.gather(1, cut.keep), scale) if left else None
        return cut

    def language(self, view: LanguageView) -> Cut | None:
        """After the decoder layer of `cut_after`: keep the budget by what the last token attends to and resembles."""
        if view.layer != self.cut_after(view.shape):
            return None
        counts = [
            min(n, self.tokens_of(whole)) for n, whole in zip(view.counts, view.layout.unpruned_tokens, strict=True)
        ]
        if counts == list(view.counts):
            return None
        keys, values = view.visual(view.k), view.visual(view.v)
        attention = scores.softmax_row(view.last_token(view.q), keys, view.scaling, view.valid).mean(dim=1)
        scale = values.shape[-1] ** -0.5
        semantic = scores.softmax_row(view.last_token(view.v), values, scale, view.valid).mean(dim=1)
        value = scores.value_strength(values)
        score = (scores.normalise(attention) + scores.normalise(semantic)) * value
        for name, signal in {"attention": attention, "semantic": semantic, "value": value, "score": score}.items():
            view.record(name, signal)
        return Cut.best(score, counts, view.valid, renumber=True)

    def look(self, view: View, more: int) -> None:
        """Note what the next selection, `more` layers later, needs of this layer: the tokens stay the same until then.

        In the memory, "looks" are of the layers since the last selection, or compiled ratings of each of them.
        """
        prefix = view.shape.num_prefix_tokens if self.softmax_over == "patches" else 0
        attention = view.global_token(view.q), view.k[:, :, prefix:], view.scaling
        values = view.v if self.heads == "split" else view.v.transpose(1, 2).flatten(2)[:, None]
        scale = 1.0 if self.semantic_scale == "none" else values.shape[-1] ** -0.5
        semantic = (view.global_token(values), values[:, :, prefix:], scale) if self.semantic else None
        strong = view.visual(values) if self.value else None
        bias = view.key_bias if not prefix or view.key_bias is None else view.key_bias[:, prefix:]
        looks = view.memory.get("looks")
        if view.compile:
            rating = fused(flow_score.layer_score)(attention, semantic, strong, bias, *self.rated_by(view))
            view.memory["looks"] = [*(looks or []), (view.layer, rating)]
            return
        if looks is None:
            looks = view.memory["looks"] = flow_score.Looks(more + 1, attention, semantic, strong)
        looks.add(view.layer, attention, semantic, strong, bias)

    def rated_by(self, view: View) -> tuple[int, bool]:
        """How many patches there are, and whether attention counts: arguments of `rate`."""
        return view.positions.shape[1], self.attention

    def importance(self, view: View) -> tuple[tuple[Tensor, float], Tensor]:
        """Rate the layers since the last selection.

        Returns:
            their scores [R, n] averaged with the past by equation 6, as `scores.accumulate` has them; and [R, n], the
            weights of the last layer's attention whose entropy equation 3 takes, or [R, S] with special tokens.
        """
        looks = view.memory.pop("looks")
        if isinstance(looks, flow_score.Looks):
            together = looks.rate(*self.rated_by(view))
            ratings = [(layer, together, at) for at, layer in enumerate(looks.layers)]
        else:
            ratings = [(layer, rating, 0) for layer, rating in looks]
        cumulative = view.memory.get("cumulative")
        for layer, rating, at in ratings:
            cumulative = scores.accumulate(cumulative, *rating.factors(at), self.history)
            if view.recording:
                signals = rating.signals(at, view.positions.shape[1]) | {"cumulative": cumulative[0] * cumulative[1]}
                for name, values in signals.items():
                    view.record(name, values, layer)
        assert cumulative is not None
        return cumulative, (rating.shares if self.entropy_over == "patches" else rating.rows)[0, at]

    def keep_counts(self, view: View, weights: Tensor, targets: list[int], left: int) -> list[int]:
        """How many patches each row keeps after this layer; equation 3."""
        goals = [min(n, target) for n, target in zip(view.counts, targets, strict=True)]
        unit = 1 if self.merge == "patches" else view.shape.patches_per_token
        if left == 0:
            return goals
        if self.counts is not None:
            fixed = self.counts[-(left // self.interval)] // unit * unit
            return [max(min(n, fixed), goal) for n, goal in zip(view.counts, goals, strict=True)]
        if not self.adaptive:
            share = 1 / (left // self.interval + 1)
            return [round(n / unit * (goal / n) ** share) * unit for n, goal in zip(view.counts, goals, strict=True)]
        extra = weights.shape[1] - view.positions.shape[1]
        entropy = scores.entropy(weights)
        view.record("entropy", entropy)
        steps = left if self.steps_left == "layers" else left / self.interval
        drops = [
            scores.prune_number(n, goal, steps, h / math.log(n + extra)) if n > goal else 0.0
            for n, goal, h in zip(view.counts, goals, view.numbers(entropy), strict=True)
        ]
        view.record("prune_number", torch.tensor(drops))
        together = view.rows.groups if self.batch_coupling == "none" else (0,) * len(drops)
        largest: dict[int, float] = {}
        for group, drop in zip(together, drops, strict=True):
            largest[group] = max(drop, largest.get(group, drop))
        return [
            max(n - round(largest[group] / unit) * unit, goal)
            for n, goal, group in zip(view.counts, goals, together, strict=True)
        ]


def _written(counts: Sequence[int]) -> str:
    """Numbers as they stand in a pruner's text."""
    return "/".join(map(str, counts))


def _one_of(pruner: Pruner, name: str, *allowed: str) -> None:
    given = getattr(pruner, name)
    if given not in allowed:
        raise ValueError(f"{name}={given!r} is not allowed; choose {' or '.join(allowed)}")
