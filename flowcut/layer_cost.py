"""What one layer of a language model costs, from its config: attention or a recurrent state, a gated MLP or experts."""

from __future__ import annotations

from typing import Any, NamedTuple


class LayerCost(NamedTuple):
    """The cost of a decoder layer.

    Attributes:
        token: multiply-accumulates for each token, whatever stands before it.
        pair: multiply-accumulates for each pair of a token and a token that it attends to.
        cached: numbers that the KV cache keeps of each token.
        state: numbers that it keeps whatever the length.
    """

    token: int
    pair: int
    cached: int
    state: int


def layer_cost(config: Any, layer: int) -> LayerCost:
    """The cost of a decoder's layer. Experts count as far as a token goes through them."""
    kinds = getattr(config, "layer_types", None)
    mixing = _recurrent(config) if kinds and kinds[layer] == "linear_attention" else _attention(config)
    return mixing._replace(token=mixing.token + _mlp(config, layer))


def _attention(config: Any) -> LayerCost:
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_values = getattr(config, "num_key_value_heads", None) or heads
    gates = heads if hasattr(config, "linear_num_value_heads") else 0  # in Qwen3.5, one for each entry of the output
    maps = config.hidden_size * head * (2 * heads + 2 * key_values + gates)
    return LayerCost(maps, 2 * heads * head, 2 * head * key_values, 0)


def _recurrent(config: Any) -> LayerCost:
    """Qwen3.5's gated delta rule: each token reads a matrix per head by its key, changes it, and reads by its query."""
    heads, key, value = config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim
    keys, values, kernel = config.linear_num_key_heads * key, heads * value, config.linear_conv_kernel_dim
    maps = config.hidden_size * (2 * keys + values + values + 2 * heads + values)  # q, k, v; gate; two scalars; output
    convolved = 2 * keys + values
    return LayerCost(
        maps + kernel * convolved + 3 * heads * key * value, 0, 0, kernel * convolved + heads * key * value
    )


def _mlp(config: Any, layer: int) -> int:
    width = config.hidden_size
    if hasattr(config, "n_routed_experts") and layer >= config.first_k_dense_replace:  # GLM-4.5V
        inner = config.moe_intermediate_size * (config.num_experts_per_tok + config.n_shared_experts)
        return 3 * width * inner + width * config.n_routed_experts
    if hasattr(config, "shared_expert_intermediate_size"):  # Qwen3.5-MoE, whose shared expert has a gate
        inner = config.moe_intermediate_size * config.num_experts_per_tok + config.shared_expert_intermediate_size
        return 3 * width * inner + width * (config.num_experts + 1)
    every, without = getattr(config, "decoder_sparse_step", None), getattr(config, "mlp_only_layers", None) or ()
    if every and layer not in without and (layer + 1) % every == 0:  # Qwen3-VL-MoE
        return 3 * width * config.moe_intermediate_size * config.num_experts_per_tok + width * config.num_experts
    return 3 * width * config.intermediate_size
