"""The paper's equations as pure functions of tensors. Everything is computed in float32, whatever the model runs in.

Shapes: B samples, H heads, N tokens, D entries per head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny
_WIDTH_PER_SAMPLE = 128
_SMALL = 1e-12  # float32 has room for the inverse, and for scores times it


def products_shape(keys_BHND: Tensor) -> tuple[int, int, int]:
    """The shape of `row_products`."""
    batch, heads, tokens, width = keys_BHND.shape
    if 1 < batch <= heads * width // _WIDTH_PER_SAMPLE:
        return heads, batch, batch * tokens
    return batch * heads, 1, tokens


def row_products(
    query_BHD: Tensor, keys_BHND: Tensor, scale: float, bias_BN: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """scale * query·key + bias for one query per sample and head, float32, as `row_logits` and `row_weights` take it.

    A batch that attention made lies as [B, N, H, D] in memory, so products by sample and head would have to copy its
    keys. In a small batch each head's queries of all samples therefore meet all keys, and each sample's own part is
    taken as a view; small enough that this is about a thousandth of an encoder layer's FLOPs. On a GPU keys of 16 bits
    are not copied either: their products are exact in float32, where they are summed.

    Args:
        bias_BN: float32, as in `flowcut.pruner.padding.Padding`.
        out: where to write it.
    """
    batch, heads, tokens, _ = keys_BHND.shape
    if torch.compiler.is_compiling():  # fuses with what follows
        logits = (query_BHD.float()[:, :, None] * keys_BHND).sum(dim=-1, dtype=torch.float32) * scale
        return (logits if bias_BN is None else logits + bias_BN[:, None]).flatten(0, 1)[:, None]
    shape = products_shape(keys_BHND)
    if batch == 1:
        queries, keys = query_BHD[0, :, None], keys_BHND[0].mT
    elif shape[1] > 1:
        queries, keys = query_BHD.transpose(0, 1), keys_BHND.transpose(0, 1).flatten(1, 2).mT
    else:
        queries, keys = query_BHD.flatten(0, 1)[:, None], keys_BHND.flatten(0, 1).mT
    if bias_BN is None:
        bias = torch.empty(1, 1, 1, device=keys.device)  # not read
    elif batch == 1 or shape[1] > 1:
        bias = bias_BN.reshape(1, 1, -1)
    else:
        bias = bias_BN[:, None].expand(batch, heads, tokens).reshape(shape)
    if keys.is_cuda and keys.dtype == queries.dtype != torch.float32 and hasattr(torch.ops.aten.bmm, "dtype"):
        products = torch.bmm(queries, keys, out_dtype=torch.float32)
        if bias_BN is None:
            return torch.mul(products, scale, out=out)
        return torch.add(bias, products, alpha=scale, out=out)
    beta = 0 if bias_BN is None else 1
    return torch.baddbmm(bias, queries.float(), keys.float(), beta=beta, alpha=scale, out=out)


def _by_sample(products: Tensor, batch: int) -> Tensor:
    """[.., B, H, N], or, where all queries met all keys, [.., H, B, B, N]."""
    if products.shape[-2] == 1:
        return products.unflatten(-3, (batch, -1)).squeeze(-2)
    return products.unflatten(-1, (batch, -1))


def row_logits(query_BHD: Tensor, keys_BHND: Tensor, scale: float) -> Tensor:
    """scale * query·key for one query per sample and head, float32. -> [B, H, N]."""
    products = row_products(query_BHD, keys_BHND, scale)
    found = _by_sample(products, len(keys_BHND))
    return found if products.shape[-2] == 1 else found.diagonal(dim1=1, dim2=2).permute(2, 0, 1)


def row_weights(products: Tensor, batch: int) -> Tensor:
    """Softmax over N of `row_products` [.., *shape] (1 < batch: of all of them, which spares a copy), mean over heads.

    Returns:
        [.., B, N].
    """
    weights = _by_sample(products, batch).softmax(dim=-1)
    if products.shape[-2] == 1:
        return weights.mean(dim=-2)
    return weights.diagonal(dim1=-3, dim2=-2).movedim(-1, -3).mean(dim=-2)


def softmax_row(query_BHD: Tensor, keys_BHND: Tensor, scale: float, valid_BN: Tensor | None = None) -> Tensor:
    """One row of attention, softmax over N of scale * query·key. -> [B, H, N]. Costs O(N), not O(N^2).

    Equation 1 with (q, k), equation 4 (semantic relevance) with (v, v). Padded tokens get exactly 0.
    """
    logits = row_logits(query_BHD, keys_BHND, scale)
    if valid_BN is not None:
        logits = logits.masked_fill(~valid_BN[:, None], -torch.inf)
    return logits.softmax(dim=-1)


def attention_received(
    queries_BHND: Tensor, keys_BHND: Tensor, scale: float, valid_BN: Tensor | None = None, chunk: int = 64
) -> Tensor:
    """What each token gets of the attention of all N, mean over heads and queries. -> [B, N]. Memory O(N * chunk)."""
    keys, batch, tokens = keys_BHND.float(), len(keys_BHND), keys_BHND.shape[2]
    total = keys.new_zeros(batch, tokens)
    for start in range(0, tokens, chunk):
        logits = torch.einsum("bhqd,bhnd->bhqn", queries_BHND[:, :, start : start + chunk].float(), keys) * scale
        if valid_BN is not None:
            logits = logits.masked_fill(~valid_BN[:, None, None], -torch.inf)
        rows = logits.softmax(dim=-1).mean(dim=1)
        if valid_BN is not None:
            rows = rows * valid_BN[:, start : start + chunk, None]
        total += rows.sum(dim=1)
    return total / (tokens if valid_BN is None else valid_BN.sum(dim=1, keepdim=True))


def value_strength(values_BHND: Tensor) -> Tensor:
    """L1 norm of the value vector averaged over heads, sign included. -> [B, N]. Equation 4, information density."""
    return torch.linalg.vector_norm(head_mean(values_BHND), ord=1, dim=-1)


def head_mean(values_BHND: Tensor) -> Tensor:
    """Mean over heads, whose L1 norm is `value_strength`. -> [B, N, D], float32."""
    return values_BHND.mean(dim=1, dtype=torch.float32)


def normalise(weights_BN: Tensor) -> Tensor:
    """Divide by the sum over tokens; all zeros stay zeros instead of turning into NaN."""
    return weights_BN / weights_BN.sum(dim=-1, keepdim=True).clamp_min(TINY)


def entropy(weights_BN: Tensor) -> Tensor:
    """-sum w ln w in nats. -> [B]. Equation 2; 0 ln 0 counts as 0, so a token nobody looks at cannot make it NaN."""
    return torch.special.entr(weights_BN).sum(dim=-1)


def prune_number(tokens: int, target: int, left: float, entropy_ratio: float) -> float:
    """How many tokens to drop, not yet rounded. Equation 3.

    Args:
        tokens: visual tokens now.
        target: visual tokens wanted in the end.
        left: how far off the last selection is, > 0.
        entropy_ratio: entropy over its maximum: 1 when attention is spread evenly, 0 when it sits on one token.
    """
    return (tokens - target) / math.sqrt(left) * (1 - entropy_ratio**2)


def running_mean(before: Tensor | None, now: Tensor, history: float) -> Tensor:
    """Cumulative importance: history * before + (1 - history) * now, or `now` the first time. Equation 6."""
    return now if before is None else torch.lerp(before, now, 1 - history)


def accumulate(
    past: tuple[Tensor, float] | None, share: Tensor | None, strength: Tensor | None, history: float
) -> tuple[Tensor, float]:
    """Equation 6 for the score share * strength, with one operator call: what is cumulative is values * scale.

    The past is not multiplied by its weight; its scale is. Whoever compares the tokens of a row needs no scale.

    Args:
        past: values and scale so far; None the first time.
        share, strength: [B, N]; None for a factor that does not count, but one of them has to.
        history: weight of the past.
    """
    if past is not None and history * past[1] > _SMALL:
        values, scale = past[0], history * past[1]
        alpha = (1 - history) / scale
        if share is not None and strength is not None:
            return torch.addcmul(values, share, strength, value=alpha), scale
        only = strength if share is None else share
        assert only is not None
        return torch.add(values, only, alpha=alpha), scale
    score = strength if share is None else share if strength is None else share * strength
    assert score is not None
    return running_mean(None if past is None else past[0] * past[1], score, history), 1.0
