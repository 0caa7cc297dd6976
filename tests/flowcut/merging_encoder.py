"""An encoder with pre-norm layers that merges between attention and MLP, written as a loop over one image."""

import itertools
import math

import torch


def merging_encoder(layers, hidden, prefix, decide, proportional=True):
    """-> tokens, and which patches each visual token is made of.

    decide(number of the layer, q, k, v [H, S, d], sizes): the groups of places that become one token each, in their new
    order, the place that a token takes first, or these and how much each place counts besides its size; None to merge
    nothing.
    """
    sizes, members = [1.0] * len(hidden), [[place - prefix] for place in range(len(hidden))]
    for number, layer in enumerate(layers):
        attention = layer.self_attn
        normed = layer.layer_norm1(hidden)
        split = (len(hidden), attention.num_heads, -1)
        q, k, v = (
            part(normed).view(split).transpose(0, 1) for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        logits = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        if proportional:
            logits = logits + torch.tensor(sizes).log()
        hidden = hidden + attention.out_proj((logits.softmax(dim=-1) @ v).transpose(0, 1).flatten(1))
        groups = decide(number, q.detach(), k.detach(), v.detach(), sizes)
        if groups is not None:
            groups, counts = groups if isinstance(groups, tuple) else (groups, [1.0] * len(hidden))
            weights = [sum(sizes[one] for one in group) for group in groups]
            share = [sizes[one] * counts[one] for one in range(len(hidden))]
            hidden = torch.stack(
                [sum(share[one] * hidden[one] for one in group) / sum(share[one] for one in group) for group in groups]
            )
            members = [sorted(itertools.chain.from_iterable(members[one] for one in group)) for group in groups]
            sizes = weights
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return hidden, members[prefix:]


def embedded(model, image):
    """What goes into the first layer, [S, D], of an image [3, h, w]."""
    caught = []
    hook = model.encoder.layers[0].register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    model(image[None])
    hook.remove()
    return caught[0][0].detach()
