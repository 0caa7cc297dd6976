"""The paper's equations as pure functions of tensors. Everything is computed in float32, whatever the model runs in.

Shapes: B samples, H heads, N tokens, D entries per head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny
_WIDTH_PER_SAMPLE = 128


def row_logits(query_BHD: Tensor, keys_BHND: Tensor, scale: float) -> Tensor:
    """scale * query·key for one query per sample and head, float32. -> [B, H, N].

    A batch that attention made lies as [B, N, H, D] in memory, so products by sample and head would have to copy its
    keys. In a small batch each head's queries of all samples therefore meet all keys, and each sample's own part is
    taken as a view; small enough that this is about a thousandth of an encoder layer's FLOPs. On a GPU keys of 16 bits
    are not copied either: their products are exact in float32, where they are summed.
    """
    batch, heads, tokens, width = keys_BHND.shape
    if torch.compiler.is_compiling():  # fuses with what follows
        return (query_BHD.float()[:, :, None] * keys_BHND).sum(dim=-1, dtype=torch.float32) * scale
    together = batch == 1 or batch <= heads * width // _WIDTH_PER_SAMPLE
    if together:
        queries, keys = query_BHD.transpose(0, 1), keys_BHND.transpose(0, 1).flatten(1, 2).mT
    else:
        queries, keys = query_BHD.flatten(0, 1)[:, None], keys_BHND.flatten(0, 1).mT
    if keys.is_cuda and keys.dtype == queries.dtype != torch.float32 and hasattr(torch.ops.aten.bmm, "dtype"):
        logits = torch.bmm(queries, keys, out_dtype=torch.float32)
        logits = logits if scale == 1 else logits * scale
    else:
        unused = torch.empty(1, 1, 1, device=keys.device)
        logits = torch.baddbmm(unused, queries.float(), keys.float(), beta=0, alpha=scale)
    if not together:
        return logits.view(batch, heads, tokens)
    return logits.view(heads, batch, batch, tokens).diagonal(dim1=1, dim2=2).permute(2, 0, 1)


def softmax_row(query_BHD: Tensor, keys_BHND: Tensor, scale: float, valid_BN: Tensor | None = None) -> Tensor:
    """One row of attention, softmax over N of scale * query·key. -> [B, H, N]. Costs O(N), not O(N^2).

    Equation 1 with (q, k), equation 4 (semantic relevance) with (v, v). Padded tokens get exactly 0.
    """
    logits = row_logits(query_BHD, keys_BHND, scale)
    if valid_BN is not None:
        logits = logits.masked_fill(~valid_BN[:, None], -torch.inf)
    return logits.softmax(dim=-1)


def mean_rows(logits_BHN: Sequence[Tensor], valid_BN: Tensor | None = None) -> Tensor:
    """Rows of attention from several kinds of logits, each a softmax over N and the mean over heads. -> [K, B, N]."""
    logits = torch.stack(list(logits_BHN))
    if valid_BN is not None:
        logits = logits.masked_fill(~valid_BN[:, None], -torch.inf)
    return logits.softmax(dim=-1).mean(dim=2)


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
