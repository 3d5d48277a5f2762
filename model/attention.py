"""Attention of every query to every key, with the parameters of `nn.MultiheadAttention`.

torch's own forward puts queries before images, and where there are several images its linear layers
then become a small product a query, each with a copy of the weights.
"""

from torch import Tensor, nn
from torch.nn import functional as F


def attend(
    attention: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """What `attention` gives before its last product, `out_proj`.

    `query` is (B, Q, C), `key` and `value` (B, S, C), the result (B, Q, C). `mask` (B, 1, 1, S)
    bool is True for the keys that are attended to; None is for all.
    """
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    width = attention.embed_dim
    values = F.linear(value, weight[2 * width :], bias[2 * width :])
    if key is query:  # one product for both
        both = F.linear(query, weight[: 2 * width], bias[: 2 * width])
        queries, keys = both.chunk(2, -1)
        return attend_projected(attention, queries, keys, values, mask)
    queries = F.linear(query, weight[:width], bias[:width])
    keys = F.linear(key, weight[width : 2 * width], bias[width : 2 * width])
    return attend_projected(attention, queries, keys, values, mask)


def attend_projected(
    attention: nn.MultiheadAttention,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """As `attend`, of queries, keys and values that are projected already."""
    q, k, v = (
        part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for part in (queries, keys, values)
    )
    dropout = attention.dropout if attention.training else 0.0
    y = F.scaled_dot_product_attention(q, k, v, mask, dropout)  # (B, M, Q, D)
    return y.transpose(1, 2).flatten(2)
